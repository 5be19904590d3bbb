"""RTSTRUCT: which structures a file names, what they are drawn on, and their contours.

A structure set is read whole; its contours stay text until they are drawn. Read by pydicom; DICOM
PS3.3 C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour).
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataelem import RawDataElement

from core.archives.dicom import contour_raster
from core.data.geometry import Geometry
from core.errors import CaseError
from core.processes import leave_if_told

CONTOUR_DATA = 0x30060050
XOR = "CLOSEDPLANAR_XOR"
AREAS = ("CLOSED_PLANAR", XOR, "INTERPOLATED_PLANAR", "")
LARGEST_LOST = 0.02  # share of a structure's volume that may lie in contours that cannot be drawn
CUT_SHORT = " in file "  # what pydicom warns of where a sequence has no end
UNDEFINED = 0xFFFFFFFF
REMEDY = "export the structure set again"

# Values that break a rule of the standard are read as they stand: what matters is checked here.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


@dataclass(frozen=True)
class Roi:
    """One structure of a structure set, or one segment of a segmentation.

    Attributes:
        name: as the planning system calls it.
        number: its ROI number.
        frame: UID of the frame of reference that it is drawn in, or "".
        contours: coordinates of each closed contour, as they stand in the file; b"" for one that
            is cut short (fewer points than its own count of them). Closed are
            CLOSED_PLANAR, CLOSEDPLANAR_XOR, INTERPOLATED_PLANAR, those without a type, and those
            OPEN_PLANAR whose ends are no further apart than two neighbours among their points.
        frames: of a segment, the numbers of its frames in the file.
        others: contours of other kinds (points, open lines); they hold no area.
        xor: the contours of a slice are joined by exclusive disjunction.
        shared: names of the structures that bear the same number; () where the number is its own.
        paired: with a shared number, whether its contours can be told by their place in the file.
    """

    name: str
    number: int
    frame: str
    contours: tuple[bytes, ...] = ()
    others: int = 0
    xor: bool = False
    shared: tuple[str, ...] = ()
    paired: bool = True
    frames: tuple[int, ...] = ()

    @property
    def drawn(self) -> bool:
        """Whether it is more than a name."""
        return bool(self.contours or self.frames)


@dataclass(frozen=True)
class StructureSet:
    """What is drawn on a CT: an RTSTRUCT, or a DICOM SEG.

    Attributes:
        kind: ``RTSTRUCT`` or ``SEG``.
        study: UID of its study, or "".
        series: UIDs of the series that it is drawn on, by frame of reference.
        patient: the patient's id.
        label: StructureSetLabel.
        approved: True where ApprovalStatus says so.
        drawn_at: date and time of the structure set, in the order of time as text.
        ours: True for what `hnfed predict` wrote.
        rois: its structures.
    """

    kind: str
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
    """Draws one structure on the CT's grid by the rules of `core.archives.dicom.contour_raster`.

    Args:
        path: the structure set.
        name: of the structure.
        geometry: the CT's grid.

    Returns:
        The mask (Z, Y, X), and what was not drawn, in words; "" where everything was.

    Raises:
        CaseError: ``E_LABEL_UNREADABLE``: not read, no such structure, coordinates that are none;
            ``E_LABEL_AMBIGUOUS``: drawn twice under this name, or its contours may be another's;
            ``E_LABEL_INCOMPLETE``: a part of it lies in contours that cannot be drawn.
    """
    found = [roi for roi in read_structure_set(path).rois if roi.name == name and roi.drawn]
    if len(found) > 1:
        remedy = "rename or delete one of them"
        problem = f"{len(found)} structures of this name are drawn"
        raise CaseError("E_LABEL_AMBIGUOUS", "structure", name, remedy, problem=problem)
    if not found:
        return np.zeros(geometry.size, dtype=np.bool_), ""
    roi = found[0]
    if not roi.paired:
        others = ", ".join(map(quoted, sorted(roi.shared))) or "a second list of contours"
        raise CaseError(
            "E_LABEL_AMBIGUOUS",
            "structure",
            name,
            "export the structure set again, with a number of its own for each structure",
            problem=f"ROI number {roi.number} is also that of {others}: whose contours are whose?",
        )
    drawn = contour_raster.rasterise(
        [_points(text, path) for text in roi.contours], geometry, xor=roi.xor
    )
    flat = drawn.points + roi.others
    remarks = (
        (flat, "contours of one or two points, or open, hold no area"),
        (drawn.tilted, f"contours ({drawn.tilted_ml:.1f} mL) lie in no slice of the CT"),
        (drawn.outside, f"contours ({drawn.outside_ml:.1f} mL) lie above or below the CT"),
        (drawn.doubled, "contours are there twice, and were drawn once"),
        (drawn.between, "contours lie between slices that have contours of their own"),
        (drawn.crossing, "pairs of contours cross: they were joined"),
    )
    told = "; ".join(f"{count} {what}" for count, what in remarks if count)
    held_ml = float(drawn.mask.sum()) * math.prod(geometry.spacing_mm) / 1000.0
    if drawn.tilted_ml > LARGEST_LOST * (held_ml + drawn.tilted_ml):
        raise CaseError(
            "E_LABEL_INCOMPLETE",
            "structure",
            name,
            "export it again, drawn in the slices of this CT",
            problem=told,
        )
    return drawn.mask, told


def quoted(name: str) -> str:
    """A name between quotes, without quotes of its own: what is quoted can be hidden."""
    return "'" + re.sub(r"['\"]", "", name) + "'"


def _numbers(text: bytes) -> npt.NDArray[np.float64]:
    return np.array(text.rstrip(b" \0").split(b"\\"), dtype="S").astype(np.float64)


def _points(text: bytes, path: Path) -> npt.NDArray[np.float64]:
    if not text:
        raise _unreadable(path, "a contour holds fewer points than it counts: it is cut short")
    try:
        values = _numbers(text)
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
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            data = pydicom.dcmread(path, force=True)
            if _cut_short(data) or any(CUT_SHORT in str(one.message) for one in told):
                raise EOFError
            return _parse(data)
        # pydicom raises half a dozen types for damaged files, its data elements more when used.
        except Exception as error:
            leave_if_told()
            how = (
                "cut short" if isinstance(error, EOFError) else f"damaged ({type(error).__name__})"
            )
            raise _unreadable(path, how) from error


def _cut_short(data: Any) -> bool:
    """Whether the file ends inside its last value: pydicom takes what is there, without a word."""
    tags = list(data.keys())
    last = data.get_item(tags[-1]) if tags else None
    if not isinstance(last, RawDataElement) or last.value is None:
        return False
    return len(last.value) < last.length < UNDEFINED


def _parse(data: Any) -> StructureSet:
    series: dict[str, set[str]] = {text_of(data, "FrameOfReferenceUID"): set()}
    for frame in data.get("ReferencedFrameOfReferenceSequence") or ():
        listed = series.setdefault(text_of(frame, "FrameOfReferenceUID"), set())
        for study in frame.get("RTReferencedStudySequence") or ():
            for one in study.get("RTReferencedSeriesSequence") or ():
                listed.add(text_of(one, "SeriesInstanceUID"))
    rois = _rois(
        list(data.get("StructureSetROISequence") or ()), list(data.get("ROIContourSequence") or ())
    )
    return StructureSet(
        kind="RTSTRUCT",
        study=text_of(data, "StudyInstanceUID"),
        series={frame: frozenset(uids) for frame, uids in series.items()},
        patient=text_of(data, "PatientID"),
        label=text_of(data, "StructureSetLabel"),
        approved=text_of(data, "ApprovalStatus") == "APPROVED",
        drawn_at=text_of(data, "StructureSetDate").ljust(8) + text_of(data, "StructureSetTime"),
        ours=text_of(data, "Manufacturer") == "hnfed",
        rois=rois,
    )


def _rois(named: Sequence[Any], drawn: Sequence[Any]) -> tuple[Roi, ...]:
    """Structures with their contours, told by number; by place in the file where one is shared."""
    numbers = [int(item.ROINumber) for item in named]
    contours = [int(item.ReferencedROINumber) for item in drawn]
    held = [_contours(item) for item in drawn]
    of_number: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(contours):
        of_number[number].append(place)
    names = [text_of(item, "ROIName") for item in named]
    often, seen = Counter(numbers), Counter[int]()
    rois = []
    for i, (item, number) in enumerate(zip(named, numbers, strict=True)):
        places = of_number[number]
        full = [place for place in places if held[place][0] or held[place][1]]
        paired = len(full) <= 1 if often[number] == 1 else numbers == contours
        mine = full if often[number] == 1 else places[seen[number] : seen[number] + 1]
        seen[number] += 1
        areas, others, xor = held[mine[0]] if mine else ((), 0, False)
        shared = tuple(n for k, n in enumerate(names) if numbers[k] == number and k != i)
        frame = text_of(item, "ReferencedFrameOfReferenceUID")
        rois.append(Roi(names[i], number, frame, areas, others, xor, shared, paired))
    return tuple(rois)


def _contours(item: Any) -> tuple[tuple[bytes, ...], int, bool]:
    """Closed contours of a structure, how many others there are, and whether they are XOR."""
    areas: list[bytes] = []
    others, xor = 0, False
    for contour in item.get("ContourSequence") or ():
        text, kind = _coordinates(contour), text_of(contour, "ContourGeometricType").upper()
        if _lacks_points(contour, text):
            areas.append(b"")
        elif text and (kind in AREAS or (kind == "OPEN_PLANAR" and _ends_meet(text))):
            areas.append(text)
            xor |= kind == XOR
        else:
            others += 1
    return tuple(areas), others, xor


def _lacks_points(contour: Any, text: bytes) -> bool:
    """Whether a contour holds fewer points than it counts; some writers count the coordinates."""
    told = text_of(contour, "NumberOfContourPoints")
    held = text.count(b"\\") + 1
    return bool(text) and told.isdecimal() and int(told) * 3 > held and int(told) != held


def _ends_meet(text: bytes) -> bool:
    """Whether a line ends no further from its beginning than two neighbours of it are apart."""
    try:
        points = _numbers(text)
    except ValueError:
        return False
    if len(points) % 3 or len(points) < 12:
        return False
    points = points.reshape(-1, 3)
    longest = float(np.linalg.norm(np.diff(points, axis=0), axis=1).max())
    return float(np.linalg.norm(points[-1] - points[0])) <= longest + 1e-3


def _coordinates(contour: Any) -> bytes:
    element = contour.get_item(CONTOUR_DATA)
    value = element.value if element is not None else None
    return value if isinstance(value, bytes) else b""


def text_of(data: Any, name: str) -> str:
    """An element as text; "" where it is missing or empty."""
    value = data.get(name)
    return "" if value is None else str(value).strip(" \0")
