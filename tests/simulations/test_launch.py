from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path

import pytest

from core.errors import UserError
from core.packaging.app_bundle import app_dir, stage_app
from simulations import launch, supervise
from simulations.cluster import Cluster
from tests.simulations.tiny_app import TWO_ORDERS, pyproject

PYPROJECT = pyproject(keys=("out", "plan"))
SERVER = (
    TWO_ORDERS
    + """\
    replies = list(grid.send_and_receive(messages, timeout=120))
    folders = sorted(reply.content["m"]["cwd"] for reply in replies)
    Path(context.run_config["out"]).write_text("\\n".join([*folders, context.run_config["plan"]]))
    print(f"asked to {context.run_config['plan']}", flush=True)
    if context.run_config["plan"] == "fail":
        raise RuntimeError("as asked")
    if context.run_config["plan"] == "hang":
        time.sleep(600)
"""
)
CLIENT = """
import os
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    return Message(RecordDict({"m": ConfigRecord({"cwd": os.getcwd()})}), reply_to=message)
"""
CALLER = """
import sys
from pathlib import Path
from simulations.launch import Clients, run_flower
source, work = Path(sys.argv[1]), Path(sys.argv[2])
config = {"out": str(work / "out.txt"), "plan": sys.argv[3]}
run_flower(source, config, Clients(2), work_dir=work, on_line=lambda line: print(line, flush=True))
"""


@pytest.fixture
def tiny_app(tmp_path: Path) -> Path:
    root = tmp_path / "tiny"
    for name, text in {
        "pyproject.toml": PYPROJECT,
        "server/app.py": SERVER,
        "client/app.py": CLIENT,
        "server/__init__.py": "",
        "client/__init__.py": "",
        "notes.md": "must not travel",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The private folders of launches made by this process."""
    made: list[str] = []
    make = launch.tempfile.mkdtemp

    def remember(**kwargs: str) -> str:
        made.append(make(**kwargs))
        return made[-1]

    monkeypatch.setattr(launch.tempfile, "mkdtemp", remember)
    return made


def assert_nothing_left(homes: list[str]) -> None:
    assert homes
    for home in homes:
        assert not Path(home).exists()
        assert supervise.owned(f"FLWR_HOME={home}") == set()


@pytest.mark.slow
@pytest.mark.timeout(900)  # two starts of Ray on a machine that may be busy
def test_success_and_failure_have_their_exit_codes(
    tiny_app: Path, tmp_path: Path, marks: list[str]
) -> None:
    before = {path: path.read_bytes() for path in sorted(tiny_app.rglob("*")) if path.is_file()}
    for plan, expected in (('{"é": "\\\\ \x7f"}', 0), ("fail", 1)):
        lines: list[str] = []
        out = tmp_path / f"{expected}.txt"
        code = launch.run_flower(
            tiny_app,
            {"out": str(out), "plan": plan},
            launch.Clients(2),
            work_dir=tmp_path / "work",
            on_line=lines.append,
        )
        assert code == expected, "\n".join(lines)
        home = marks[-1]
        assert out.read_text() == f"{home}\n{home}\n{plan}"  # actors run in the neutral folder
        assert any("asked to" in line for line in lines)
        assert ("as asked" in lines[-1]) == (expected == 1)
        assert not any("\x1b" in line for line in lines)
        assert_nothing_left(marks)
    assert "asked to fail" in (tmp_path / "work" / "flower.log").read_text()
    assert before == {p: p.read_bytes() for p in sorted(tiny_app.rglob("*")) if p.is_file()}


@pytest.mark.timeout(600)
def test_termination_ends_everything(tiny_app: Path, tmp_path: Path) -> None:
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    environment = {**os.environ, "PYTHONPATH": str(app_dir()), "TMPDIR": "/tmp"}
    with subprocess.Popen(
        [sys.executable, str(script), str(tiny_app), str(tmp_path), "hang"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as caller:
        assert caller.stdout is not None
        seen = []
        for line in caller.stdout:
            seen.append(line)
            if "asked to hang" in line:
                break
        home = (tmp_path / "out.txt").read_text().splitlines()[0]
        assert len(supervise.owned(f"FLWR_HOME={home}")) > 5, seen
        caller.send_signal(signal.SIGTERM)
        caller.stdout.read()
        assert caller.wait(60) == 128 + signal.SIGTERM
    assert_nothing_left([home])


def test_a_launch_that_cannot_be_submitted_fails(
    tiny_app: Path, tmp_path: Path, marks: list[str]
) -> None:
    lines: list[str] = []
    code = launch.run_flower(
        tiny_app, {"unknown": "1"}, launch.Clients(1), work_dir=tmp_path, on_line=lines.append
    )
    assert code == 1
    assert any("unknown" in line for line in lines), lines
    assert_nothing_left(marks)


def test_only_listed_files_are_staged(tiny_app: Path, tmp_path: Path) -> None:
    stage_app(tiny_app, tmp_path / "copy")
    found = {str(p.relative_to(tmp_path / "copy")) for p in (tmp_path / "copy").rglob("*.*")}
    assert found == {
        "pyproject.toml",
        "server/__init__.py",
        "server/app.py",
        "client/__init__.py",
        "client/app.py",
    }
    (tiny_app / "pyproject.toml").write_text(PYPROJECT.replace("client/**", "nowhere/**"))
    with pytest.raises(UserError, match="nowhere"):
        stage_app(tiny_app, tmp_path / "other")
    (tiny_app / "pyproject.toml").write_text(PYPROJECT.replace("fab-include", "fab-other"))
    with pytest.raises(UserError, match="fab-include"):
        stage_app(tiny_app, tmp_path / "third")


def test_app_dir_holds_the_apps() -> None:
    settings = tomllib.loads((app_dir() / "pyproject.toml").read_text())
    assert settings["tool"]["flwr"]["app"]["components"]["serverapp"] == "server.app:app"


def test_on_a_cluster_the_launch_has_its_token_and_a_folder_that_nodes_see(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "1" * 64)
    made = launch._environment(tmp_path, launch.Clients(1, cluster=Cluster("head:6379")))
    kept = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "1" * 64}
    assert kept.items() <= made.items()
    assert not {"RAY_ADDRESS", "RAY_TMPDIR", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"} & set(made)
    assert (made["FLWR_HOME"], made["FLWR_TELEMETRY_ENABLED"]) == (str(tmp_path), "0")
    home = launch._private_folder(tmp_path)
    assert home.parent == tmp_path
    assert home.stat().st_mode & 0o077 == 0


def test_environment_is_private_and_quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setenv("FLWR_HOME", "/elsewhere")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("no_proxy", "inner.example")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    made = launch._environment(tmp_path, launch.Clients(1))
    assert "RAY_ADDRESS" not in made
    assert made["FLWR_HOME"] == made["RAY_TMPDIR"] == str(tmp_path)
    assert made["FLWR_TELEMETRY_ENABLED"] == "0"
    assert made["RAY_AUTH_MODE"] == "token"
    assert made["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert made["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert made["NO_PROXY"] == "example.org,inner.example,127.0.0.1,localhost,::1"
    assert made["no_proxy"] == made["NO_PROXY"]
    assert made["PATH"].startswith(str(Path(sys.executable).parent))


def test_bad_sizes_are_refused(tiny_app: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        launch.run_flower(tiny_app, {}, launch.Clients(0), work_dir=tmp_path, on_line=print)


def test_owned_finds_children_by_their_mark_only(tmp_path: Path) -> None:
    mark = f"HNFED_TEST={tmp_path}"
    sleeper = (
        "import subprocess, sys, time; "
        "subprocess.run([sys.executable, '-c', sys.argv[1]], env={}); time.sleep(60)"
    )
    inner = textwrap.dedent("import time; print('up', flush=True); time.sleep(60)")
    name, value = mark.split("=", 1)
    with subprocess.Popen(
        [sys.executable, "-c", sleeper, inner],
        env={**os.environ, name: value},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        found = supervise.owned(mark)
        assert process.pid in found
        assert len(found) == 2  # the child that lost the mark is found as a descendant
        assert supervise.owned(mark + "-other") == set()
        supervise.stop(mark, 0.0)
        assert process.wait(10) == -signal.SIGKILL
    assert supervise.owned(mark) == set()


def test_no_room_for_the_launch_is_told_with_its_remedy(
    tiny_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    for owner, name in ((launch.tempfile, "mkdtemp"), (launch, "write_private")):
        monkeypatch.undo()
        monkeypatch.setattr(owner, name, full)
        with pytest.raises(UserError, match=r"(?s)TMPDIR.*No space"):
            launch.run_flower(tiny_app, {}, launch.Clients(1), work_dir=tmp_path, on_line=print)


def test_a_child_that_is_stopped_for_good_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It said nothing more, and the command waited for its next line for ever."""
    monkeypatch.setattr(launch, "STOPPED_SECONDS", 2)
    with subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, text=True) as child:
        stood = launch._watched(child)
        time.sleep(1.5)
        assert child.poll() is None, "who works is left alone"
        child.send_signal(signal.SIGSTOP)
        assert child.wait(20) == -signal.SIGKILL
        assert stood.is_set()
