"""Contours that some tool has already drawn: where they lie in a folder, read one case at a time.

Layouts: ``CASE/NAME.nrrd``, ``CASE/structures/NAME.nrrd``, a label map ``CASE.nii.gz`` (or
``CASE/CASE.nii.gz``) with its numbers in ``labels.json`` or nnU-Net's ``dataset.json``; and the
case folders of any archive format, at any depth.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.anatomy import Organ
from core.data import openkbp, pddca
from core.data.volume import Geometry, read_image
from core.errors import CaseError, UserError
from core.names import assign, match, matcher

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
LABEL_FILES = ("labels.json", "dataset.json")
_NAMED = 'write labels.json beside the label maps: {"Brainstem": 1, "Parotid_L": 2}'


@dataclass(frozen=True)
class Predictions:
    """What a folder of predictions holds for the chosen cases; no voxel was read yet.

    Attributes:
        files: per case, the mask of each organ, or one label map under the key "".
        labels: voxel values of each organ in label maps; an organ may join several values.
        organs: all organs that the tool knows, in the order of the numbers or of the names.
        absent: chosen cases without any file.
        unknown: names of structures that mean no known organ.
    """

    files: Mapping[str, Mapping[str, Path]]
    labels: Mapping[str, tuple[int, ...]]
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
    found: dict[str, dict[str, Path]] = {}
    unknown: set[str] = set()
    deeper = _archive_folders(root)
    for case in cases:
        files = _of_case(root, case, vocab, unknown)
        if not files and case in deeper:
            files = _by_organ(deeper[case], vocab, unknown)
        if files:
            found[case] = files
    if not found:
        raise UserError(
            "--pred",
            root,
            f"name the results by case: {cases[0]}/NAME.nrrd or {cases[0]}.nii.gz",
            problem=f"no prediction for any of {len(cases)} cases",
        )
    labels: dict[str, tuple[int, ...]] = {}
    if any("" in files for files in found.values()):
        labels = _labels(root, vocab, organs, unknown)
    names = dict.fromkeys([*labels, *sorted({o for f in found.values() for o in f if o})])
    absent = tuple(case for case in cases if case not in found)
    return Predictions(found, labels, tuple(names), absent, tuple(sorted(unknown)))


def read_prediction(
    predictions: Predictions, case: str, image: npt.NDArray[Any], geometry: Geometry
) -> dict[str, npt.NDArray[np.bool_]]:
    """Reads the masks of one case; an organ without a file, or without a voxel, is left out.

    Args:
        predictions: from `find_predictions`.
        case: case id.
        image: the CT (Z, Y, X).
        geometry: the CT's grid, on which the masks must lie.

    Raises:
        CaseError: ``E_PREDICTION_UNREADABLE``, a file that cannot be read;
            ``E_PREDICTION_GRID``, one that lies on another grid.
    """
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    for organ, path in predictions.files.get(case, {}).items():
        try:
            if path.suffix == ".csv":
                masks[organ] = openkbp.read_mask(path, image, geometry)[0]
                continue
            array, grid = read_image(path)
        except CaseError as error:
            raise CaseError(
                "E_PREDICTION_UNREADABLE", "--pred", path, error.remedy, problem=error.problem
            ) from error
        if not geometry.close_to(grid, 1e-2):
            raise CaseError(
                "E_PREDICTION_GRID",
                "--pred",
                path,
                "resample the prediction onto the CT's grid",
                problem=f"size {grid.size}, spacing {grid.spacing_mm} mm, origin "
                f"{grid.origin_mm}; the CT has {geometry.size}, {geometry.spacing_mm} mm, "
                f"{geometry.origin_mm} (or another direction)",
            )
        if organ:
            masks[organ] = array > 0
        else:
            values = np.rint(array).astype(np.int64)
            masks |= {o: np.isin(values, n) for o, n in predictions.labels.items()}
    return {organ: mask for organ, mask in masks.items() if mask.any()}


def _of_case(
    root: Path, case: str, vocab: Mapping[str, Organ], unknown: set[str]
) -> dict[str, Path]:
    for name in dict.fromkeys((case, case.rsplit("/", 1)[-1])):
        for suffix in SUFFIXES:
            for path in (root / f"{name}{suffix}", root / name / f"{name}{suffix}"):
                if path.is_file():
                    return {"": path}
        for folder in (root / name / "structures", root / name):
            files = _structures(folder, vocab, unknown)
            if files:
                return files
    return {}


def _archive_folders(root: Path) -> dict[str, tuple[Path, ...]]:
    """Structures of each case folder that an archive reader knows, by folder name and by path."""
    folders = [f for reader in (pddca, openkbp) for f in reader.find(root) if f.structures]
    names = Counter(f.folder.name for f in folders)
    table = {f.folder.relative_to(root).as_posix().replace("/", "__"): f for f in folders}
    table |= {f.folder.name: f for f in folders if names[f.folder.name] == 1}
    return {case: f.structures for case, f in table.items()}


def _structures(folder: Path, vocab: Mapping[str, Organ], unknown: set[str]) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    paths = [p for p in sorted(folder.iterdir()) if is_image(p) and stem_of(p) != "img"]
    return _by_organ(paths, vocab, unknown)


def _by_organ(
    paths: Sequence[Path], vocab: Mapping[str, Organ], unknown: set[str]
) -> dict[str, Path]:
    found = assign([stem_of(path) for path in paths], matcher(vocab))
    for organ, places in found.doubled.items():
        first, second = (paths[i] for i in places[:2])
        problem = f"{first.name} is {organ} too"
        raise UserError("--pred", second, "keep one file an organ", problem=problem)
    unknown.update(found.unknown, (name for _, name in found.passed_over))
    return {organ: paths[i] for organ, i in found.organs.items()}


def _labels(
    root: Path, vocab: Mapping[str, Organ], organs: Sequence[str] | None, unknown: set[str]
) -> dict[str, tuple[int, ...]]:
    """Organ -> voxel values, from the file beside the label maps or from the order of `organs`."""
    path = next((root / name for name in LABEL_FILES if (root / name).is_file()), None)
    if path is None:
        if organs is None:
            raise UserError("--pred", root, f"{_NAMED}, or give --organs in their order")
        return {organ: (i,) for i, organ in enumerate(organs, start=1)}
    labels: dict[str, tuple[int, ...]] = {}
    for name, values in _label_table(path).items():
        if name.lower() == "background":
            continue
        organ = match(name, vocab).organ
        if organ is None:
            unknown.add(name)
        else:
            labels[organ] = values
    return labels


def _label_table(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> values, of ``{NAME: n}``, ``{"labels": {NAME: n or [n, m]}}`` or ``{"n": NAME}``."""
    try:
        table: Any = json.loads(path.read_text(encoding="utf-8"))
        table = table.get("labels", table)
        named: dict[str, tuple[int, ...]] = {}
        for key, value in table.items():
            if isinstance(value, str):
                named[value] = (int(key),)
            else:
                named[key] = tuple(int(v) for v in (value if isinstance(value, list) else [value]))
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            "--pred", path, _NAMED, problem=f"not a table of labels: {error}"
        ) from error
    return named
