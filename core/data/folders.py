"""Case folders of an archive: what the readers find, and the walk that finds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import Finding


@dataclass(frozen=True)
class CaseFolder:
    """One case as its folder shows it; nothing was opened.

    Attributes:
        folder: the case's folder.
        files: what the image is read from, the image itself first; empty where it is missing.
        structures: the file of each structure, sorted by name.
        names: the name of each structure, where one file holds many; empty where a structure is
            called by its file.
        case: the case's name; "" where it is called by its folder.
        patient: the same text for all cases of one patient, where the files say so; else "".
        remarks: what was chosen or passed over; `case` in them is not filled in yet.
    """

    folder: Path
    files: tuple[Path, ...]
    structures: tuple[Path, ...]
    names: tuple[str, ...] = ()
    case: str = ""
    patient: str = ""
    remarks: tuple[Finding, ...] = ()

    @property
    def own_name(self) -> str:
        """What the case is called inside the archive."""
        return self.case or self.folder.name

    @property
    def structure_names(self) -> tuple[str, ...]:
        """The names by which the structures are recognised."""
        return self.names or tuple(path.stem for path in self.structures)

    def place(self, root: Path) -> str:
        """Path of the case below `root`, with slashes; what ``cases.csv`` may give as `path`."""
        place = self.folder / self.case if self.case else self.folder
        return place.relative_to(root).as_posix()


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yields (folder, subfolders, files) top down, each real folder once, in sorted order.

    Hidden names are left out, and so is any run folder (it holds a ``journal.jsonl``): its
    predictions are no archive. Links are followed. The caller may empty `subfolders` to go no
    deeper.

    Args:
        root: where to start.
    """
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or "journal.jsonl" in files:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(folder), subfolders, sorted(name for name in files if not name.startswith("."))
