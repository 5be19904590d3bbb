"""Words of an archive that could name a patient: ids, folders, files, names of structures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from core.archives.archive import Archive, CaseRef
from core.errors import plain_text
from core.organs.vocabulary import BUILT_IN

HARMLESS = {"img.nrrd", "img", "ct.csv", "ct", "structures", "imagesTr", "labelsTr", *BUILT_IN}
SHORTEST = 3


def words_of(archive: Archive, ref: CaseRef) -> set[str]:
    """Id, patient, paths and names of one case, and the archive's own folder.

    Names of one or two characters are left out: they would be found everywhere.
    """
    words = {str(archive.root), archive.root.name, ref.case, ref.patient or "", *ref.names.values()}
    for path in (*ref.files, *ref.structures.values()):
        words |= {str(path), *_parts(path, archive.root)}
    words = {plain_text(word) for word in words}
    return {word for word in words if len(word) >= SHORTEST} - HARMLESS - set(ref.structures)


def _parts(path: Path, root: Path) -> Iterable[str]:
    below = path.relative_to(root) if path.is_relative_to(root) else path
    for part in below.parts:
        yield part
        yield part.split(".")[0]


def replaced(text: str, words: Iterable[str], mark: Callable[[str], str]) -> str:
    """The text with each of the words, where it stands alone, as `mark` renders it."""
    ordered = sorted(words, key=len, reverse=True)
    if not ordered:
        return text
    pattern = rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, ordered))})(?![A-Za-z0-9])"
    return re.sub(pattern, lambda match: mark(match[0]), text)
