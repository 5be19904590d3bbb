"""RTSTRUCT: which structures a file names, what they are drawn on, and their contours.

A structure set is read whole; its contours stay text until they are drawn. Read by pydicom; DICOM
PS3.3 C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from core.data import raster
from core.data.volume import Geometry
from core.errors import CaseError
from core.service import leave_if_told

CONTOUR_DATA = 0x30060050
AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "")
REMEDY = "export the structure set again"

# Values that break a rule of the standard are read as they stand: what matters is checked here.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


@dataclass(frozen=True)
class Roi:
    """One structure of a structure set.

    Attributes:
        name: as the planning system calls it.
        frame: UID of the frame of reference that it is drawn in, or "".
        contours: coordinates of each closed planar contour, as they stand in the file.
        others: contours of other kinds (points, open lines); they hold no area.
    """

    name: str
    frame: str
    contours: tuple[bytes, ...]
    others: int


@dataclass(frozen=True)
class StructureSet:
    """A structure set.

    Attributes:
        study: UID of its study, or "".
        series: UIDs of the series that it is drawn on, by frame of reference.
        patient: the patient's id.
        label: StructureSetLabel.
        approved: True where ApprovalStatus says so.
        drawn_at: date and time of the structure set, in the order of time as text.
        ours: True for what `hnfed predict` wrote.
        rois: its structures.
    """

    study: str
    series: Mapping[str, frozenset[str]]
    patient: str
    label: str
    approved: bool
    drawn_at: str
    ours: bool
    rois: tuple[Roi, ...]


def read_structure_set(path: Path) -> StructureSet:
    """Reads a structure set; the one read last is kept.

    Raises:
        CaseError: ``E_LABEL_UNREADABLE``.
    """
    try:
        stamp = path.stat()
    except OSError as error:
        raise _unreadable(path, "no such file") from error
    return _read(path, stamp.st_mtime_ns, stamp.st_size)


def draw(path: Path, name: str, geometry: Geometry) -> tuple[npt.NDArray[np.bool_], str]:
    """Draws one structure on the CT's grid by the rule of `core.data.raster`.

    Args:
        path: the structure set.
        name: of the structure.
        geometry: the CT's grid.

    Returns:
        The mask (Z, Y, X), and what was not drawn, in words; "" where everything was.

    Raises:
        CaseError: ``E_LABEL_UNREADABLE``: not read, no such structure, coordinates that are none;
            ``E_LABEL_AMBIGUOUS``: drawn twice under this name.
    """
    found = [roi for roi in read_structure_set(path).rois if roi.name == name and roi.contours]
    if len(found) > 1:
        remedy = "rename or delete one of them"
        problem = f"{len(found)} structures of this name are drawn"
        raise CaseError("E_LABEL_AMBIGUOUS", "structure", name, remedy, problem=problem)
    if not found:
        return np.zeros(geometry.size, dtype=np.bool_), ""
    roi = found[0]
    drawn = raster.rasterise([_points(text, path) for text in roi.contours], geometry)
    flat = drawn.points + roi.others
    remarks = (
        (flat, "of one or two points, or open, hold no area"),
        (drawn.tilted, "lie in no slice of the CT"),
        (drawn.outside, "lie above or below the CT"),
        (drawn.doubled, "are there twice"),
        (drawn.between, "lie between slices that have contours of their own"),
    )
    told = [f"{count} contours {what}" for count, what in remarks if count]
    return drawn.mask, "; ".join(told)


def _points(text: bytes, path: Path) -> npt.NDArray[np.float64]:
    try:
        values = np.array(text.rstrip(b" \0").split(b"\\"), dtype="S").astype(np.float64)
    except ValueError as error:
        raise _unreadable(path, "a contour's coordinates are no numbers") from error
    if len(values) % 3 or not np.isfinite(values).all():
        raise _unreadable(path, f"a contour has {len(values)} coordinates, or some are not finite")
    return values.reshape(-1, 3)


def _unreadable(path: Path, problem: str) -> CaseError:
    return CaseError("E_LABEL_UNREADABLE", "structure", path.name, REMEDY, problem=problem)


@lru_cache(maxsize=1)
def _read(path: Path, *stamp: int) -> StructureSet:
    """The structure set last read: the organs of a case are asked for one after another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _parse(pydicom.dcmread(path, force=True))
        # pydicom raises half a dozen types for damaged files, its data elements more when used.
        except Exception as error:
            leave_if_told()
            raise _unreadable(path, f"damaged ({type(error).__name__})") from error


def _parse(data: Any) -> StructureSet:
    series: dict[str, set[str]] = {_text(data, "FrameOfReferenceUID"): set()}
    for frame in data.get("ReferencedFrameOfReferenceSequence") or ():
        listed = series.setdefault(_text(frame, "FrameOfReferenceUID"), set())
        for study in frame.get("RTReferencedStudySequence") or ():
            for one in study.get("RTReferencedSeriesSequence") or ():
                listed.add(_text(one, "SeriesInstanceUID"))
    drawn: dict[int, tuple[list[bytes], int]] = {}
    for item in data.get("ROIContourSequence") or ():
        contours, others = drawn.setdefault(int(item.ReferencedROINumber), ([], 0))
        for contour in item.get("ContourSequence") or ():
            text = _coordinates(contour)
            if text and _text(contour, "ContourGeometricType") in AREAS:
                contours.append(text)
            else:
                others += 1
        drawn[int(item.ReferencedROINumber)] = (contours, others)
    rois = []
    for item in data.get("StructureSetROISequence") or ():
        contours, others = drawn.get(int(item.ROINumber), ([], 0))
        frame = _text(item, "ReferencedFrameOfReferenceUID")
        rois.append(Roi(_text(item, "ROIName"), frame, tuple(contours), others))
    return StructureSet(
        study=_text(data, "StudyInstanceUID"),
        series={frame: frozenset(uids) for frame, uids in series.items()},
        patient=_text(data, "PatientID"),
        label=_text(data, "StructureSetLabel"),
        approved=_text(data, "ApprovalStatus") == "APPROVED",
        drawn_at=_text(data, "StructureSetDate").ljust(8) + _text(data, "StructureSetTime"),
        ours=_text(data, "Manufacturer") == "hnfed",
        rois=tuple(rois),
    )


def _coordinates(contour: Any) -> bytes:
    element = contour.get_item(CONTOUR_DATA)
    value = element.value if element is not None else None
    return value if isinstance(value, bytes) else b""


def _text(data: Any, name: str) -> str:
    value = data.get(name)
    return "" if value is None else str(value).strip(" \0")
