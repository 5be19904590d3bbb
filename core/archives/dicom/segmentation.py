"""DICOM SEG as contours that were drawn: which segments it has, and their voxels on the CT's grid.

Binary segmentations and label maps; each frame says where it lies. DICOM PS3.3 A.51, C.8.20.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from core.archives.dicom.frames import frame_groups, item_of, places_of
from core.archives.dicom.place import Place
from core.archives.dicom.rtstruct import Roi, StructureSet, text_of
from core.data.geometry import Geometry
from core.errors import CaseError
from core.processes import leave_if_told

REMEDY = "export the segmentation again, on the CT's grid"
KINDS = ("BINARY", "LABELMAP")
# A frame may lie so far from a slice and its pixels, in parts of a voxel.
OFF_GRID = 0.05


def read(path: Path) -> StructureSet:
    """Reads what a segmentation holds, without its pixels.

    Raises:
        CaseError: ``E_LABEL_UNREADABLE``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _structure_set(pydicom.dcmread(path, stop_before_pixels=True, force=True))
        # pydicom raises half a dozen types for damaged files, its data elements more when used.
        except Exception as error:
            leave_if_told()
            raise _unreadable(path, f"damaged ({type(error).__name__})") from error


def is_segmentation(path: Path) -> bool:
    """Whether a DICOM file is a segmentation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = pydicom.dcmread(path, specific_tags=["Modality"], force=True)
            return str(header.get("Modality", "")).strip() == "SEG"
        # pydicom raises half a dozen types for damaged files: `rtstruct` says what is wrong.
        except Exception:
            leave_if_told()
            return False


def draw(path: Path, name: str, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """The voxels of one segment on the CT's grid (Z, Y, X).

    Args:
        path: the segmentation.
        name: of the segment.
        geometry: the CT's grid.

    Raises:
        CaseError: ``E_LABEL_UNREADABLE``; ``E_LABEL_GRID``: frames that do not lie on the CT's
            slices and pixels; ``E_LABEL_AMBIGUOUS``: several segments of that name;
            ``E_LABEL_VALUES``: a segmentation of probabilities.
    """
    found = [one for one in read(path).rois if one.name == name and one.drawn]
    if len(found) > 1:
        problem = f"{len(found)} segments of this name are drawn"
        remedy = "rename or delete one of them"
        raise CaseError("E_LABEL_AMBIGUOUS", "structure", name, remedy, problem=problem)
    mask = np.zeros(geometry.size, dtype=np.bool_)
    if not found:
        return mask
    stamp = path.stat()
    frames, places, kind = _frames(path, stamp.st_mtime_ns, stamp.st_size)
    if kind not in KINDS:
        remedy = "export a binary segmentation"
        problem = "it holds probabilities, no mask"
        raise CaseError("E_LABEL_VALUES", "structure", path.name, remedy, problem=problem)
    for number in found[0].frames:
        pixels = frames[number] == found[0].number if kind == "LABELMAP" else frames[number] > 0
        _put(mask, pixels, places[number], geometry, path)
    return mask


def _put(
    mask: npt.NDArray[np.bool_],
    pixels: npt.NDArray[np.bool_],
    place: Place,
    geometry: Geometry,
    path: Path,
) -> None:
    """Adds one frame to the mask, at the pixel where it begins; it may be smaller than a slice."""
    turn = np.array(geometry.direction).reshape(3, 3)
    steps = np.array(geometry.spacing_mm[::-1])
    start = turn.T @ (place.origin_mm - np.array(geometry.origin_mm)) / steps
    first = np.rint(start).astype(int)
    spread = np.abs(np.array(place.spacing_mm) - geometry.spacing_mm[1:]) * pixels.shape
    lean = np.abs(place.direction[:, :2] - turn[:, :2]).max() * max(pixels.shape)
    if (
        np.abs(start - first).max() > OFF_GRID
        or (spread > OFF_GRID * np.array(geometry.spacing_mm[1:])).any()
        or lean > OFF_GRID
    ):
        problem = "a frame lies on none of the CT's slices, or beside its pixels"
        raise CaseError("E_LABEL_GRID", "structure", path.name, REMEDY, problem=problem)
    x, y, z = (int(v) for v in first)
    rows, columns = np.nonzero(pixels)
    if not rows.size:
        return
    inside = (0 <= z < mask.shape[0]) and min(rows.min() + y, columns.min() + x) >= 0
    if not inside or rows.max() + y >= mask.shape[1] or columns.max() + x >= mask.shape[2]:
        problem = "voxels of it lie outside of the CT"
        raise CaseError("E_LABEL_GRID", "structure", path.name, REMEDY, problem=problem)
    mask[z, rows + y, columns + x] = True


@lru_cache(maxsize=1)
def _frames(path: Path, *stamp: int) -> tuple[npt.NDArray[Any], list[Place], str]:
    """Pixels and places of all frames of the segmentation read last, and its kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data: Any = pydicom.dcmread(path, force=True)
            kind = str(data.get("SegmentationType", "")).strip()
            frames = np.asarray(data.pixel_array)
            frames = frames[None] if frames.ndim == 2 else frames
            groups = frame_groups(data)
        except Exception as error:
            leave_if_told()
            raise _unreadable(path, f"damaged ({type(error).__name__})") from error
        try:
            places = places_of(frames, groups, path)
        except CaseError as error:
            remedy, problem = error.remedy, error.problem
            raise CaseError(
                "E_LABEL_GRID", "structure", path.name, remedy, problem=problem
            ) from error
    if len(frames) != len(places):
        raise _unreadable(path, f"{len(frames)} frames, places for {len(places)}")
    return frames, places, kind


def _structure_set(data: Any) -> StructureSet:
    frame = text_of(data, "FrameOfReferenceUID")
    listed = {
        text_of(one, "SeriesInstanceUID") for one in data.get("ReferencedSeriesSequence") or ()
    }
    kind, groups = text_of(data, "SegmentationType"), frame_groups(data)
    drawn: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        one = item_of(group, "SegmentIdentificationSequence")
        if one is not None:
            drawn.setdefault(int(one.ReferencedSegmentNumber), []).append(i)
    rois = []
    for item in data.get("SegmentSequence") or ():
        number = int(item.SegmentNumber)
        frames = range(len(groups)) if kind == "LABELMAP" else drawn.get(number, [])
        rois.append(Roi(_name(item), number, frame, frames=tuple(frames)))
    return StructureSet(
        kind="SEG",
        study=text_of(data, "StudyInstanceUID"),
        series={frame: frozenset(listed - {""})},
        patient=text_of(data, "PatientID"),
        label=text_of(data, "ContentLabel") or text_of(data, "SeriesDescription"),
        approved=False,
        drawn_at=text_of(data, "ContentDate").ljust(8) + text_of(data, "ContentTime"),
        ours=text_of(data, "Manufacturer") == "hnfed",
        rois=tuple(rois),
    )


def _name(item: Any) -> str:
    """What a segment is called: its label, else the meaning of its type's code."""
    if label := text_of(item, "SegmentLabel"):
        return label
    codes = item.get("SegmentedPropertyTypeCodeSequence") or [pydicom.Dataset()]
    return text_of(codes[0], "CodeMeaning")


def _unreadable(path: Path, problem: str) -> CaseError:
    return CaseError("E_LABEL_UNREADABLE", "structure", path.name, REMEDY, problem=problem)
