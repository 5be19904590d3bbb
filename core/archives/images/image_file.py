"""Image files: the header is read strictly first, then the voxels, by us or by SimpleITK."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from core.archives.case_folders import NO_RIGHT
from core.archives.images import metaimage, nifti, nrrd
from core.archives.images.plain_path import is_text, plain
from core.archives.possible_grid import require_possible
from core.data.geometry import Geometry
from core.errors import CaseError

_READER: Any = sitk.ImageFileReader
_IMAGE_IO = {
    ".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO",
}  # fmt: skip


def data_file(path: Path) -> Path | None:
    """The file beside a header (``.nhdr``, ``.mhd``) that holds its voxels, or None."""
    try:
        match path.suffix.lower():
            case ".nrrd" | ".nhdr":
                return nrrd.data_file(path)
            case ".mha" | ".mhd":
                return metaimage.data_file(path)
    except OSError:
        pass
    return None


def read_file(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    """Voxels as stored, and their grid; the header is looked at before anything is unpacked.

    Args:
        path: NRRD, NIfTI or MetaImage, by its name.

    Raises:
        CaseError: as `core.archives.images.volume.read_image`, but for values that are no numbers.
    """
    remedy = "copy or export the file again; NRRD, NIfTI and MetaImage are read"
    try:
        if not path.is_file():
            remedy = "give the path of an existing file"
            raise CaseError("E_IMAGE_MISSING", "image", path, remedy, problem="no such file")
        if path.name.lower().endswith((".nii", ".nii.gz")):
            return _read_nifti(path, remedy)
        kind = _IMAGE_IO.get(path.suffix.lower())
        if kind is None:
            raise _unreadable(path, "neither NRRD, NIfTI nor MetaImage by its name", remedy)
        problem = nrrd.doubt(path) if kind == "NrrdImageIO" else metaimage.doubt(path)
        if problem:
            raise _unreadable(path, problem, remedy)
        return _read_by_library(path, kind, remedy)
    except OSError as error:
        remedy = NO_RIGHT if isinstance(error, PermissionError) else remedy
        reason = error.strerror or type(error).__name__
        raise _unreadable(path, f"it cannot be read: {reason}", remedy) from error


def _unreadable(path: Path, problem: str, remedy: str) -> CaseError:
    return CaseError("E_IMAGE_UNREADABLE", "image", path, remedy, problem=problem)


def _read_nifti(path: Path, remedy: str) -> tuple[npt.NDArray[Any], Geometry]:
    header, problem = nifti.read_header(path)
    if header is None:
        raise _unreadable(path, problem, remedy)
    _require_volume(header.sizes, 1, path)
    affine, problem = nifti.placement(header)
    if problem:
        remedy = "correct the header, or resample the image onto a rectangular grid"
        raise CaseError("E_IMAGE_GEOMETRY", "image", path, remedy, problem=problem)
    dx, dy, dz = (float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))
    direction = affine[:3, :3] / (dx, dy, dz) + 0.0
    (x, y, z), (ox, oy, oz) = header.sizes, (float(v) for v in affine[:3, 3])
    rows = tuple(float(v) for v in direction.ravel())
    geometry = Geometry((z, y, x), (dz, dy, dx), (ox, oy, oz), rows)
    require_possible(geometry, path)
    array, problem = nifti.read_voxels(path, header)
    if problem:
        raise _unreadable(path, problem, remedy)
    return array, geometry


def _read_by_library(path: Path, kind: str, remedy: str) -> tuple[npt.NDArray[Any], Geometry]:
    """Reads by SimpleITK, and by the one of its readers that the name says."""
    reader: Any = _READER()
    reader.SetImageIO(kind)
    beside = data_file(path)
    try:
        # A header that names its data is read through a link to their folder.
        with plain(path.parent if beside else path) as place:
            if beside and not is_text(beside.relative_to(path.parent) / path.name):
                remedy = "rename the header and its data file in plain letters"
                raise _unreadable(path, "the name of one of its two files is no UTF-8", remedy)
            reader.SetFileName(str(place / path.name if beside else place))
            reader.ReadImageInformation()
            _require_volume(reader.GetSize(), reader.GetNumberOfComponents(), path)
            image = reader.Execute()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        problem = f"truncated, or no image that can be read ({lines[-1][:160] if lines else ''})"
        raise _unreadable(path, problem, remedy) from error
    geometry = Geometry.of_sitk(image)
    require_possible(geometry, path)
    return sitk.GetArrayFromImage(image), geometry


def _require_volume(size: Sequence[int], values: int, path: Path) -> None:
    if len(size) != 3 or values != 1 or min(size) < 2:
        problem = f"{values} values a voxel, size (x, y, z) {tuple(size)}"
        remedy = "give a volume of several slices with one value a voxel"
        raise CaseError("E_IMAGE_SHAPE", "image", path, remedy, problem=problem)
