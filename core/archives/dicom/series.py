"""A CT series: slices read by GDCM, put in order by where they lie, required to be whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from core.archives.case_folders import is_file
from core.archives.dicom import frames
from core.archives.dicom.place import TAGS, Place, place_of, turned
from core.archives.images.plain_path import plain
from core.archives.possible_grid import require_possible
from core.data.geometry import Geometry
from core.errors import CaseError

# Positions are often written to a tenth of a millimetre.
ROUNDING_MM = 0.06
UNEVEN, TILT_DEGREES, SHOWN = 0.05, 0.1, 4
# A lean of less than this may as well be rounding of the directions.
ROUNDED_DEGREES, ORIENTATION = 1.0, "ImageOrientationPatient (0020,0037)"
REMEDY = "export the series again"
_READER: Any = sitk.ImageFileReader


def read_series(files: Sequence[Path]) -> tuple[npt.NDArray[Any], Geometry]:
    """Reads a CT series; each slice by its own rescale slope and intercept.

    Slices are ordered along the normal of their plane, whatever their names and numbers say. Where
    they lie is what their tags say (`core.archives.dicom.place`), not what GDCM makes of them.

    Args:
        files: one slice each, in any order; or one enhanced multi-frame image.

    Returns:
        HU (Z, Y, X) as int16 or float32, and the grid.

    Raises:
        CaseError: ``E_IMAGE_MISSING``, ``E_IMAGE_UNREADABLE``, ``E_IMAGE_SHAPE`` (one slice only,
            several multi-frame images), ``E_IMAGE_GEOMETRY`` (tags that are none, slices that
            differ, gantry tilt, uneven), ``E_SLICES_MISSING``, ``E_SLICES_DOUBLED``,
            ``E_IMAGE_VALUES``. Each with positions in mm along the normal.
    """
    if len(files) == 1:
        planes, places = frames.read_frames(files[0])
    else:
        planes, places = _read_slices(files)
    if len(places) < 2:
        raise _refused("E_IMAGE_SHAPE", "a series of one slice", "give the whole series")
    return _stacked(planes, places)


def _read_slices(files: Sequence[Path]) -> tuple[npt.NDArray[Any], list[Place]]:
    """The slices in the order of the files; those of another size stay empty."""
    places: list[Place] = []
    voxels = np.empty(0, dtype=np.int16)
    for i, path in enumerate(files):
        plane, place = _read(path)
        if i == 0:
            voxels = np.empty((len(files), *plane.shape), dtype=np.int16)
        places.append(place)
        if plane.shape == voxels.shape[1:]:
            voxels = put(voxels, i, plane)
    return voxels, places


def _stacked(
    voxels: npt.NDArray[Any], places: Sequence[Place]
) -> tuple[npt.NDArray[Any], Geometry]:
    """Planes put in order, and their grid; refuses what is no volume."""
    direction, normal = places[0].direction, places[0].direction[:, 2]
    levels = np.array([float(np.dot(normal, place.origin_mm)) for place in places])
    order = np.argsort(levels, kind="stable")
    levels, places = levels[order], [places[i] for i in order]
    _require_alike(places, levels)
    step = _require_even(levels)
    between = places[-1].origin_mm - places[0].origin_mm
    lean = _angle(between, normal)
    if TILT_DEGREES < lean <= math.degrees(places[0].rounding):
        # The positions say more precisely than the rounded directions where the stack leads.
        direction = turned(direction, between / np.linalg.norm(between))
        normal = direction[:, 2]
        levels = np.array([float(np.dot(normal, place.origin_mm)) for place in places])
        step = _require_even(levels)
    _require_upright(places, levels, normal)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise _refused("E_IMAGE_VALUES", "voxels are NaN or infinite", REMEDY)
    if (np.diff(order) != 1).any():
        voxels = voxels[order]
    (dy, dx), (rows, columns) = places[0].spacing_mm, places[0].shape
    size, spacing = (len(places), rows, columns), (step, dy, dx)
    x, y, z = (float(v) for v in places[0].origin_mm)
    geometry = Geometry(size, spacing, (x, y, z), tuple(float(v) for v in direction.ravel()))
    require_possible(geometry, "series")
    return voxels, geometry


def put(voxels: npt.NDArray[Any], index: int, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Puts a plane into a volume, which becomes float32 where the plane needs it."""
    bounds = np.iinfo(np.int16)
    fits = bounds.min <= plane.min() and plane.max() <= bounds.max
    if fits and plane.dtype.kind == "f":
        fits = np.array_equal(np.rint(plane), plane)
    if voxels.dtype == np.int16 and not fits:
        voxels = voxels.astype(np.float32)
    voxels[index] = plane
    return voxels


def read_plane(path: Path) -> npt.NDArray[Any]:
    """The pixels (Y, X) of one single-frame image in HU, wherever it lies.

    Raises:
        CaseError: ``E_IMAGE_UNREADABLE``, ``E_IMAGE_SHAPE``.
    """
    plane: npt.NDArray[Any] = sitk.GetArrayFromImage(_image(path)[0])[0]
    return plane


def _read(path: Path) -> tuple[npt.NDArray[Any], Place]:
    """One slice (Y, X) in HU, and where its tags say that it lies."""
    image, told = _image(path)
    width, height, _ = image.GetSize()
    place = place_of(told, (height, width), path.name)
    plane: npt.NDArray[Any] = sitk.GetArrayFromImage(image)[0]
    return plane, place


def _image(path: Path) -> tuple[Any, dict[str, str | None]]:
    """One slice as an image of SimpleITK, and the tags that say where it lies, as they stand."""
    if not is_file(path):
        raise CaseError("E_IMAGE_MISSING", "slice", path.name, REMEDY, problem="no such file")
    reader: Any = _READER()
    reader.SetImageIO("GDCMImageIO")
    try:
        with plain(path) as readable:
            reader.SetFileName(str(readable))
            image = reader.Execute()
        size, values = image.GetSize(), image.GetNumberOfComponentsPerPixel()
        keys = {name: tag.replace(",", "|") for name, (tag, _) in TAGS.items()}
        told = {
            name: image.GetMetaData(key) if image.HasMetaDataKey(key) else None
            for name, key in keys.items()
        }
    except (RuntimeError, OSError) as error:
        problem = "truncated or damaged, or packed in a way that GDCM does not read"
        raise CaseError(
            "E_IMAGE_UNREADABLE", "slice", path.name, REMEDY, problem=problem
        ) from error
    if len(size) != 3 or size[2] != 1 or values != 1:
        problem = f"{values} values a pixel, size {size}: no CT slice"
        remedy = "export the CT as single-frame images"
        raise CaseError("E_IMAGE_SHAPE", "slice", path.name, remedy, problem=problem)
    return image, told


def _require_alike(places: Sequence[Place], levels: npt.NDArray[np.float64]) -> None:
    """All slices have the size, the pixel spacing and the orientation of the first."""
    for what, values, tolerance in (
        ("size", np.array([place.shape for place in places], dtype=np.float64), 0.0),
        ("pixel spacing", np.array([place.spacing_mm for place in places]), 1e-4),
        ("orientation", np.array([place.direction.ravel() for place in places]), 1e-4),
    ):
        other = np.abs(values - values[len(values) // 2]).max(axis=1) > tolerance
        if other.any():
            count = f"{int(other.sum())} of {len(places)} slices"
            problem = f"{count} have another {what}, at {_at(levels[other])}"
            raise _refused("E_IMAGE_GEOMETRY", problem, "keep one series of one orientation")


def _require_even(levels: npt.NDArray[np.float64]) -> float:
    """The distance of the slices in mm."""
    gaps = np.diff(levels)
    usual = float(np.median(gaps))
    doubled = gaps < max(0.25 * usual, 1e-3)
    if doubled.any():
        problem = f"{int(doubled.sum())} slices lie where another one lies, at "
        problem += _at(levels[1:][doubled])
        raise _refused("E_SLICES_DOUBLED", problem, "keep one of each; export the series once")
    step = float((levels[-1] - levels[0]) / len(gaps))
    grid = levels[0] + step * np.arange(len(levels))
    if np.abs(levels - grid).max() <= max(UNEVEN * step, ROUNDING_MM):
        return step
    multiples = np.round(gaps / gaps.min())
    wide = multiples > 1
    if wide.mean() <= 0.5 and np.abs(gaps / gaps.min() - multiples).max() < 0.25:
        lost = int((multiples - 1).sum())
        problem = f"{lost} slices are missing, after {_at(levels[:-1][wide])}"
        raise _refused("E_SLICES_MISSING", problem, "copy or export the missing slices")
    odd = np.abs(gaps - usual) > max(UNEVEN * usual, ROUNDING_MM)
    odd = odd if odd.any() else np.ones_like(odd)
    problem = f"slices {gaps.min():.3g} to {gaps.max():.3g} mm apart, uneven after "
    problem += _at(levels[:-1][odd])
    raise _refused("E_IMAGE_GEOMETRY", problem, "export the series with slices of one distance")


def _require_upright(
    places: Sequence[Place],
    levels: npt.NDArray[np.float64],
    normal: npt.NDArray[np.float64],
) -> None:
    """The slices lie one above the other: no gantry tilt, none shifted sideways."""
    offsets = np.array([place.origin_mm for place in places]) - places[0].origin_mm
    aside = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1)
    tilt = _angle(offsets[-1], normal)
    if tilt > TILT_DEGREES:
        problem = f"gantry tilt of {tilt:.1f} degrees: each slice is shifted against the last"
        remedy = "resample the series without tilt in the scanner or the planning system"
        if tilt < ROUNDED_DEGREES:
            problem += f" (or {ORIENTATION} is rounded)"
            remedy += f", or export it with {ORIENTATION} to six decimals"
        raise _refused("E_IMAGE_GEOMETRY", problem, remedy)
    shifted = aside > max(ROUNDING_MM, UNEVEN * min(places[0].spacing_mm))
    if shifted.any():
        problem = (
            f"{int(shifted.sum())} slices are shifted sideways by up to {aside.max():.1f} mm, "
        )
        problem += f"at {_at(levels[shifted])}"
        raise _refused("E_IMAGE_GEOMETRY", problem, "keep one reconstruction of the scan")


def _angle(way: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> float:
    """Degrees between two directions, the second of length one."""
    along = float(way @ normal)
    return math.degrees(math.atan2(float(np.linalg.norm(way - along * normal)), along))


def _at(levels: npt.NDArray[np.float64]) -> str:
    shown = ", ".join(f"{level:.2f}" for level in levels[:SHOWN])
    return f"{shown} mm" + (f" and {len(levels) - SHOWN} more" if len(levels) > SHOWN else "")


def _refused(code: str, problem: str, remedy: str) -> CaseError:
    return CaseError(code, "series", "CT", remedy, problem=problem)
