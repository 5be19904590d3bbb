"""OpenKBP as its repository publishes it: ``*-pats/pt_N/ct.csv``, ``voxel_dimensions.csv``, masks.

A CSV file lists the non-zero voxels of a 128 x 128 x 128 grid: an index in C order of (row, column,
slice), and a value (none in masks). Row grows to posterior, column to the patient's left, slice to
inferior. Volumes come out (z, y, x) with z flipped, so that the direction is the identity in LPS;
voxel (0, 0, 0) is at (0, 0, 0) mm.

Babier et al., "OpenKBP: The open-access knowledge-based planning grand challenge and dataset",
Medical Physics 48, 5549-5561, 2021. MIT licence.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.archives.case_folders import CaseFolder, is_file, walk
from core.archives.possible_grid import SPACING_LIMITS_MM
from core.data.geometry import Geometry
from core.errors import CaseError

IMAGE, SPACING = "ct.csv", "voxel_dimensions.csv"
SIDE = 128
AIR_HU = -1000
CORD_LIMIT_ML = 60.0
_NO_STRUCTURES = {IMAGE, SPACING, "dose.csv", "possible_dose_mask.csv"}


def find(root: Path) -> list[CaseFolder]:
    """Lists the patient folders below `root` (``provided-data``, above or below); opens no file."""
    found = []
    for folder, subfolders, files in walk(root):
        if IMAGE not in files:
            continue
        subfolders.clear()
        images = tuple(folder / name for name in (IMAGE, SPACING))
        structures = [n for n in files if n.endswith(".csv") and n not in _NO_STRUCTURES]
        found.append(CaseFolder(folder, images, tuple(folder / name for name in structures)))
    return found


def read_ct(files: tuple[Path, ...]) -> tuple[npt.NDArray[np.int16], Geometry]:
    """Reads the CT of a patient: HU = clip(value, 0, 4095) - 1000; absent voxels are air.

    Args:
        files: ``ct.csv`` and ``voxel_dimensions.csv``.

    Returns:
        HU (128, 128, 128) as (Z, Y, X), and the grid.

    Raises:
        CaseError: ``E_IMAGE_MISSING``, ``E_IMAGE_UNREADABLE``, ``E_IMAGE_GEOMETRY``.
    """
    table = _table(files[0], "E_IMAGE_UNREADABLE", columns=(0, 1))
    index = _index(table[:, 0], files[0], "E_IMAGE_UNREADABLE")
    stored = np.zeros(SIDE**3, dtype=np.int16)
    stored[index] = np.rint(np.clip(table[:, 1], 0, 4095)).astype(np.int16)
    return _upright(stored + np.int16(AIR_HU)), Geometry((SIDE,) * 3, _spacing_mm(files[1]))


def read_mask(
    path: Path, image: npt.NDArray[Any], geometry: Geometry, name: str = ""
) -> tuple[npt.NDArray[np.bool_], str]:
    """Reads the mask of one structure. Voxels in slices without CT are cut.

    Args:
        path: the structure's file.
        image: the patient's CT (Z, Y, X) from `read_ct`.
        geometry: its grid.
        name: not used here; a file holds one structure.

    Returns:
        The mask (Z, Y, X), which may be empty, and what was cut ("" where nothing was).

    Raises:
        CaseError: ``E_LABEL_UNREADABLE``; ``E_LABEL_VALUES`` for a spinal cord above 60 mL (in some
            patients of the source it is the whole body).
    """
    table = _table(path, "E_LABEL_UNREADABLE", columns=(0,))
    flat = np.zeros(SIDE**3, dtype=np.bool_)
    flat[_index(table[:, 0], path, "E_LABEL_UNREADABLE")] = True
    mask = _upright(flat)
    scanned = (image > AIR_HU).any(axis=(1, 2))
    cut = int(mask[~scanned].sum())
    mask[~scanned] = False
    volume_ml = float(mask.sum()) * geometry.voxel_ml()
    if path.stem == "SpinalCord" and volume_ml > CORD_LIMIT_ML:
        problem = f"{volume_ml:.0f} mL, more than the {CORD_LIMIT_ML:g} mL of any spinal cord"
        remedy = "nothing to do; the source is known to hold such masks"
        raise CaseError("E_LABEL_VALUES", "structure", path.name, remedy, problem=problem)
    return mask, f"{cut} voxels lie in slices without CT" if cut else ""


def _upright(flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(row, column, slice) in C order -> (Z, Y, X), z up."""
    volume = flat.reshape(SIDE, SIDE, SIDE).transpose(2, 0, 1)[::-1]
    return np.ascontiguousarray(volume)


def _table(path: Path, code: str, columns: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """The given columns of a CSV file with one header line, as (rows, columns)."""
    field = "image" if code.startswith("E_IMAGE") else "structure"
    if not is_file(path):
        missing = code.replace("UNREADABLE", "MISSING")
        raise CaseError(missing, field, path.name, "download it again", problem="no such file")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "loadtxt: input contained no data")
            table = np.loadtxt(path, delimiter=",", skiprows=1, usecols=columns, ndmin=2)
    except (ValueError, IndexError, OSError) as error:
        remedy = "download the file again"
        raise CaseError(code, field, path.name, remedy, problem=str(error)) from error
    if not np.isfinite(table).all():
        problem = "values that are no numbers"
        raise CaseError(code, field, path.name, "download the file again", problem=problem)
    return table.reshape(-1, len(columns))


def _index(values: npt.NDArray[np.float64], path: Path, code: str) -> npt.NDArray[np.int64]:
    index = values.astype(np.int64)
    if index.size and (index.min() < 0 or index.max() >= SIDE**3 or (index != values).any()):
        field = "image" if code.startswith("E_IMAGE") else "structure"
        problem = f"indices outside 0 to {SIDE**3 - 1}"
        raise CaseError(code, field, path.name, "download the file again", problem=problem)
    return index


def _spacing_mm(path: Path) -> tuple[float, float, float]:
    """`voxel_dimensions.csv` is (row, column, slice), one a line, without a header."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        code = "E_IMAGE_MISSING" if missing else "E_IMAGE_UNREADABLE"
        problem = "no such file" if missing else f"it cannot be read: {error.strerror}"
        raise CaseError(code, "image", path.name, "download it again", problem=problem) from error
    low, high = SPACING_LIMITS_MM
    try:
        row, column, slice_ = (float(word) for word in text.replace(",", " ").split())
    except ValueError:
        row = column = slice_ = float("nan")
    if not all(low <= mm <= high for mm in (row, column, slice_)):
        problem = f"reads {text.strip()[:60]!r}"
        remedy = f"give three spacings of {low} to {high} mm"
        raise CaseError("E_IMAGE_GEOMETRY", "image", path.name, remedy, problem=problem)
    return (slice_, row, column)
