"""The server is killed (SIGKILL) at named points; resumed, the run ends as if nothing had been."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import core.wire.checkpoint
import server.aggregate
import server.dispatch
import server.rounds
from core.journal import JOURNAL, read_events
from core.plan.schema import Phase, Strategy
from core.wire.checkpoint import load
from core.wire.round_checkpoints import RoundStore
from server.record import Recorder
from server.rounds import PhaseRun
from tests.server.conftest import ORGANS, Federated, tiny_plan

SITES = ["a", "b"]
ROUNDS = {"p": 4, "q": 3}
Make = Callable[..., Federated]


@dataclass(frozen=True)
class Point:
    """Where the server dies: before or after the n-th call of a function.

    Attributes:
        owner: module or class that holds it.
        name: of the function.
        when: before or after.
        nth: which call, counted from 1.
        event: count only calls that tell of this event.
    """

    owner: Any
    name: str
    when: str
    nth: int
    event: str = ""


# Each save writes two files and renames two; a round saves twice (state, last), so does round 0.
POINTS = {
    "before the exchange": Point(server.dispatch, "exchange", "before", 2),
    "after the exchange": Point(server.dispatch, "exchange", "after", 2),
    "before the average": Point(server.aggregate, "average", "before", 2),
    "after the head's rows": Point(server.aggregate, "aggregate_head", "after", 2),
    "before the commit": Point(RoundStore, "put", "before", 3),
    "one file written": Point(core.wire.checkpoint, "write_flushed", "after", 9),
    "both files written": Point(core.wire.checkpoint, "write_flushed", "after", 10),
    "between the renames": Point(Path, "replace", "after", 9),
    "both renamed": Point(Path, "replace", "after", 10),
    "before old rounds go": Point(RoundStore, "prune", "before", 3),
    "in the export": Point(Path, "replace", "after", 11),
    "before the journal": Point(Recorder, "say", "before", 2, "round"),
    "in a journal line": Point(Recorder, "say", "within", 2, "round"),
    "after the journal": Point(Recorder, "say", "after", 2, "round"),
    "before the last scores": Point(server.dispatch, "exchange", "before", 5),
    "before the phase is done": Point(Recorder, "finish_phase", "before", 1),
    "after the phase is done": Point(Recorder, "finish_phase", "after", 1),
    "before the next phase": Point(PhaseRun, "_begin", "before", 2),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: Point) -> None:
    """Makes this process die there."""
    real = getattr(point.owner, point.name)
    calls = 0

    def deadly(*args: Any, **options: Any) -> Any:
        nonlocal calls
        told = args[1] if point.event else {}
        calls += not point.event or told["event"] == point.event
        now = calls == point.nth and (not point.event or told["event"] == point.event)
        if now and point.when == "before":
            die()
        if now and point.when == "within":
            with (args[0].out / JOURNAL).open("a") as file:
                file.write('{"event":"round","pha')
            die()
        result = real(*args, **options)
        if now:
            die()
        return result

    setattr(point.owner, point.name, deadly)


def lived(run: Federated, orders: Path, point: Point | None, *, resume: bool) -> int:
    """Runs the server in a process of its own; returns the signal that ended it, 0 for none."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            if point is not None:
                arm(point)
            begin = run.fakes._begin

            def noting(message: Any, context: Any) -> Any:
                order = message.content["order"]
                with orders.open("a") as file:
                    file.write(f"{order['phase']} {order['task']} {order['round']}\n")
                return begin(message, context)

            run.fakes._begin = noting  # type: ignore[method-assign]
            run.run(resume=resume)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0
    return 0


def digest(run: Federated) -> dict[str, str]:
    found = {}
    for phase in ROUNDS:
        for stem in ("best", "last"):
            state: Mapping[str, torch.Tensor] = load(
                run.out / "checkpoints" / phase / f"{stem}.safetensors"
            )[0]
            content = b"".join(n.encode() + state[n].numpy().tobytes() for n in sorted(state))
            found[f"{phase}/{stem}"] = hashlib.sha256(content).hexdigest()
    return found


def made(federate: Make, folder: str, strategy: str = "fedavg") -> Federated:
    phases = [
        Phase(name="p", sites=SITES, organs=ORGANS, rounds=ROUNDS["p"]),
        Phase(name="q", sites=SITES, organs=ORGANS, rounds=ROUNDS["q"], init="p"),
    ]
    plan = tiny_plan(*phases, strategy=Strategy(name=strategy))
    return federate(plan, folder=folder)


def check(
    federate: Make, tmp_path: Path, name: str, calm: Federated, strategy: str = "fedavg"
) -> None:
    """One death and one resume, held against the undisturbed run."""
    folder = name.replace(" ", "-").replace("'", "")
    run, orders = made(federate, folder, strategy), tmp_path / f"{folder}.orders"
    assert lived(run, orders, POINTS[name], resume=False) == signal.SIGKILL, name
    assert lived(run, orders, None, resume=True) == 0, name
    assert digest(run) == digest(calm), name
    assert json.loads((run.out / "metrics.json").read_text())["status"] == "completed"
    trained = [line for line in orders.read_text().splitlines() if " train " in line]
    usual = len(SITES) * sum(ROUNDS.values())
    assert usual <= len(trained) <= usual + len(SITES), f"{name}: more than a round again"
    told = [
        (e["phase"], e["round"]) for e in read_events(run.out / JOURNAL) if e["event"] == "round"
    ]
    assert told == [(p, r) for p, n in ROUNDS.items() for r in range(1, n + 1)], name


@pytest.fixture
def calm(federate: Make, tmp_path: Path) -> Federated:
    run = made(federate, "calm")
    assert lived(run, tmp_path / "calm.orders", None, resume=False) == 0
    return run


@pytest.mark.parametrize("name", ["between the renames", "before the journal"])
def test_a_death_leaves_no_trace(
    federate: Make, tmp_path: Path, calm: Federated, name: str
) -> None:
    check(federate, tmp_path, name, calm)


@pytest.mark.parametrize("strategy", ["fedadam", "fedavgm"])
def test_a_death_between_a_commit_and_the_next_round_costs_no_moment(
    federate: Make, tmp_path: Path, strategy: str
) -> None:
    calm = made(federate, "calm", strategy)
    assert lived(calm, tmp_path / "calm.orders", None, resume=False) == 0
    for name in ("between the renames", "after the journal"):
        check(federate, tmp_path, name, calm, strategy)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_deaths_at_all_named_points(federate: Make, tmp_path: Path, calm: Federated) -> None:
    for name in POINTS:
        check(federate, tmp_path, name, calm)
    print(f"killed at {len(POINTS)} named points, {len(POINTS)} resumed to the same SHA-256")
