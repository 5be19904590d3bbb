"""A case in memory: voxels, where they lie, which organs are annotated. Files by SimpleITK.

Arrays are (Z, Y, X). Spacing is (z, y, x) in mm; origin and direction are as SimpleITK gives them
(x, y, z; LPS).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from core.data import metaimage, nifti, nrrd
from core.data.folders import NO_RIGHT
from core.data.plain_path import is_text, plain
from core.errors import CaseError, as_utf8

_READER: Any = sitk.ImageFileReader
SPACING_LIMITS_MM = (0.05, 20.0)
LARGEST_MM, FARTHEST_MM = 3000.0, 1e6
# Resampled label maps hold 0.99999994 for 1: this near to a whole number is that number.
NEARLY_WHOLE = 1e-3
_IMAGE_IO = {
    ".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO",
}  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """Where a grid of voxels lies in the patient.

    Attributes:
        size: voxels along (z, y, x).
        spacing_mm: distance of voxel centres along (z, y, x).
        origin_mm: centre of voxel (0, 0, 0), as (x, y, z) in LPS.
        direction: 3 x 3 matrix, row by row; its columns are where the x, y and z index point.
    """

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    @staticmethod
    def of_sitk(image: Any) -> Geometry:
        """Reads the geometry of a three-dimensional `SimpleITK.Image`."""
        assert image.GetDimension() == 3
        x, y, z = image.GetSize()
        dx, dy, dz = image.GetSpacing()
        ox, oy, oz = image.GetOrigin()
        return Geometry((z, y, x), (dz, dy, dx), (ox, oy, oz), tuple(image.GetDirection()))

    @staticmethod
    def of_json(value: Mapping[str, Any]) -> Geometry:
        """The inverse of `as_json`."""
        z, y, x = (int(v) for v in value["size"])
        dz, dy, dx = (float(v) for v in value["spacing_mm"])
        ox, oy, oz = (float(v) for v in value["origin_mm"])
        direction = tuple(float(v) for v in value["direction"])
        return Geometry((z, y, x), (dz, dy, dx), (ox, oy, oz), direction)

    def as_json(self) -> dict[str, list[float]]:
        """The four fields as lists, for a JSON file; floats survive the round trip exactly."""
        return {
            "size": list(self.size),
            "spacing_mm": list(self.spacing_mm),
            "origin_mm": list(self.origin_mm),
            "direction": list(self.direction),
        }

    def to_sitk(self, array: npt.NDArray[Any]) -> Any:
        """Makes a `SimpleITK.Image` of an array (Z, Y, X) on this grid; bool becomes uint8."""
        assert array.shape == self.size, (array.shape, self.size)
        voxels = array.astype(np.uint8) if array.dtype == np.bool_ else array
        image: Any = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
        image.SetSpacing(self.spacing_mm[::-1])
        image.SetOrigin(self.origin_mm)
        image.SetDirection(self.direction)
        return image

    def diagonal_mm(self) -> float:
        """Length of the grid's space diagonal in mm, voxels counted whole."""
        return math.hypot(*(n * s for n, s in zip(self.size, self.spacing_mm, strict=True)))

    def voxel_ml(self) -> float:
        """Volume of one voxel in mL."""
        return math.prod(self.spacing_mm) / 1000.0

    def close_to(self, other: Geometry, tol: float = 0.01) -> bool:
        """True where both are the same grid of the same patient, to rounding.

        A difference in spacing or direction counts as far as it moves voxels: the corners of the
        two grids may lie apart by at most `tol` times the smallest edge of this grid's voxels.

        Args:
            other: the grid to compare with.
            tol: allowed distance, as a fraction of a voxel's smallest edge.
        """
        if self.size != other.size:
            return False
        distance = np.linalg.norm(self._corners_mm() - other._corners_mm(), axis=0).max()
        return bool(distance <= tol * min(self.spacing_mm))

    def _corners_mm(self) -> npt.NDArray[np.float64]:
        """The eight corner voxels' centres (3, 8), x, y, z; a flat axis counts as two voxels."""
        last = np.maximum(np.array(self.size[::-1], dtype=np.float64) - 1.0, 1.0)
        index = np.indices((2, 2, 2)).reshape(3, -1) * last[:, None]
        matrix = np.array(self.direction).reshape(3, 3) * np.array(self.spacing_mm[::-1])
        corners: npt.NDArray[np.float64] = matrix @ index + np.array(self.origin_mm)[:, None]
        return corners


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
    array, geometry = _read(path)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        problem = f"{int(array.size - np.isfinite(array).sum())} voxels are NaN or infinite"
        remedy = "export it again; outside of the field of view write air (-1000)"
        raise CaseError("E_IMAGE_VALUES", "image", path, remedy, problem=problem)
    return narrow(array), geometry


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


def _read(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    """Voxels as stored, and their grid; the header is looked at before anything is unpacked."""
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


def require_possible(geometry: Geometry, source: Path | str) -> None:
    """Requires a grid that a CT can have.

    Args:
        geometry: the grid.
        source: what it was read from, for the message.

    Raises:
        CaseError: ``E_IMAGE_GEOMETRY``: spacing, direction, extent or origin cannot be.
    """
    low, high = SPACING_LIMITS_MM
    matrix = np.array(geometry.direction).reshape(3, 3)
    if not all(low <= s <= high for s in geometry.spacing_mm):
        problem = f"spacing (z, y, x) is {geometry.spacing_mm} mm"
        remedy = f"correct the spacing; {low} to {high} mm are read"
    elif not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-3):
        problem = f"direction {geometry.direction} is no rotation"
        remedy = "correct the direction matrix: its columns must be orthonormal"
    elif max(n * s for n, s in zip(geometry.size, geometry.spacing_mm, strict=True)) > LARGEST_MM:
        problem = f"size {geometry.size} at spacing {geometry.spacing_mm} mm (z, y, x)"
        remedy = f"correct the spacing; images of up to {LARGEST_MM:g} mm are read"
    elif not all(abs(v) <= FARTHEST_MM for v in geometry.origin_mm):
        problem, remedy = f"origin {geometry.origin_mm}", "correct the origin"
    else:
        return
    raise CaseError("E_IMAGE_GEOMETRY", "image", source, remedy, problem=problem)


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
    stem = as_utf8(path.name.removesuffix(suffix))
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
