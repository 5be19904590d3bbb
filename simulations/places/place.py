"""Where the cells of a study run: what `hnfed grid` asks of a place, and what it hands over."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import private_folder, replace_file
from core.tracking.foreign_run import is_own_file, read_json
from server.run_folder import begun

ROOT = Path(__file__).resolve().parents[2]
NOTES = ".places"  # beside the cells, whose names begin with a letter or digit

Ending = int | str
"""Exit code of a cell, negative for a signal; or the place's words where there is none."""


@dataclass(frozen=True)
class Task:
    """A cell to be run.

    Attributes:
        name: of the cell.
        out: folder of the cells, the same path wherever the cell runs.
        arguments: of `hnfed`, without ``--resume``.
        cpus: that the cell uses at most.
        gpus: that it uses at most; a fraction shares one.
    """

    name: str
    out: Path
    arguments: tuple[str, ...]
    cpus: int
    gpus: float

    @property
    def log(self) -> Path:
        """All that the cell prints, over all its starts."""
        return self.out / f"{self.name}.log"

    def started(self) -> tuple[str, ...]:
        """Arguments for a start at this moment: a run that has begun is gone on with."""
        resume = ("--resume",) if begun(self.out / self.name) else ()
        return (*self.arguments, *resume)


@dataclass(frozen=True)
class Place:
    """What a grid asks of the machine, or the machines, that its cells run on.

    Attributes:
        name: as ``--on`` has it.
        side_by_side: cells at a time, where the user gives no number; None for all that can begin.
        stays: whether cells go on where the grid ends.
        start: starts cells, or takes up those that an earlier grid has left there.
        ended: how a cell that was started has ended; None while it waits or works.
        stop: of a place that does not stay: ends these cells, in order; else says where they are.
    """

    name: str
    side_by_side: int | None
    stays: bool
    start: Callable[[Sequence[Task]], None]
    ended: Callable[[Task], Ending | None]
    stop: Callable[[Sequence[Task]], str]


def command(arguments: Sequence[str]) -> list[str]:
    """Starts `hnfed` with the Python and the sources of this process."""
    return [sys.executable, "-P", "-m", "hnfed.cli.main", *arguments]


def environment() -> dict[str, str]:
    """For `command`: this process's, with the sources on the path."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": paths}


# ---------------------------------------------------------------------------------------- notes


def write_note(task: Task, of: str, content: Mapping[str, Any]) -> None:
    """Keeps where a cell is, beside the cells; each kind of note has one writer at a time.

    Args:
        task: the cell.
        of: ``grid`` for what the grid knows, ``node`` for what the node where it runs knows.
        content: plain values.
    """
    private_folder(task.out / NOTES)
    replace_file(note_path(task.out, task.name, of), json.dumps(content, allow_nan=False))


def read_note(out: Path, name: str, of: str) -> dict[str, Any]:
    """`write_note`'s content; empty where there is none, or nothing that can be read."""
    path = note_path(out, name, of)
    with suppress(OSError, ValueError):
        found = read_json(path) if is_own_file(path, out) else {}
        if isinstance(found, dict):
            return found
    return {}


def forget(task: Task) -> None:
    """Removes what was noted of a cell that has ended."""
    for of in ("grid", "node"):
        note_path(task.out, task.name, of).unlink(missing_ok=True)


def note_path(out: Path, name: str, of: str) -> Path:
    """The file of a note."""
    return out / NOTES / f"{name}.{of}.json"


def no_such(extra: str, name: str) -> UserError:
    """The error where a place needs what is not installed."""
    remedy = f"install it: pip install 'hnfed[{extra}]'"
    return UserError("--on", extra, remedy, problem=f"{name} is not installed")
