"""`hnfed grid`: the cells of a study, each a run of its own process, kept and gone on with."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.processes import deaf, leave_if_told
from core.text import aligned, figure
from simulations.cell import (
    Wanted,
    mean_dice,
    minutes,
    of_other_code,
    read_metrics,
    state,
    wanted,
    write_record,
)
from simulations.cell_list import LOCK, asked_of
from simulations.choice import NOT_CHOSEN, dropped
from simulations.folds import make_view
from simulations.places import local
from simulations.places.place import Ending, Place, Task, forget
from simulations.places.where import Where, opened
from simulations.study import Cell, Study
from simulations.sweep_tables import count_cells, write_tables

POLL_SECONDS = 0.2
GOOD = ("completed", "done before")
FINE = (*GOOD, NOT_CHOSEN)
# A cell on a cluster runs on one node of it, whatever the study says of its own Ray.
ALONE = ('simulation.ray=""',)


@dataclass
class Child:
    """A cell at work."""

    cell: Cell
    target: Wanted
    command: list[str]
    task: Task
    started: float


@dataclass
class Work:
    """What a grid has done and has still to do.

    Attributes:
        study: what is run.
        out: folder of the cells.
        chosen: the cells of this call.
        place: where cells run.
        room: cells at a time; None for all that can begin.
        outcome: by cell: completed, done before, not chosen, failed, refused, skipped.
        waiting: cells that have not begun.
        running: cells at work.
    """

    study: Study
    out: Path
    chosen: Sequence[Cell]
    place: Place
    room: int | None
    outcome: dict[str, str] = field(default_factory=dict)
    waiting: list[Cell] = field(default_factory=list)
    running: list[Child] = field(default_factory=list)


def grid(
    study: str,
    overrides: Sequence[str],
    out: Path | None,
    *,
    where: Where | None = None,
    only: Sequence[str] = (),
) -> int:
    """Runs the cells of a study that are not done.

    Args:
        study: shipped name or YAML path.
        overrides: KEY=VALUE for every cell.
        out: folder of the cells; default ``runs/STUDY``.
        where: they run; this machine, as many side by side as CPUs // `simulation.cpus_per_site`.
        only: patterns of cell names; what they need is run with them.

    Returns:
        0 when all cells asked for are done.

    Raises:
        UserError: what cannot work, and folders of another plan, before any cell begins.
    """
    where = where or Where()
    read, out, chosen, wishes = asked_of(study, overrides, out, only)
    if where.jobs is not None and where.jobs < 1:
        raise UserError("--jobs", where.jobs, "give a whole number >= 1")
    if where.slurm and where.on != "slurm":
        raise UserError("--slurm", dict(where.slurm), "give it with --on slurm")
    for cell in chosen:
        state(cell, out / cell.name, wishes[cell.name])
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out) as lock, opened(where, out, list(wishes.values()), lock) as place:
        for view, root in read.views.items():
            make_view(root, view)
        room = where.jobs if where.jobs and not place.stays else place.side_by_side
        work = Work(read, out, chosen, place, room, waiting=list(chosen))
        try:
            while work.waiting or work.running:
                leave_if_told()
                _begin(work)
                _settle(work)
                if work.running:
                    time.sleep(POLL_SECONDS)
        finally:
            _end(work)
            rows = write_tables(read, out)
    return _summary(work, rows)


@contextmanager
def _alone(out: Path) -> Iterator[int]:
    """Holds the folder; the cells inherit the lock, so one that outlives its grid holds it too."""
    lock = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "--out",
                out,
                "wait for its end, or choose another folder",
                problem="another grid, or a cell of it, is at work there",
            ) from None
        yield lock
    finally:
        os.close(lock)


def _begin(work: Work) -> None:
    """Settles what needs no work, and starts cells as far as there is room."""
    fresh: list[Child] = []
    for cell in list(work.waiting):
        bad = [n for n in cell.needs if work.outcome.get(n, GOOD[0]) not in GOOD]
        full = work.room is not None and len(work.running) + len(fresh) >= work.room
        if bad:
            work.waiting.remove(cell)
            _say(work, cell, "skipped", f"skipped: it needs {', '.join(bad)}")
        elif not full and all(n in work.outcome for n in cell.needs):
            if dropped(cell, work.study, work.out):
                work.waiting.remove(cell)
                _say(work, cell, NOT_CHOSEN, f"not run: its {work.study.choice} was not chosen")
                continue
            try:
                wish = wanted(cell, work.study.config, work.out)
                found = state(cell, work.out / cell.name, wish)
            except UserError as error:
                work.waiting.remove(cell)
                _say(work, cell, "refused", f"refused: {error}")
                continue
            work.waiting.remove(cell)
            if found == "done":
                _say(work, cell, "done before", f"done before: {_scores(work.out, cell, wish)}")
            else:
                fresh.append(_child(cell, wish, work))
    if fresh:
        work.running += fresh
        work.place.start([child.task for child in fresh])


def _child(cell: Cell, target: Wanted, work: Work) -> Child:
    """A cell that is about to begin, or to be gone on with; its record says so."""
    folder = work.out / cell.name
    alone = () if work.place.name == local.NAME else ALONE
    arguments = ("simulate", work.study.config, *cell.overrides, *alone, "--out", str(folder))
    task = Task(cell.name, work.out, arguments, *target.needs_at_most)
    command = ["hnfed", *task.started()]
    write_record(cell, folder, target, command, "running", 0.0)
    what = "resuming" if command[-1] == "--resume" else "starting"
    print(f"{what} {cell.name} (log {task.log})", flush=True)
    return Child(cell, target, command, task, time.monotonic())


def _settle(work: Work) -> None:
    """Takes in the cells that have ended."""
    for child in list(work.running):
        code = work.place.ended(child.task)
        if code is None:
            continue
        work.running.remove(child)
        forget(child.task)
        cell, folder = child.cell, work.out / child.cell.name
        done = code == 0 and read_metrics(folder).get("status") == "completed"
        _record(child, folder, "completed" if done else "failed")
        if done:
            text = f"{_scores(work.out, cell, child.target)}{_time_left(work, cell)}"
            _say(work, cell, "completed", text)
        else:
            log = child.task.log
            text = f"failed after {minutes(folder):.1f} min ({_words(code)}); read {log}"
            _say(work, cell, "failed", f"{text}{_last_error(log)}")
        write_tables(work.study, work.out)


def _words(ending: Ending) -> str:
    if isinstance(ending, str):
        return ending
    return f"exit code {ending}" if ending >= 0 else f"signal {-ending}"


def _record(child: Child, folder: Path, status: str) -> None:
    seconds = time.monotonic() - child.started
    write_record(child.cell, folder, child.target, child.command, status, seconds)


def _last_error(log: Path) -> str:
    if not log.is_file():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("hnfed: error:")]
    return "".join(f"\n  {line}" for line in lines[starts[-1] :][:3]) if starts else ""


def _say(work: Work, cell: Cell, outcome: str, text: str) -> None:
    work.outcome[cell.name] = outcome
    print(f"cell {len(work.outcome)}/{len(work.chosen)} {cell.name}: {text}", flush=True)


def _scores(out: Path, cell: Cell, target: Wanted) -> str:
    val, test = _dice(out / cell.name, target, 2)
    return f"val {val}, test {test}, {minutes(out / cell.name):.1f} min"


def _dice(folder: Path, target: Wanted, digits: int) -> tuple[str, str]:
    """Mean Dice on val and on test of a cell that is done."""
    blocks = [b for b in read_metrics(folder)["phases"] if b["name"] in target.last]
    return figure(mean_dice(blocks, "val"), digits), figure(mean_dice(blocks, "test"), digits)


def _time_left(work: Work, cell: Cell) -> str:
    """From the cells that are done: those of the same variant, else all."""
    known: dict[str, list[float]] = {}
    for done in work.chosen:
        if work.outcome.get(done.name) in GOOD or done is cell:
            known.setdefault(done.variant, []).append(minutes(work.out / done.name))
    everything = [m for values in known.values() for m in values]

    def expected(of: Cell) -> float:
        values = known.get(of.variant, everything)
        return sum(values) / len(values)

    now = time.monotonic()
    left = sum(expected(c) / (len(c.rivals) or 1) for c in work.waiting)  # one of them is run
    left += sum(max(0.0, expected(c.cell) - (now - c.started) / 60) for c in work.running)
    if not (work.waiting or work.running):
        return ""
    jobs = work.room or max(1, len(work.running))
    return f"; about {left / jobs:.0f} min left"


def _end(work: Work) -> None:
    """Ends the cells at work, or says where they stay; they can be gone on with."""
    if not work.running:
        return
    with deaf():
        words = work.place.stop([child.task for child in work.running])
        for child in work.running if not work.place.stays else ():
            forget(child.task)
            _record(child, work.out / child.cell.name, "interrupted")
    print(words, file=sys.stderr)


def _summary(work: Work, rows: Sequence[Mapping[str, Any]]) -> int:
    """The table of the cells, and what is missing or doubtful, by name."""
    lines = []
    for cell in work.chosen:
        folder = work.out / cell.name
        if work.outcome[cell.name] in GOOD:
            val, test = _dice(folder, wanted(cell, work.study.config, work.out), 3)
            lines.append((cell.name, val, test, f"{minutes(folder):.1f}"))
        elif work.outcome[cell.name] != NOT_CHOSEN:
            lines.append((cell.name, "-", "-", work.outcome[cell.name]))
    print(aligned([("cell", "val Dice", "test Dice", "minutes"), *lines], words=4))
    for outcome in ("failed", "refused", "skipped"):
        names = [n for n, o in work.outcome.items() if o == outcome]
        if names:
            print(f"{count_cells(len(names))} {outcome}: {', '.join(names)}")
    other = [
        c.name
        for c in work.chosen
        if work.outcome[c.name] in GOOD and of_other_code(work.out / c.name)
    ]
    if other:
        print(f"{count_cells(len(other))} made by other code, kept: {', '.join(other)}")
    print(f"{count_cells(len({r['cell'] for r in rows}))} in {work.out / 'grid.csv'} and grid.json")
    return 0 if set(work.outcome.values()) <= set(FINE) else 1
