"""Case folders of an archive: what the readers find, and the walk that finds it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import Finding, plain_text

NO_RIGHT = "give the account that runs hnfed the right to read it"
# Folders that file systems make; on a disk of its own they lie beside the archive.
OF_THE_SYSTEM = frozenset({"lost+found", "$RECYCLE.BIN", "System Volume Information"})


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
        return plain_text(self.case or self.folder.name)

    @property
    def structure_names(self) -> tuple[str, ...]:
        """The names by which the structures are recognised."""
        return self.names or tuple(plain_text(path.stem) for path in self.structures)

    def place(self, root: Path) -> str:
        """Path of the case below `root`, with slashes; what ``cases.csv`` may give as `path`."""
        place = self.folder / self.case if self.case else self.folder
        return plain_text(place.relative_to(root).as_posix())


def walk(
    root: Path, refused: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yields (folder, subfolders, files) top down, each real folder once, in sorted order.

    Hidden names are left out, what a file system keeps for itself (`OF_THE_SYSTEM`), and any run
    folder (it holds a ``journal.jsonl``): its predictions are no archive. Links are followed. The
    caller may empty `subfolders` to go no deeper.

    Args:
        root: where to start.
        refused: called with the error of each folder that cannot be listed.
    """
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, onerror=refused, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or "journal.jsonl" in files:
            subfolders.clear()
            continue
        seen.add(real)
        kept = (n for n in subfolders if not n.startswith(".") and n not in OF_THE_SYSTEM)
        subfolders[:] = sorted(kept)
        yield Path(folder), subfolders, sorted(name for name in files if not name.startswith("."))


def unreadable(root: Path) -> list[tuple[Path, str]]:
    """Folders below `root`, itself included, that cannot be listed, and why, in sorted order."""
    found: dict[Path, str] = {}

    def note(error: OSError) -> None:
        found[Path(error.filename)] = error.strerror or type(error).__name__

    for _ in walk(root, note):
        pass
    return sorted(found.items())


def refused(place: Path, why: str, folder: Path) -> CaseFolder:
    """A case folder that says that a file or folder cannot be read.

    Args:
        place: what cannot be read.
        why: the operating system's word.
        folder: of the case.
    """
    message = f"'{plain_text(place.name)}' cannot be read: {why}; nothing of what it holds is used"
    finding = Finding("E_NOT_READABLE", "error", "", "", message, NO_RIGHT)
    return CaseFolder(folder, (), (), remarks=(finding,))


def files_in(folder: Path) -> list[Path]:
    """Visible files of a folder, sorted by name; none where it is no folder, or not to be read."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [folder / n for n in names if not n.startswith(".") and is_file(folder / n)]


def is_file(path: Path) -> bool:
    """`Path.is_file`, False too where the folder does not let one see."""
    try:
        return path.is_file()
    except OSError:
        return False
