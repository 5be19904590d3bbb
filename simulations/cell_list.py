"""`hnfed grid --list`: the cells of a study, how far each has come, and where it is."""

from __future__ import annotations

import fcntl
import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path

from core.errors import UserError
from core.text import aligned, shown
from simulations.cell import Wanted, state, wanted
from simulations.choice import NOT_CHOSEN, dropped
from simulations.places import local, on_slurm
from simulations.places.place import read_note
from simulations.study import Cell, Study, read_study
from simulations.sweep_tables import count_cells

LOCK = ".lock"  # of the folder of the cells, held by the grid that works there


def asked_of(
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
    """Prints the cells of a study, how far each has come and where it is; runs nothing.

    Arguments as for `simulations.sweep.grid`.

    Returns:
        ``cell``, ``phases``, ``state`` and ``where`` of each.
    """
    read, out, chosen, wishes = asked_of(study, overrides, out, only)
    rows = []
    places = whereabouts(out, [cell.name for cell in chosen])
    for cell in chosen:
        wish = wishes[cell.name]
        try:
            found = state(cell, out / cell.name, wish)
        except UserError as error:
            found = f"refused: {error.problem}"
        if found in ("waits", "new") and (lost := dropped(cell, read, out)) is not False:
            found = NOT_CHOSEN if lost else f"waits for the choice of {read.choice}"
        elif found == "waits":
            found = f"waits for {', '.join(cell.needs)}"
        rows.append({"cell": cell.name, "phases": wish.phases, "state": found})
        rows[-1]["where"] = "" if found == "done" else places[cell.name]
    titles = ("cell", "phases: rounds x epochs", "state", "where")
    head = titles if any(row["where"] for row in rows) else titles[:3]
    lines = [tuple(row.values())[: len(head)] for row in rows]
    print(aligned([head, *lines], words=len(head)))
    done = sum(row["state"] == "done" for row in rows)
    print(f"{count_cells(len(rows))}, {done} done, in {out}")
    return rows


def whereabouts(out: Path, names: Sequence[str]) -> dict[str, str]:
    """Where cells are, in words; "" for those that are nowhere.

    Args:
        out: folder of the cells.
        names: of the cells.
    """
    notes = {name: read_note(out, name, "grid") for name in names}
    of_slurm = {
        n: str(note.get("job")) for n, note in notes.items() if note.get("place") == "slurm"
    }
    queued = (on_slurm.jobs_of(set(of_slurm.values())) if of_slurm else None) or {}
    busy = _held(out)
    found = {}
    for name, note in notes.items():
        place, words = note.get("place"), ""
        if name in of_slurm:
            job = queued.get(of_slurm[name])
            if job is not None and job.state not in on_slurm.OVER:
                words = f"Slurm's job {of_slurm[name]}: {job.words()}"
        elif place == local.NAME and busy:
            words = "this machine"
        elif place == "ray" and busy:
            node = read_note(out, name, "node")
            of_now = node.get("attempt") == note.get("attempt")
            words = f"Ray at {note.get('address')}: "
            words += f"running on {node.get('node')}" if of_now else "waits for room on a node"
        found[name] = shown(words, 200)
    return found


def _held(out: Path) -> bool:
    """Whether a grid, or a cell that outlives it, works in a folder."""
    try:
        lock = os.open(out / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
