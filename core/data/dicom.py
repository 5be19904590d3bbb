"""DICOM archives: CT series and RTSTRUCTs in any tree, matched by what they say, not by names.

A case is a CT series with the structure set that is drawn on it (referenced series, else frame of
reference). Of several structure sets the approved ones come first, then the latest, then the one
with most structures drawn; the site may name another by its label. In a study without any, the
case is the series with most slices. What was passed over is said in the case's remarks.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import VR

from core.data import rtstruct
from core.data.dicom_series import read_series
from core.data.folders import CaseFolder, walk
from core.data.rtstruct import StructureSet
from core.data.volume import Geometry
from core.errors import CaseError, Finding

OTHER_SUFFIXES = {
    ".nrrd", ".nhdr", ".nii", ".gz", ".mha", ".mhd", ".raw", ".zip", ".tar", ".csv", ".tsv",
    ".json", ".yaml", ".yml", ".txt", ".md", ".xml", ".html", ".pdf", ".png", ".jpg", ".jpeg",
    ".npy", ".npz", ".h5", ".py", ".log", ".safetensors", ".sqlite", ".db", ".exe", ".dll", ".xlsx",
}  # fmt: skip
TAGS = (
    "Modality", "ImageType", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "SeriesNumber", "PatientID", "Rows", "Columns", "NumberOfFrames",
)  # fmt: skip
# What a damaged header may ask memory for.
MOST_PIXELS = 2**26
UNDEFINED = 0xFFFFFFFF
TYPES = frozenset(str(vr) for vr in VR)
# Without a preamble a file begins with its first element, of group 0002 or 0008.
FIRST_GROUPS = (b"\x02\x00\x00\x00", b"\x02\x00\x01\x00", b"\x08\x00")

Say = Callable[..., None]


@dataclass
class _Series:
    """A CT series as the headers of its slices show it."""

    study: str
    uid: str
    frame: str
    patient: str
    number: str
    files: list[Path] = field(default_factory=list)
    instances: set[str] = field(default_factory=set)
    copies: int = 0

    @property
    def folder(self) -> Path:
        return Path(os.path.commonpath([path.parent for path in self.files]))


@dataclass
class _Tree:
    """Everything found in a tree."""

    series: dict[str, _Series] = field(default_factory=dict)
    sets: dict[Path, StructureSet] = field(default_factory=dict)
    unreadable: list[Path] = field(default_factory=list)
    damaged_sets: list[tuple[Path, CaseError]] = field(default_factory=list)
    localizers: Counter[str] = field(default_factory=Counter)


def find(root: Path, structure_set: str = "") -> list[CaseFolder]:
    """Lists the cases below `root`; opens headers and structure sets, no pixels.

    Args:
        root: folder of the tree.
        structure_set: label of the structure set to be taken wherever a CT has several.
    """
    tree = _read_tree(root)
    drawn_on: dict[str, list[Path]] = defaultdict(list)
    found: list[CaseFolder] = []
    for path, drawn in sorted(tree.sets.items()):
        targets = _series_of(drawn, list(tree.series.values()))
        for uid in targets:
            drawn_on[uid].append(path)
        if not targets:
            found.append(_lost(path, "W_STRUCTURE_SET_ALONE", "no CT that it is drawn on"))
    for path, error in tree.damaged_sets:
        found.append(_lost(path, "W_DICOM_UNREADABLE", error.problem))
    chosen = _cases_of(tree, drawn_on)
    folders = Counter(one.folder for one in chosen)
    for one in chosen:
        several = folders[one.folder] > 1
        case = f"{one.folder.name}_{one.number or one.uid.rsplit('.', 1)[-1]}" if several else ""
        found.append(_case(tree, one, drawn_on, structure_set, case))
    return list(_with_unreadable(found, tree.unreadable))


def read_ct(files: tuple[Path, ...]) -> tuple[npt.NDArray[Any], Geometry]:
    """Reads the CT of a case, as `core.data.dicom_series.read_series`."""
    return read_series(files)


def read_mask(
    path: Path, image: npt.NDArray[Any], geometry: Geometry, name: str = ""
) -> tuple[npt.NDArray[np.bool_], str]:
    """Draws one structure on the CT's grid, as `core.data.rtstruct.draw`.

    Args:
        path: the structure set.
        image: the CT (Z, Y, X); not used here.
        geometry: the CT's grid.
        name: of the structure.
    """
    return rtstruct.draw(path, name, geometry)


def _read_tree(root: Path) -> _Tree:
    tree = _Tree()
    for path in _candidates(root):
        header = _header(path)
        if header is None:
            tree.unreadable.append(path)
            continue
        kind = header["Modality"]
        if kind == "RTSTRUCT":
            try:
                tree.sets[path] = rtstruct.read_structure_set(path)
            except CaseError as error:
                tree.damaged_sets.append((path, error))
        elif kind == "CT":
            _add_slice(tree, path, header)
    return tree


def _candidates(root: Path) -> Iterator[Path]:
    """Files that begin as DICOM files do."""
    for folder, _, files in walk(root):
        for name in files:
            path = folder / name
            if path.suffix.lower() in OTHER_SUFFIXES or not path.is_file():
                continue
            try:
                with path.open("rb") as file:
                    start = file.read(132)
            except OSError:
                continue
            if start[128:] == b"DICM" or start.startswith(FIRST_GROUPS):
                yield path


def _header(path: Path) -> dict[str, str] | None:
    """What the header says under `TAGS`; None where it cannot be read, or its pixels cannot be."""
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")
        try:
            header: Any = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            told = {name: _element(header, name) for name in TAGS}
            known = all(_known(part) for part in (header, header.file_meta))
            sizes = [int(told[name] or 1) for name in ("Rows", "Columns", "NumberOfFrames")]
            if not known or math.prod(sizes) > MOST_PIXELS:
                return None
            if told["Modality"] == "CT" and not _has_pixels(header, file):
                return None
            kind = told["Modality"] or header.file_meta.get("MediaStorageSOPClassUID")
        # pydicom raises half a dozen types for damaged files; each means the same here.
        except Exception:
            return None
    return told if kind else None


def _known(data: Any) -> bool:
    """Whether every element is of a type that exists: what pydicom forgives, GDCM may not."""
    return all((vr := data.get_item(tag).VR) is None or vr in TYPES for tag in data.keys())  # noqa: SIM118


def _has_pixels(header: Any, file: BinaryIO) -> bool:
    """Whether the pixels stand where the header ends, and end where the file ends.

    A damaged length before them would lead elsewhere, and what follows them would be read as
    elements: either may ask GDCM for gigabytes. Padding may follow.
    """
    syntax = header.file_meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian
    if syntax == DeflatedExplicitVRLittleEndian:
        return True
    order: Literal["little", "big"] = "big" if syntax == ExplicitVRBigEndian else "little"
    place, start = file.tell(), file.read(12)
    if [int.from_bytes(start[i : i + 2], order) for i in (0, 2)] != [0x7FE0, 0x0010]:
        return False
    plain = syntax == ImplicitVRLittleEndian
    length = int.from_bytes(start[4:8] if plain else start[8:12], order)
    if length == UNDEFINED:
        return True
    end = place + (8 if plain else 12) + length
    file.seek(end)
    behind = file.read(4)
    whole = end <= os.fstat(file.fileno()).st_size
    return whole and (not behind or behind in (b"\xfc\xff\xfc\xff", b"\xff\xfc\xff\xfc"))


def _add_slice(tree: _Tree, path: Path, header: Mapping[str, str]) -> None:
    if "LOCALIZER" in header["ImageType"]:
        tree.localizers[header["StudyInstanceUID"]] += 1
        return
    uid = header["SeriesInstanceUID"]
    one = tree.series.setdefault(
        uid,
        _Series(
            header["StudyInstanceUID"], uid, header["FrameOfReferenceUID"], header["PatientID"],
            header["SeriesNumber"],
        ),
    )  # fmt: skip
    instance = header["SOPInstanceUID"]
    if instance and instance in one.instances:
        one.copies += 1
        return
    one.instances.add(instance)
    one.files.append(path)


def _series_of(drawn: StructureSet, series: Sequence[_Series]) -> list[str]:
    """UIDs of the CT series that a structure set is drawn on."""
    listed = frozenset[str]().union(*drawn.series.values())
    if named := [one.uid for one in series if one.uid in listed]:
        return named
    near = [one for one in series if one.frame and one.frame in drawn.series]
    near.sort(key=lambda one: (one.study == drawn.study, len(one.files)))
    return [one.uid for one in near[-1:]]


def _cases_of(tree: _Tree, drawn_on: Mapping[str, Sequence[Path]]) -> list[_Series]:
    """Series that are cases: those with structures; of a study without, the longest."""
    studies: dict[str, list[_Series]] = defaultdict(list)
    for one in tree.series.values():
        studies[one.study or one.uid].append(one)
    chosen: list[_Series] = []
    for members in studies.values():
        held = [one for one in members if one.uid in drawn_on]
        chosen += held or [max(members, key=lambda one: len(one.files))]
    return chosen


def _case(
    tree: _Tree,
    one: _Series,
    drawn_on: Mapping[str, Sequence[Path]],
    wanted: str,
    case: str,
) -> CaseFolder:
    remarks: list[Finding] = []

    def say(code: str, message: str, remedy: str = "nothing to do") -> None:
        remarks.append(Finding(code, "warning", "", "", message, remedy))

    paths = drawn_on.get(one.uid, ())
    passed = [
        other
        for other in tree.series.values()
        if other.study == one.study and other.uid != one.uid and other.uid not in drawn_on
    ]
    if passed:
        sizes = ", ".join(str(len(other.files)) for other in passed)
        how = "the one with structures" if paths else "the longest"
        message = f"{len(passed)} other CT series of the study ({sizes} slices) passed over: "
        say("W_SERIES_SECOND", f"{message}{how}, of {len(one.files)} slices, is read")
    if one.copies:
        say("W_SLICE_COPIES", f"{one.copies} files are copies of slices that are read")
    if tree.localizers[one.study]:
        say("W_LOCALIZER", f"{tree.localizers[one.study]} localizer images passed over")
    structures: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    if paths:
        path = max(paths, key=lambda p: _rank(tree.sets[p], wanted))
        chosen = tree.sets[path]
        if len(paths) > 1:
            labels = ", ".join(repr(tree.sets[p].label) for p in paths if p != path)
            message = f"structure set {chosen.label!r} is read, {labels} passed over"
            say("W_STRUCTURE_SET_SECOND", message, "or name another in the site's `structure_set`")
        names = _drawn_names(chosen, one, say)
        structures = (path,) * len(names)
    return CaseFolder(
        one.folder, tuple(sorted(one.files)), structures, names, case, _digest(one.patient),
        tuple(remarks),
    )  # fmt: skip


def _rank(one: StructureSet, wanted: str) -> tuple[bool, bool, str, int, str]:
    drawn = sum(bool(roi.contours) for roi in one.rois)
    named = bool(wanted) and one.label.lower() == wanted.lower()
    return named, one.approved, one.drawn_at, drawn, one.label


def _drawn_names(chosen: StructureSet, one: _Series, say: Say) -> tuple[str, ...]:
    """Names of the structures that are drawn on this series."""
    frames = {"", *(frame for frame, uids in chosen.series.items() if one.uid in uids)}
    frames |= {one.frame} if one.frame else {roi.frame for roi in chosen.rois}
    elsewhere = {roi.name for roi in chosen.rois if roi.contours and roi.frame not in frames}
    drawn = [roi.name for roi in chosen.rois if roi.contours and roi.name not in elsewhere]
    absent = sorted({r.name for r in chosen.rois if not r.contours and r.name not in drawn})
    if absent:
        listed = ", ".join(map(repr, absent))
        say("W_LABEL_ABSENT", f"named, but not drawn, so not annotated: {listed}")
    if elsewhere:
        listed = ", ".join(map(repr, sorted(elsewhere)))
        say("W_LABEL_ELSEWHERE", f"drawn in another frame of reference, left out: {listed}")
    return tuple(sorted(drawn))


def _lost(path: Path, code: str, problem: str) -> CaseFolder:
    remedy = "put the CT that it belongs to back, or remove it"
    if code == "W_DICOM_UNREADABLE":
        remedy = "export it again"
    finding = Finding(code, "error", "", "", f"structure set {path.name!r}: {problem}", remedy)
    return CaseFolder(path.parent, (), (), (), path.stem, "", (finding,))


def _with_unreadable(cases: list[CaseFolder], paths: list[Path]) -> Iterator[CaseFolder]:
    """The cases, each told of the files beside it that cannot be read; files alone are cases."""
    beside: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        beside[path.parent].append(path)
    for case in cases:
        yield _told(case, beside.pop(case.folder, []))
    for folder, lost in beside.items():
        yield _told(CaseFolder(folder, (), (), (), ""), lost)


def _told(case: CaseFolder, lost: list[Path]) -> CaseFolder:
    if not lost:
        return case
    severity = "warning" if case.files else "error"
    message = f"{len(lost)} files begin as DICOM but cannot be read ({lost[0].name!r} is one)"
    finding = Finding("W_DICOM_UNREADABLE", severity, "", "", message, "copy or export them again")
    return CaseFolder(
        case.folder, case.files, case.structures, case.names, case.case, case.patient,
        (*case.remarks, finding),
    )  # fmt: skip


def _digest(patient: str) -> str:
    return hashlib.sha256(patient.encode()).hexdigest()[:16] if patient else ""


def _element(header: Any, name: str) -> str:
    """One element as text; numbers and ids need no more decoding than this."""
    element = header.get_item(name)
    value = element.value if element is not None else None
    if isinstance(value, bytes):
        packed = len(value) == 2 and name in ("Rows", "Columns")
        value = int.from_bytes(value, "little") if packed else value.decode("latin-1")
    return "" if value is None else str(value).strip(" \0")
