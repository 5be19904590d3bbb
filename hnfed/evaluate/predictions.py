"""Contours that some tool has already drawn: where they lie in a folder, read one case at a time.

Layouts: ``CASE/NAME.nrrd`` (or NIfTI; also below ``CASE/structures`` or ``CASE/segmentations``);
a label map ``CASE.nii.gz`` (or ``CASE/CASE.nii.gz``) with its names in it or in ``labels.json`` or
nnU-Net's ``dataset.json``; ``CASE.seg.nrrd``; an RTSTRUCT or DICOM SEG, as ``CASE.dcm`` or in
``CASE/``; the case folders of any archive format, at any depth; and, of one case, the folder's own
files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.archives.dicom.header import read_header
from core.archives.formats import openkbp, pddca
from core.archives.name_matching import assign, match, matcher
from core.data.geometry import Geometry
from core.errors import CaseError, UserError
from core.organs.vocabulary import Organ
from hnfed.evaluate.prediction_sources import (
    LABEL_FILES,
    NAMED,
    Source,
    label_table,
    read_source,
    structures_in,
)

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class Predictions:
    """What a folder of predictions holds for the chosen cases; no voxel was read yet.

    Attributes:
        files: per case, where each organ stands.
        damaged: cases of which a file cannot be read, with what is wrong.
        organs: all organs that the tool knows, in the order of the numbers or of the names.
        absent: chosen cases without any file.
        unknown: names of structures that mean no known organ.
    """

    files: Mapping[str, Mapping[str, Source]]
    damaged: Mapping[str, CaseError]
    organs: tuple[str, ...]
    absent: tuple[str, ...]
    unknown: tuple[str, ...]


def stem_of(path: Path) -> str:
    """File name without its image suffix (``.nii.gz`` counts as one)."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def is_image(path: Path) -> bool:
    """True for a visible file with the suffix of an image."""
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES)


def find_predictions(
    root: Path,
    cases: Sequence[str],
    vocab: Mapping[str, Organ],
    organs: Sequence[str] | None = None,
) -> Predictions:
    """Lists the predictions of `cases` below `root`.

    Args:
        root: folder of another tool's results, or OUTPUT of `hnfed predict`.
        cases: case ids as in the archive; the last part of an id with slashes will do.
        vocab: organs and spellings by which structures are recognised.
        organs: numbers 1, 2, ... of label maps, where no file says so.

    Raises:
        UserError: no such folder, nothing in it for any case, or label maps of unknown numbers.
    """
    if not root.is_dir():
        raise UserError("--pred", root, "name the folder that holds the predictions")
    look = _Look(root, vocab, organs)
    deeper = _archive_folders(root)
    found: dict[str, Mapping[str, Source]] = {}
    damaged: dict[str, CaseError] = {}
    for case in cases:
        try:
            files = _of_case(look, case)
        except CaseError as error:
            damaged[case], found[case] = error, {}
            continue
        if not files and case in deeper:
            files = look.by_organ({stem_of(p): Source(p) for p in deeper[case]})
        if not files and len(cases) == 1:
            files = look.in_folder(root)
        if files:
            found[case] = files
    if not found:
        raise UserError(
            "--pred",
            root,
            f"name the results by case: {cases[0]}/NAME.nrrd, {cases[0]}.nii.gz, {cases[0]}/RS.dcm",
            problem=f"no prediction for any of {len(cases)} cases",
        )
    named = dict.fromkeys([*look.numbered, *sorted({o for f in found.values() for o in f})])
    absent = tuple(case for case in cases if case not in found)
    return Predictions(found, damaged, tuple(named), absent, tuple(sorted(look.unknown)))


def read_prediction(
    predictions: Predictions, case: str, image: npt.NDArray[Any], geometry: Geometry
) -> dict[str, npt.NDArray[np.bool_]]:
    """Reads the masks of one case; an organ without a file, or without a voxel, is left out.

    Args:
        predictions: from `find_predictions`.
        case: case id.
        image: the CT (Z, Y, X).
        geometry: the CT's grid, on which the masks must lie, in whatever order of axes.

    Raises:
        CaseError: ``E_PREDICTION_UNREADABLE``, a file that cannot be read;
            ``E_PREDICTION_GRID``, one that lies on another grid.
    """
    if error := predictions.damaged.get(case):
        raise CaseError(
            "E_PREDICTION_UNREADABLE", "--pred", error.value, error.remedy, problem=error.problem
        ) from error
    masks = {
        organ: read_source(source, image, geometry)
        for organ, source in predictions.files.get(case, {}).items()
    }
    return {organ: mask for organ, mask in masks.items() if mask.any()}


class _Look:
    """Finds structures in files and folders, and remembers the names that mean no organ."""

    def __init__(
        self, root: Path, vocab: Mapping[str, Organ], organs: Sequence[str] | None
    ) -> None:
        self.root, self.vocab, self.given = root, vocab, organs
        self.unknown: set[str] = set()
        self.numbered: dict[str, tuple[int, ...]] = {}

    def in_file(self, path: Path) -> dict[str, Source]:
        """Organs of a file of many structures; without names in it, by the table beside it."""
        named = structures_in(path)
        if named:
            return self.by_organ(named)
        if not is_image(path):
            return {}
        self.numbered = self.numbered or self._labels()
        return {organ: Source(path, values=n) for organ, n in self.numbered.items()}

    def in_folder(self, folder: Path) -> dict[str, Source]:
        """Organs of a folder with a file each, or with one RTSTRUCT or DICOM SEG."""
        if not folder.is_dir():
            return {}
        paths = sorted(folder.iterdir())
        images = [p for p in paths if is_image(p) and stem_of(p) not in ("img", "ct")]
        if images:
            return self.by_organ({stem_of(path): Source(path) for path in images})
        sets = [p for p in paths if _holds_structures(p)]
        sets.sort(key=lambda path: path.name != "RS.dcm")
        return self.in_file(sets[0]) if sets else {}

    def by_organ(self, named: Mapping[str, Source]) -> dict[str, Source]:
        """Where each organ stands, of structures by name."""
        names = list(named)
        found = assign(names, matcher(self.vocab))
        for organ, places in found.doubled.items():
            first, second = (names[i] for i in places[:2])
            problem = f"{named[first].path.name if not named[first].name else first} is {organ} too"
            raise UserError("--pred", named[second].path, "keep one file an organ", problem=problem)
        self.unknown.update(found.unknown, (name for _, name in found.passed_over))
        return {organ: named[names[i]] for organ, i in found.organs.items()}

    def _labels(self) -> dict[str, tuple[int, ...]]:
        """Organ -> voxel values, from the file beside the label maps or the order of the organs."""
        files = (self.root / name for name in LABEL_FILES)
        path = next((path for path in files if path.is_file()), None)
        if path is None:
            if self.given is None:
                raise UserError("--pred", self.root, f"{NAMED}, or give --organs in their order")
            return {organ: (i,) for i, organ in enumerate(self.given, start=1)}
        labels: dict[str, tuple[int, ...]] = {}
        for name, values in label_table(path).items():
            if name.lower() == "background":
                continue
            organ = match(name, self.vocab).organ
            if organ is None:
                self.unknown.add(name)
            else:
                labels[organ] = values
        return labels


def _of_case(look: _Look, case: str) -> dict[str, Source]:
    """Where a case's organs stand: a file of its name, else a folder of its name."""
    for name in dict.fromkeys((case, case.rsplit("/", 1)[-1])):
        for suffix in (*SUFFIXES, ".seg.nrrd", ".dcm"):
            for path in (look.root / f"{name}{suffix}", look.root / name / f"{name}{suffix}"):
                if path.is_file():
                    return look.in_file(path)
        for part in ("structures", "segmentations", ""):
            if files := look.in_folder(look.root / name / part):
                return files
    return {}


def _holds_structures(path: Path) -> bool:
    """Whether a file is an RTSTRUCT or a DICOM SEG, or one that is damaged."""
    if not path.is_file() or is_image(path) or path.suffix in (".csv", ".json", ".txt"):
        return False
    header = read_header(path)
    if header is None:
        return path.suffix.lower() == ".dcm"
    return header["Modality"] in ("RTSTRUCT", "SEG")


def _archive_folders(root: Path) -> dict[str, tuple[Path, ...]]:
    """Structures of each case folder that an archive reader knows, by folder name and by path."""
    folders = [f for reader in (pddca, openkbp) for f in reader.find(root) if f.structures]
    names = Counter(f.folder.name for f in folders)
    table = {f.folder.relative_to(root).as_posix().replace("/", "__"): f for f in folders}
    table |= {f.folder.name: f for f in folders if names[f.folder.name] == 1}
    return {case: f.structures for case, f in table.items()}
