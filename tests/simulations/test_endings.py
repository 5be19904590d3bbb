"""How a run through Ray ends: told to stop, with a process killed or stopped, at its own end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.journal import read_events
from core.wire.checkpoint import load
from simulations import supervise
from tests.conftest import heard

ROOT = Path(__file__).resolve().parents[2]
LAST = "checkpoints/pretrain/last.safetensors"
Start = Callable[..., "Run"]


class Run:
    """`hnfed simulate smoke`, tiny, through Ray, in a process of its own."""

    def __init__(self, out: Path, words: list[str], *more: str) -> None:
        self.out = out
        self.log = out.parent / f"{out.name}.log"
        command = [sys.executable, "-m", "hnfed.cli.main", "simulate", "smoke", *words]
        command += ["simulation.engine=ray", "simulation.cpus_per_site=1", "--out", str(out), *more]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=out.parent,
                env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
                preexec_fn=heard,
            )  # fmt: skip

    def events(self, name: str, /, **match: Any) -> list[dict[str, Any]]:
        found = [e for e in read_events(self.out / "journal.jsonl") if e["event"] == name]
        return [e for e in found if all(e.get(k) == v for k, v in match.items())]

    def until(self, name: str, /, **match: Any) -> None:
        """Waits until the journal has an event."""
        limit = time.monotonic() + 240
        while not self.events(name, **match):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < limit, self.log.read_text()
            time.sleep(0.02)

    def children(self) -> set[int]:
        """Processes below the command, however deep, and those of its launch."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state not in "ZX":
                parents[int(stat.parent.name)] = int(parent)
        found, grown = {self.process.pid}, True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in found} - found
            found |= more
            grown = bool(more)
        return found - {self.process.pid}

    def named(self, text: str) -> list[int]:
        """Processes of the run whose command line holds a text."""
        found = []
        for pid in self.children():
            try:
                if text in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                    found.append(pid)
            except OSError:
                continue
        return found

    def ends(self, seconds: float = 120.0) -> int:
        """Exit code; nothing of the run is left."""
        left = self.children()
        code = self.process.wait(seconds)
        limit = time.monotonic() + 15
        while any(alive(pid) for pid in left) and time.monotonic() < limit:
            time.sleep(0.1)
        assert [pid for pid in left if alive(pid)] == [], self.log.read_text()
        assert "Traceback" not in self.log.read_text(), self.log.read_text()
        return code

    def status(self) -> str:
        """As metrics.json and the journal's last word have it, which must be one."""
        status = str(json.loads((self.out / "metrics.json").read_text())["status"])
        last = read_events(self.out / "journal.jsonl")[-1]
        assert (last["event"], last["status"]) == ("run-end", status)
        return status


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def start(tiny: list[str], tmp_path: Path) -> Iterator[Start]:
    made: list[Run] = []

    def begin(*words: str, folder: str = "run") -> Run:
        made.append(Run(tmp_path / folder, tiny, *words))
        return made[-1]

    yield begin
    for run in made:
        for pid in [*run.children(), run.process.pid]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        run.process.wait()


LONG = ("phases.0.rounds=400", "phases.0.patience=400", "tracking.mode=disabled")
SHORT = ("phases.0.rounds=6", "phases.1.rounds=1", "tracking.mode=disabled")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.chaos),
        pytest.param(signal.SIGTERM, marks=pytest.mark.chaos),
    ],
)
def test_a_run_that_is_told_to_stop_tells_its_end(start: Start, number: int) -> None:
    run = start(*LONG)
    run.until("round", round=2)
    home = next(p for p in run.named("supervise.py"))
    assert len(supervise.owned(_mark(home))) > 5
    run.process.send_signal(number)
    assert run.ends() == 128 + number
    assert run.status() == "interrupted"
    ends = run.events("run-end")
    # Where the sites were gone first, the server told of that, and was corrected.
    assert [e["status"] for e in ends] in (["interrupted"], ["incomplete", "interrupted"])
    assert ends[-1]["seconds"] >= ends[0]["seconds"]


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_run_that_is_told_to_stop_as_ray_starts_tells_its_end(start: Start) -> None:
    run = start(*LONG)
    limit = time.monotonic() + 120
    while not run.named("gcs_server"):
        assert time.monotonic() < limit
        time.sleep(0.02)
    run.process.send_signal(signal.SIGTERM)
    assert run.ends() == 143
    assert run.status() == "interrupted"


def _mark(pid: int) -> str:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(e.decode() for e in entries if e.startswith(b"FLWR_HOME="))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sites_process_that_is_killed_is_replaced(
    start: Start, run_tiny: Callable[..., Path]
) -> None:
    whole = run_tiny("whole", *SHORT)
    run = start(*SHORT)
    run.until("sent", phase="pretrain", round=2, kind="train")
    for pid in run.named("ray::ClientAppActor"):
        os.kill(pid, signal.SIGKILL)
    assert run.ends() == 0
    assert run.status() == "completed"
    one, other = load(whole / LAST)[0], load(run.out / LAST)[0]
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_sites_whose_processes_die_again_and_again_end_the_run(start: Start) -> None:
    run = start(*LONG)
    run.until("round", round=2)
    limit = time.monotonic() + 240
    while run.process.poll() is None and time.monotonic() < limit:
        for pid in run.named("ray::ClientAppActor"):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    assert run.ends() == 1
    assert run.status() == "incomplete"
    said = run.log.read_text()
    assert "process died (memory?)" in said
    assert "--resume" in said


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["raylet/raylet", "gcs_server", "supervise.py"])
def test_a_process_behind_the_run_that_is_killed_ends_it(start: Start, name: str) -> None:
    run = start(*LONG, "federation.round_timeout_s=20", "federation.round_retries=0")
    run.until("round", round=2)
    for pid in run.named(name):
        os.kill(pid, signal.SIGKILL)
    assert run.ends(200) == 1
    assert run.status() != "completed"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_process_does_not_keep_a_run_that_is_through(start: Start) -> None:
    run = start("phases.0.rounds=1", "phases.1.rounds=1")  # tracked: its end takes a moment
    run.until("phase-end", phase="personalise")
    for pid in run.named("ray::ClientAppActor"):
        os.kill(pid, signal.SIGSTOP)
    assert run.ends() == 0
    assert run.status() == "completed"


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_stopped_site_costs_a_round_not_the_run(start: Start) -> None:
    run = start(*SHORT, "federation.round_timeout_s=20", "federation.round_retries=0")
    run.until("sent", phase="pretrain", round=2, kind="train")
    os.kill(run.named("ray::ClientAppActor")[0], signal.SIGSTOP)
    code = run.ends(300)
    lost = {(e["phase"], e["round"]) for e in run.events("rejected") if e["code"] == "E_LOST"}
    assert (code, run.status(), len(lost) <= 1) == (0, "completed", True)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_nothing_outlives_a_killed_launcher(start: Start) -> None:
    run = start(*LONG)
    run.until("round", round=1)
    left = run.children()
    run.process.kill()
    limit = time.monotonic() + 30
    while any(alive(pid) for pid in left) and time.monotonic() < limit:
        time.sleep(0.1)
    assert len(left) > 5
    assert [pid for pid in left if alive(pid)] == []
