"""PDDCA layout (MICCAI 2015): ``CASE/img.nrrd`` and ``CASE/structures/NAME.nrrd``, at any depth.

Raudaschl et al., "Evaluation of segmentation methods on head and neck CT: Auto-segmentation
challenge 2015", Medical Physics 44, 2020-2036, 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.archives.case_folders import CaseFolder, files_in, walk
from core.archives.images.volume import read_image, read_on_grid
from core.data.geometry import Geometry
from core.errors import CaseError

IMAGE, STRUCTURES = "img.nrrd", "structures"


def find(root: Path) -> list[CaseFolder]:
    """Lists the case folders below `root`, itself included; opens no file.

    A folder with structures but no image is listed with no files.
    """
    found = []
    for folder, subfolders, files in walk(root):
        below, image = _called(STRUCTURES, subfolders), _called(IMAGE, files)
        held = files_in(folder / below) if below else ()
        structures = tuple(path for path in held if path.suffix.lower() == ".nrrd")
        if image or structures:
            subfolders.clear()
            found.append(CaseFolder(folder, (folder / image,) if image else (), structures))
    return found


def _called(wanted: str, names: Sequence[str]) -> str:
    """The name itself, else the one that differs in capital letters alone; "" without one."""
    if wanted in names:
        return wanted
    alike = [name for name in names if name.lower() == wanted]
    return alike[0] if len(alike) == 1 else ""


def read_ct(files: tuple[Path, ...]) -> tuple[npt.NDArray[Any], Geometry]:
    """Reads the CT of a case.

    Args:
        files: of its `CaseFolder`.

    Returns:
        HU (Z, Y, X) as int16 or float32, and the grid.

    Raises:
        CaseError: as `core.archives.images.volume.read_image`.
    """
    return read_image(files[0])


def read_mask(
    path: Path, image: npt.NDArray[Any], geometry: Geometry, name: str = ""
) -> tuple[npt.NDArray[np.bool_], str]:
    """Reads the mask of one structure and requires it to lie on the image's grid.

    Args:
        path: the structure's file: 0 and one positive value.
        image: the CT (Z, Y, X); not used here.
        geometry: the CT's grid.
        name: not used here; a file holds one structure.

    Returns:
        The mask (Z, Y, X), which may be empty, and a remark, always "" here.

    Raises:
        CaseError: ``E_LABEL_UNREADABLE``, ``E_LABEL_GRID``, ``E_LABEL_VALUES``.
    """
    array = read_on_grid(path, geometry)
    inside = array > 0
    top = array.max()
    if array.min() < 0 or inside.all() or bool((array[inside] != top).any()):
        remedy = "write one structure a file: 0 outside, one positive value inside"
        shown = ", ".join(f"{v:g}" for v in np.unique(array)[:6])
        problem = f"values {shown}"
        raise CaseError("E_LABEL_VALUES", "structure", path.name, remedy, problem=problem)
    return inside, ""
