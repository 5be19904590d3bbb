"""One check on replies in both engines; Flower's private names that the Ray engine uses."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import sys
from pathlib import Path

import pytest

from simulations import launch
from simulations.inline import run_inline
from simulations.released import Released, resolved
from tests.simulations.tiny_app import TWO_ORDERS, pyproject

PYPROJECT = pyproject("tiny_", "*.py")
SERVER = (
    TWO_ORDERS
    + """\
    replies = grid.send_and_receive(messages, timeout=120)
    said = sorted(json.dumps(dict(r.content["header"])) for r in replies)
    Path(context.run_config["out"]).write_text("\\n".join(said))
"""
)
CLIENT = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    header = {"code": "OK", "site": str(context.node_config["partition-id"])}
    if context.node_config["partition-id"] == 1:
        header["patient"] = "Jane Doe"
    return Message(RecordDict({"header": ConfigRecord(header)}), reply_to=message)
"""
GUARD = """
from flwr.app import ConfigRecord, Message, RecordDict

def release(order, reply, context):
    assert order.content["c"]["x"] == 1 and context.run_config["out"]
    header = dict(reply.content["header"])
    if set(header) <= {"code", "site"}:
        return reply
    refused = {"code": "E_OUTBOX", "site": header["site"]}
    return Message(RecordDict({"header": ConfigRecord(refused)}), reply_to=order)
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {
        "pyproject.toml": PYPROJECT, "tiny_server/app.py": SERVER, "tiny_client/app.py": CLIENT,
        "tiny_client/guard.py": GUARD, "tiny_server/__init__.py": "", "tiny_client/__init__.py": "",
    }.items():  # fmt: skip
        (tmp_path / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tiny" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("task_identity")
def test_both_engines_refuse_the_same_reply(tiny: Path, tmp_path: Path) -> None:
    name = "tiny_client.guard:release"
    by_ray, inline = tmp_path / "ray.txt", tmp_path / "inline.txt"
    code = launch.run_flower(
        tiny,
        {"out": str(by_ray)},
        launch.Clients(2, release=name),
        work_dir=tmp_path,
        on_line=print,
    )
    assert code == 0
    client = Released(resolved("tiny_client.app:app"), resolved(name))
    run_inline(resolved("tiny_server.app:app"), client, {"out": str(inline)}, 2)
    assert by_ray.read_text() == inline.read_text()
    said = [json.loads(line) for line in inline.read_text().splitlines()]
    assert said == [{"code": "E_OUTBOX", "site": "1"}, {"code": "OK", "site": "0"}]
    for module in [m for m in sys.modules if m.startswith("tiny_")]:
        del sys.modules[module]


def test_flowers_private_names_are_those_of_the_version_that_was_read() -> None:
    """`simulations.flower` is written for 1.42; with another, read Flower's source again."""
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
    from flwr.simulation.run_simulation import _run_simulation

    from simulations import engine

    assert importlib.metadata.version("flwr").startswith("1.42.")
    given = {
        "num_supernodes", "client_app", "server_app", "server_app_context", "backend_config",
        "app_dir", "is_app", "run", "exit_event",
    }  # fmt: skip
    assert given <= set(inspect.signature(_run_simulation).parameters)
    source = inspect.getsource(RayBackend)
    assert "client_resources[k] = v" in source  # Ray's options for an actor pass through these
    assert all(isinstance(value, int) for value in engine.REVIVED.values())
