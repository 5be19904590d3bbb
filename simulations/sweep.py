"""`hnfed grid`: the cells of a study, each a run of its own process, kept and gone on with."""

from __future__ import annotations

import fcntl
import fnmatch
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.archives.parallel import cpus
from core.errors import UserError
from core.processes import deaf, leave_if_told
from core.text import aligned, figure
from simulations.cell import (
    ROOT,
    Wanted,
    mean_dice,
    minutes,
    of_other_code,
    read_metrics,
    state,
    wanted,
    write_record,
)
from simulations.folds import make_view
from simulations.study import Cell, Study, read_study
from simulations.sweep_tables import count_cells, write_tables

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0
GOOD = ("completed", "done before")


@dataclass
class Child:
    """A cell at work."""

    cell: Cell
    target: Wanted
    command: list[str]
    process: subprocess.Popen[bytes]
    started: float


@dataclass
class Work:
    """What a grid has done and has still to do.

    Attributes:
        study: what is run.
        out: folder of the cells.
        chosen: the cells of this call.
        outcome: by cell: completed, done before, failed, refused, skipped.
        waiting: cells that have not begun.
        running: cells at work.
    """

    study: Study
    out: Path
    chosen: Sequence[Cell]
    outcome: dict[str, str] = field(default_factory=dict)
    waiting: list[Cell] = field(default_factory=list)
    running: list[Child] = field(default_factory=list)


def grid(
    study: str,
    overrides: Sequence[str],
    out: Path | None,
    *,
    jobs: int | None = None,
    only: Sequence[str] = (),
) -> int:
    """Runs the cells of a study that are not done.

    Args:
        study: shipped name or YAML path.
        overrides: KEY=VALUE for every cell.
        out: folder of the cells; default ``runs/STUDY``.
        jobs: cells side by side; default: CPUs // `simulation.cpus_per_site`.
        only: patterns of cell names; what they need is run with them.

    Returns:
        0 when all cells asked for are done.

    Raises:
        UserError: what cannot work, and folders of another plan, before any cell begins.
    """
    read, out, chosen, wishes = _asked(study, overrides, out, only)
    if jobs is not None and jobs < 1:
        raise UserError("--jobs", jobs, "give a whole number >= 1")
    for cell in chosen:
        state(cell, out / cell.name, wishes[cell.name])
    jobs = jobs or max(1, cpus() // max(wish.cpus for wish in wishes.values()))
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out) as lock:
        for view, root in read.views.items():
            make_view(root, view)
        work = Work(read, out, chosen, waiting=list(chosen))
        try:
            while work.waiting or work.running:
                leave_if_told()
                _begin(work, jobs, lock)
                _settle(work, jobs)
                if work.running:
                    time.sleep(POLL_SECONDS)
        finally:
            _end(work)
            rows = write_tables(read, out)
    return _summary(work, rows)


def _asked(
    study: str, overrides: Sequence[str], out: Path | None, only: Sequence[str]
) -> tuple[Study, Path, list[Cell], dict[str, Wanted]]:
    """The study, its folder, the cells asked for and what each is to become."""
    out = (out or Path("runs") / Path(study).stem).resolve()
    read = read_study(study, overrides, out)
    chosen = _chosen(read.cells, only)
    return read, out, chosen, {cell.name: wanted(cell, read.config, out) for cell in chosen}


def _chosen(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    names = {cell.name: cell for cell in cells}
    wish = {n for n in names for p in only or ("*",) if fnmatch.fnmatchcase(n, p)}
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            remedy = "give a pattern of cell names; --list prints them"
            raise UserError("--only", pattern, remedy, problem="no cell has such a name")
    asked = len(wish)
    for cell in reversed(cells):  # needs stand before
        if cell.name in wish:
            wish |= set(cell.needs)
    if len(wish) > asked:
        print(f"with what they need: {count_cells(len(wish) - asked)} more")
    return [cell for cell in cells if cell.name in wish]


def list_cells(
    study: str, overrides: Sequence[str], out: Path | None, only: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Prints the cells of a study and where each stands; runs nothing. Arguments as for `grid`.

    Returns:
        ``cell``, ``phases`` and ``state`` of each.
    """
    _, out, chosen, wishes = _asked(study, overrides, out, only)
    rows = []
    for cell in chosen:
        wish = wishes[cell.name]
        try:
            found = state(cell, out / cell.name, wish)
        except UserError as error:
            found = f"refused: {error.problem}"
        if found == "waits":
            found = f"waits for {', '.join(cell.needs)}"
        rows.append({"cell": cell.name, "phases": wish.phases, "state": found})
    titles = ("cell", "phases: rounds x epochs", "state")
    print(aligned([titles, *(tuple(row.values()) for row in rows)], words=3))
    done = sum(row["state"] == "done" for row in rows)
    print(f"{count_cells(len(rows))}, {done} done, in {out}")
    return rows


@contextmanager
def _alone(out: Path) -> Iterator[int]:
    """Holds the folder; the cells inherit the lock, so one that outlives its grid holds it too."""
    lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
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


def _begin(work: Work, jobs: int, lock: int) -> None:
    """Settles what needs no work, and starts cells as far as there is room."""
    for cell in list(work.waiting):
        bad = [n for n in cell.needs if work.outcome.get(n, GOOD[0]) not in GOOD]
        if bad:
            work.waiting.remove(cell)
            _say(work, cell, "skipped", f"skipped: it needs {', '.join(bad)}")
        elif len(work.running) < jobs and all(n in work.outcome for n in cell.needs):
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
                work.running.append(_start(cell, wish, work, found == "unfinished", lock))


def _start(cell: Cell, target: Wanted, work: Work, resume: bool, lock: int) -> Child:
    folder = work.out / cell.name
    arguments = ["simulate", work.study.config, *cell.overrides, "--out", str(folder)]
    arguments += ["--resume"] if resume else []
    command = ["hnfed", *arguments]
    write_record(cell, folder, target, command, "running", 0.0)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    log = _log(work.out, cell)
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hnfed.cli.main", *arguments],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": paths}, start_new_session=True, pass_fds=(lock,),
        )  # fmt: skip
    print(f"{'resuming' if resume else 'starting'} {cell.name} (log {log})", flush=True)
    return Child(cell, target, command, process, time.monotonic())


def _settle(work: Work, jobs: int) -> None:
    """Takes in the cells that have ended."""
    for child in list(work.running):
        code = child.process.poll()
        if code is None:
            continue
        work.running.remove(child)
        cell, folder = child.cell, work.out / child.cell.name
        done = code == 0 and read_metrics(folder).get("status") == "completed"
        _record(child, folder, "completed" if done else "failed")
        if done:
            text = f"{_scores(work.out, cell, child.target)}{_time_left(work, cell, jobs)}"
            _say(work, cell, "completed", text)
        else:
            ended = f"exit code {code}" if code >= 0 else f"signal {-code}"
            log = _log(work.out, cell)
            text = f"failed after {minutes(folder):.1f} min ({ended}); read {log}"
            _say(work, cell, "failed", f"{text}{_last_error(log)}")
        write_tables(work.study, work.out)


def _record(child: Child, folder: Path, status: str) -> None:
    seconds = time.monotonic() - child.started
    write_record(child.cell, folder, child.target, child.command, status, seconds)


def _log(out: Path, cell: Cell) -> Path:
    return out / f"{cell.name}.log"


def _last_error(log: Path) -> str:
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


def _time_left(work: Work, cell: Cell, jobs: int) -> str:
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
    left = sum(expected(c) for c in work.waiting)
    left += sum(max(0.0, expected(c.cell) - (now - c.started) / 60) for c in work.running)
    return f"; about {left / jobs:.0f} min left" if work.waiting or work.running else ""


def _end(work: Work) -> None:
    """Ends the cells at work, each by its own process id; they can be resumed."""
    if not work.running:
        return
    with deaf():
        for child in work.running:
            child.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for child in work.running:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            _record(child, work.out / child.cell.name, "interrupted")
    names = ", ".join(child.cell.name for child in work.running)
    print(f"ended: {names}; the same command goes on with them", file=sys.stderr)


def _summary(work: Work, rows: Sequence[Mapping[str, Any]]) -> int:
    """The table of the cells, and what is missing or doubtful, by name."""
    lines = []
    for cell in work.chosen:
        folder = work.out / cell.name
        if work.outcome[cell.name] in GOOD:
            val, test = _dice(folder, wanted(cell, work.study.config, work.out), 3)
            lines.append((cell.name, val, test, f"{minutes(folder):.1f}"))
        else:
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
    return 0 if set(work.outcome.values()) <= set(GOOD) else 1
