"""A cell on a node: started, gone on with, told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from simulations.places import cell_run
from simulations.places.cell_run import CellRun
from simulations.places.place import Task, forget, note_path, read_note

SLEEP = "import time; print('at work', flush=True); time.sleep(600)"


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task("a-seed0", tmp_path, ("simulate", "smoke"), 1, 0.0)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that were started; each runs the Python code that is its last word."""
    found: list[list[str]] = []

    def command(arguments: list[str]) -> list[str]:
        found.append(list(arguments))
        return [sys.executable, "-c", code[0]]

    code = ["raise SystemExit(3)"]
    monkeypatch.setattr(cell_run, "command", command)
    found.append(code)
    return found


def test_a_start_tells_where_and_how_it_ended(task: Task, started: list[list[str]]) -> None:
    assert CellRun(task, "one")() == 3
    note = read_note(task.out, task.name, "node")
    assert (note["attempt"], note["starts"], note["code"]) == ("one", 1, 3)
    assert note["node"]
    assert started[1] == ["simulate", "smoke"]
    assert task.log.is_file()
    assert note_path(task.out, task.name, "node").parent.stat().st_mode & 0o077 == 0


def test_what_has_begun_is_gone_on_with(task: Task, started: list[list[str]]) -> None:
    CellRun(task, "one")()
    (task.out / task.name).mkdir()
    (task.out / task.name / "config.yaml").touch()
    CellRun(task, "one")()
    assert started[2] == ["simulate", "smoke", "--resume"]
    assert read_note(task.out, task.name, "node")["starts"] == 2
    CellRun(task, "two")()
    assert read_note(task.out, task.name, "node")["starts"] == 1
    forget(task)
    assert read_note(task.out, task.name, "node") == {}


def test_the_cell_ends_in_order_where_its_time_is_over(
    task: Task, started: list[list[str]]
) -> None:
    pytest.importorskip("submitit")
    started[0][0] = SLEEP
    run = CellRun(task, "one")
    again: list[object] = []

    def over() -> None:
        while not (task.log.is_file() and b"at work" in task.log.read_bytes()):
            time.sleep(0.02)
        os.kill(cell_run._at_work[0].pid, signal.SIGUSR2)  # Slurm's warning, not for the cell
        time.sleep(0.2)
        assert cell_run._at_work[0].poll() is None
        again.append(run.checkpoint())

    thread = threading.Thread(target=over)
    thread.start()
    assert run() == -signal.SIGTERM
    thread.join()
    assert again[0].function == run  # type: ignore[attr-defined]


def test_the_cell_ends_with_what_started_it(tmp_path: Path) -> None:
    script = tmp_path / "node.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom simulations.places import cell_run, place\n"
        f"cell_run.command = lambda _: [sys.executable, '-c', {SLEEP!r}]\n"
        f"task = place.Task('a', Path({str(tmp_path)!r}), (), 1, 0.0)\n"
        "cell_run.CellRun(task, 'one')()\n"
    )
    root = str(Path(__file__).resolve().parents[3])
    with subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": root},
                          stderr=subprocess.DEVNULL) as node:  # fmt: skip
        log = tmp_path / "a.log"
        while not (log.is_file() and b"at work" in log.read_bytes()):
            assert node.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
        node.kill()
    (pid,) = map(int, children)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]:
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists()
