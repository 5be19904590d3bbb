"""Enhanced multi-frame CT: a whole scan in one file, each frame with its own place and rescale.

DICOM PS3.3 A.38 (Enhanced CT Image IOD), C.7.6.16 (functional groups). Read by pydicom: frames
that are stored plainly, or packed in a way that pydicom unpacks by itself (RLE).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from core.archives.dicom.place import Place, place_of
from core.errors import CaseError
from core.processes import leave_if_told

# Where each tag stands among the functional groups.
GROUP_OF = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}
RESCALE = "PixelValueTransformationSequence"
REMEDY = "export the CT as single-frame images"


def read_frames(path: Path) -> tuple[npt.NDArray[Any], list[Place]]:
    """Reads the frames of a multi-frame CT, in the order of the file.

    Args:
        path: the file.

    Returns:
        HU (frames, Y, X) as int16 or float32, and where each frame lies.

    Raises:
        CaseError: ``E_IMAGE_UNREADABLE``; ``E_IMAGE_SHAPE``: several values a pixel, a frame
            without its groups; ``E_IMAGE_GEOMETRY``: a place that is none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data: Any = pydicom.dcmread(path, force=True)
            stored = np.asarray(data.pixel_array)
            groups = frame_groups(data)
        # pydicom raises half a dozen types for damaged files; each means the same here.
        except Exception as error:
            leave_if_told()
            problem = f"damaged, or packed in a way that is not read ({type(error).__name__})"
            raise CaseError(
                "E_IMAGE_UNREADABLE", "series", path.name, REMEDY, problem=problem
            ) from error
        stored = stored[None] if stored.ndim == 2 else stored
        if stored.ndim != 3 or (len(groups) != len(stored) and len(stored) > 1):
            problem = f"frames of shape {stored.shape}, places for {len(groups)}"
            raise CaseError("E_IMAGE_SHAPE", "series", path.name, REMEDY, problem=problem)
        if len(stored) < 2:
            shape = (int(stored.shape[1]), int(stored.shape[2]))
            return stored, [Place(shape, (1.0, 1.0), np.eye(3), np.zeros(3))]
        return _hounsfield(stored, groups, path), places_of(stored, groups, path)


def frame_groups(data: Any) -> list[tuple[Any, Any]]:
    """Of each frame its own functional groups, and those that all share."""
    shared = (data.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    own = data.get("PerFrameFunctionalGroupsSequence") or []
    return [(one, shared) for one in own]


def item_of(groups: tuple[Any, Any], sequence: str) -> Any:
    """The one item of a functional group: the frame's own, else the shared one."""
    for group in groups:
        if items := group.get(sequence):
            return items[0]
    return None


def places_of(stored: npt.NDArray[Any], groups: list[tuple[Any, Any]], path: Path) -> list[Place]:
    """Where each frame lies.

    Args:
        stored: pixels (frames, Y, X).
        groups: of each frame, from `frame_groups`.
        path: the file, for messages.

    Raises:
        CaseError: ``E_IMAGE_GEOMETRY``.
    """
    shape = (int(stored.shape[1]), int(stored.shape[2]))
    places = []
    for number, frame in enumerate(groups, start=1):
        told = {name: text_of(item_of(frame, group), name) for name, group in GROUP_OF.items()}
        places.append(place_of(told, shape, f"{path.name}, frame {number}"))
    return places


def _hounsfield(
    stored: npt.NDArray[Any], groups: list[tuple[Any, Any]], path: Path
) -> npt.NDArray[Any]:
    """The frames by their own slope and intercept; int16 where that holds them."""
    bounds = np.iinfo(np.int16)
    volume: npt.NDArray[Any] = np.empty(stored.shape, dtype=np.int16)
    for i, frame in enumerate(groups):
        item = item_of(frame, RESCALE)
        slope, intercept = (
            _number(text_of(item, name), default, name, path)
            for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        plane = stored[i] * slope + intercept
        whole = bool((np.rint(plane) == plane).all())
        fits = whole and bounds.min <= plane.min() and plane.max() <= bounds.max
        if volume.dtype == np.int16 and not fits:
            volume = volume.astype(np.float32)
        volume[i] = plane
    return volume


def _number(text: str | None, default: float, name: str, path: Path) -> float:
    if text is None or not text.strip(" \0"):
        return default
    try:
        return float(text.strip(" \0"))
    except ValueError as error:
        raise CaseError(
            "E_IMAGE_UNREADABLE", "series", path.name, REMEDY, problem=f"{name} is no number"
        ) from error


def text_of(item: Any, name: str) -> str | None:
    """An element as it stands in the file; None where it is missing."""
    element = item.get_item(name) if item is not None else None
    if element is None:
        return None
    value = element.value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    return "\\".join(str(v) for v in value)
