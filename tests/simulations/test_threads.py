"""How many CPU threads a simulated site's process takes, phase by phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from core.plan.load import load
from server.run_folder import CELL
from simulations import engine, launch, room
from simulations.run import Crew, _launch
from simulations.threads import Threaded, threads_by_phase

TWO_THEN_ONE = {"pretrain": 2, "personalise": 1}  # sites of the demo's phases


@pytest.fixture(autouse=True)
def _own_number(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("at_once", "cores", "expected"),
    [
        (2, 2, {"pretrain": 1, "personalise": 2}),
        (1, 2, {"pretrain": 2, "personalise": 2}),
        (8, 8, {"pretrain": 4, "personalise": 8}),
        (2, 5, {"pretrain": 2, "personalise": 5}),
        (1, 1, {"pretrain": 1, "personalise": 1}),
    ],
)
def test_cores_are_shared_out_among_the_sites_of_a_phase(
    at_once: int, cores: int, expected: dict[str, int]
) -> None:
    plan = load("demo")[0].plan
    assert {p.name: len(p.sites) for p in plan.phases} == TWO_THEN_ONE
    assert threads_by_phase(plan, at_once, cores) == expected


def test_a_number_that_was_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_by_phase(load("demo", ["train.threads=1"])[0].plan, 2, 8) == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads_by_phase(load("demo")[0].plan, 2, 8) == {}


def test_a_process_takes_the_threads_of_the_messages_phase() -> None:
    seen: list[int] = []

    class App(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            seen.append(torch.get_num_threads())
            return message

    app, context = Threaded(App(), {"one": 3, "two": 2}), None
    for record in ({"order": ConfigRecord({"phase": "one"})}, {}, {"order": ConfigRecord({})},
                   {"order": ConfigRecord({"phase": "two"})}):  # fmt: skip
        message = Message.__new__(Message)
        message.__dict__["_content"] = RecordDict(record)  # type: ignore[arg-type]
        app(message, context)  # type: ignore[arg-type]
    assert seen == [3, 3, 3, 2]


def test_the_engine_on_ray_is_given_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "cpus", lambda: 4)
    cpu = load("demo", ["simulation.device=cpu"])[0]
    clients = room.room_for(cpu, 2, "")
    assert clients.threads == {"pretrain": 2, "personalise": 4}
    several = load("demo", ["simulation.device=cpu:2", "train.batch=2"])[0]
    assert room.room_for(several, 2, "").threads == {}

    ran: list[ClientApp] = []

    def simulate(folder: Path, server: Any, client: ClientApp, *rest: Any) -> None:
        ran.append(client)

    monkeypatch.setattr(engine, "apps_of", lambda folder: (None, ClientApp()))
    monkeypatch.setattr(engine, "simulate", simulate)
    for threads in ({}, clients.threads):
        with pytest.raises(RuntimeError, match="ended before"):
            engine.run(Path(), {}, sites=2, resources={}, ray={}, around={"threads": threads})
    assert [isinstance(client, Threaded) for client in ran] == [False, True]


@pytest.mark.parametrize("of_a_study", [False, True])
def test_a_cell_of_a_study_leaves_the_other_cores_to_the_others(
    of_a_study: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many cells run side by side as have a core: each would take all of them."""
    launched: list[launch.Clients] = []

    def run_flower(source: Path, values: Any, clients: launch.Clients, **rest: Any) -> int:
        launched.append(clients)
        return 0

    monkeypatch.setattr(room, "cpus", lambda: 4)
    monkeypatch.setattr(launch, "run_flower", run_flower)
    if of_a_study:
        (tmp_path / CELL).write_text("{}")
    config = load("demo", ["simulation.device=cpu"])[0]
    assert _launch(config, {}, tmp_path, Crew(2, "", None)) == 0
    assert launched[0].threads == ({} if of_a_study else {"pretrain": 2, "personalise": 4})
    assert launched[0].side_by_side == 4
