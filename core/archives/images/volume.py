"""A case in memory: voxels, where they lie, which organs are annotated. Files by SimpleITK.

Arrays are (Z, Y, X). Spacing is (z, y, x) in mm; origin and direction are as SimpleITK gives them
(x, y, z; LPS).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from core.archives.case_folders import NO_RIGHT
from core.archives.images.image_file import read_file
from core.archives.images.plain_path import plain
from core.data.geometry import Geometry
from core.errors import CaseError, plain_text

__all__ = [
    "Volume", "narrow", "read_image", "read_on_grid", "write_image", "write_labelmap",
    "write_mask",
]  # fmt: skip

# Resampled label maps hold 0.99999994 for 1: this near to a whole number is that number.
NEARLY_WHOLE = 1e-3


@dataclass(frozen=True)
class Volume:
    """One case as it was read: the original grid, the original masks.

    Attributes:
        case: case id inside its archive.
        image: int16 or float32 (Z, Y, X) in HU.
        geometry: grid of `image` and of all masks.
        masks: bool (Z, Y, X) by TG-263 name; may overlap, never empty; keys = annotated organs.
    """

    case: str
    image: npt.NDArray[Any]
    geometry: Geometry
    masks: Mapping[str, npt.NDArray[np.bool_]]

    @property
    def annotated(self) -> frozenset[str]:
        """Organs that have a mask. An organ missing here is not known, rather than empty."""
        return frozenset(self.masks)


def read_image(path: Path | str) -> tuple[npt.NDArray[Any], Geometry]:
    """Reads a three-dimensional image with one value a voxel.

    Integers become int16 where all values fit; everything else becomes float32.

    Args:
        path: a file that SimpleITK reads (NRRD, NIfTI, MetaImage).

    Returns:
        Voxels (Z, Y, X), int16 or float32, and their geometry.

    Raises:
        CaseError: ``E_IMAGE_MISSING``; ``E_IMAGE_UNREADABLE`` (truncated, no image);
            ``E_IMAGE_SHAPE`` (not three-dimensional, several values a voxel, flat);
            ``E_IMAGE_GEOMETRY`` (a spacing, direction or origin that cannot be);
            ``E_IMAGE_VALUES`` (NaN or infinite).
    """
    path = Path(path)
    array, geometry = read_file(path)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        problem = f"{int(array.size - np.isfinite(array).sum())} voxels are NaN or infinite"
        remedy = "export it again; outside of the field of view write air (-1000)"
        raise CaseError("E_IMAGE_VALUES", "image", path, remedy, problem=problem)
    return narrow(array), geometry


def read_on_grid(path: Path, geometry: Geometry) -> npt.NDArray[Any]:
    """Reads a mask or label map and requires it to lie on the CT's grid.

    Args:
        path: a file that SimpleITK reads.
        geometry: the CT's grid.

    Returns:
        Voxels (Z, Y, X), int16 or float32; what is nearly a whole number is that number.

    Raises:
        CaseError: ``E_LABEL_UNREADABLE``, ``E_LABEL_GRID``.
    """
    try:
        array, grid = read_image(path)
    except CaseError as error:
        off_grid = error.code in ("E_IMAGE_SHAPE", "E_IMAGE_GEOMETRY")
        code = "E_LABEL_GRID" if off_grid else "E_LABEL_UNREADABLE"
        remedy = "export the structure again, on the CT's grid"
        remedy = error.remedy if error.remedy == NO_RIGHT else remedy
        raise CaseError(code, "structure", path.name, remedy, problem=error.problem) from error
    if not geometry.close_to(grid):
        remedy = "resample or export the structure on the CT's grid"
        problem = f"it lies on another grid: {_difference(geometry, grid)}"
        raise CaseError("E_LABEL_GRID", "structure", path.name, remedy, problem=problem)
    return _whole(array)


def _whole(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A label map with nearly whole numbers as such; others stay, and so does the type."""
    if array.dtype.kind != "f":
        return array
    whole = np.rint(array)
    return np.where(np.abs(array - whole) <= NEARLY_WHOLE, whole, array)


def _difference(image: Geometry, mask: Geometry) -> str:
    """Names what differs most plainly."""
    pairs = (
        ("size (z, y, x)", image.size, mask.size),
        ("spacing (z, y, x) mm", image.spacing_mm, mask.spacing_mm),
        ("direction", image.direction, mask.direction),
        ("origin (x, y, z) mm", image.origin_mm, mask.origin_mm),
    )
    name, wanted, got = next(p for p in pairs if not np.allclose(p[1], p[2], rtol=1e-6, atol=1e-6))
    return f"{name} {tuple(got)} where the CT has {tuple(wanted)}"


def narrow(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """int16 for whole numbers that fit, else float32."""
    bounds = np.iinfo(np.int16)
    whole = array.dtype.kind in "iu"
    if whole and bounds.min <= array.min() and array.max() <= bounds.max:
        return array.astype(np.int16, copy=False)
    return array.astype(np.float32, copy=False)


def write_mask(path: Path | str, mask: npt.NDArray[np.bool_], geometry: Geometry) -> None:
    """Writes a mask as uint8 0/1, compressed; the extension chooses the format.

    Args:
        path: file to write; a half-written file never bears this name.
        mask: bool (Z, Y, X) on the grid `geometry`.
        geometry: where the mask lies.
    """
    write_image(path, mask.astype(np.uint8), geometry)


def write_labelmap(
    path: Path | str,
    labels: npt.NDArray[Any],
    geometry: Geometry,
    fields: Mapping[str, str] | None = None,
) -> None:
    """Writes a label map (Z, Y, X), 0 = background, as uint8 (uint16 above 255 labels).

    Args:
        path: file to write; a half-written file never bears this name.
        labels: whole numbers, 0 or more.
        geometry: where the labels lie.
        fields: further header fields (NRRD).
    """
    top = int(labels.max()) if labels.size else 0
    write_image(path, labels.astype(np.uint8 if top <= 255 else np.uint16), geometry, fields)


def write_image(
    path: Path | str,
    array: npt.NDArray[Any],
    geometry: Geometry,
    fields: Mapping[str, str] | None = None,
) -> None:
    """Writes an image (Z, Y, X) of any number type, compressed, complete or not at all.

    Args:
        path: file to write (``.nrrd``, ``.nii.gz``, ``.mha``); its folder is made where missing.
        array: voxels on the grid `geometry`.
        geometry: where they lie.
        fields: further header fields (NRRD).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    stem = plain_text(path.name.removesuffix(suffix))
    part = path.with_name(f".{stem}.{os.getpid()}.part{suffix}")
    image = geometry.to_sitk(array)
    for key, value in (fields or {}).items():
        image.SetMetaData(key, value)
    try:
        with plain(path.parent) as folder:
            sitk.WriteImage(image, str(folder / part.name), useCompression=True)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
