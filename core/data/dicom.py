"""DICOM archives: CT series and RTSTRUCTs in any tree, matched by what they say, not by names.

A case is a CT series with the structure set that is drawn on it (referenced series, else frame of
reference). Of several structure sets the approved ones come first, then the latest, then the one
with most structures drawn; the site may name another by its label. In a study without any, the
case is the series with most slices. What was passed over is said in the case's remarks.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.data import rtstruct
from core.data.dicom_header import candidates, read_header
from core.data.dicom_series import read_series
from core.data.folders import CaseFolder
from core.data.rtstruct import StructureSet
from core.data.volume import Geometry
from core.errors import CaseError, Finding

ALL_ONE_PATIENT = 3
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
    instances: set[tuple[str, str]] = field(default_factory=set)
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
    names = _names_of(chosen)
    for one in chosen:
        found.append(_case(tree, one, drawn_on, structure_set, names[one.uid]))
    return list(_with_unreadable(_told_apart(found), tree.unreadable))


def _names_of(chosen: Sequence[_Series]) -> dict[str, str]:
    """What each case is called beside its folder: "" where it is alone there."""
    folders = Counter(one.folder for one in chosen)
    stems = {
        one.uid: f"{one.folder.name}_{re.sub(r'[^A-Za-z0-9.-]', '-', one.number) or 'series'}"
        for one in chosen
    }
    doubled = Counter((one.folder, stems[one.uid]) for one in chosen)
    names = {}
    for one in chosen:
        name = stems[one.uid] if folders[one.folder] > 1 else ""
        if name and doubled[one.folder, name] > 1:
            name += f"_{_digest(one.uid)[:6]}"
        names[one.uid] = name
    return names


def _told_apart(found: list[CaseFolder]) -> list[CaseFolder]:
    """Without patients where all cases bear one id: an id that an anonymiser wrote is none."""
    told = {case.patient for case in found if case.files}
    if len(told) > 1 or "" in told or sum(bool(case.files) for case in found) < ALL_ONE_PATIENT:
        return found
    message = "all cases bear one PatientID: it is not taken for one patient"
    remedy = "name patients in cases.csv (column patient) where several cases are of one"
    remark = Finding("W_PATIENT_ID", "warning", "", "", message, remedy)
    return [replace(case, patient="", remarks=(*case.remarks, remark)) for case in found]


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
    for path, begins in candidates(root):
        header = read_header(path) if begins else None
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
    instance = header["SOPInstanceUID"], header["ImagePositionPatient"]
    if instance[0] and instance in one.instances:
        one.copies += 1
        return
    one.instances.add(instance)
    one.files.append(path)


def _series_of(drawn: StructureSet, series: Sequence[_Series]) -> list[str]:
    """UIDs of the CT series that a structure set is drawn on."""
    of_patient = [one for one in series if _may_be_one(one.patient, drawn.patient)]
    listed = _listed(drawn)
    if named := [one.uid for one in of_patient if one.uid in listed]:
        return named
    near = [one for one in of_patient if one.frame and one.frame in drawn.series]
    near.sort(key=lambda one: (one.study == drawn.study, len(one.files)))
    return [one.uid for one in near[-1:]]


def _listed(drawn: StructureSet) -> frozenset[str]:
    return frozenset[str]().union(*drawn.series.values())


def _may_be_one(patient: str, other: str) -> bool:
    return not patient or not other or patient == other


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
            labels = _quoted([tree.sets[p].label for p in paths if p != path])
            message = f"structure set {_quoted([chosen.label])} is read, {labels} passed over"
            say(
                "W_STRUCTURE_SET_SECOND",
                message,
                "nothing to do, or name another in the site's `structure_set`",
            )
        if wanted and chosen.label.lower() != wanted.lower():
            say("W_STRUCTURE_SET_WANTED", f"no structure set {_quoted([wanted])} on this CT")
        if _listed(chosen) and one.uid not in _listed(chosen):
            message = f"structure set {_quoted([chosen.label])} names a series that is not here: "
            say("W_STRUCTURE_SET_FRAME", f"{message}matched by its frame of reference")
        names = _drawn_names(chosen, one, say)
        structures = (path,) * len(names)
    return CaseFolder(
        one.folder, tuple(sorted(one.files)), structures, names, case, _digest(one.patient),
        tuple(remarks),
    )  # fmt: skip


def _rank(one: StructureSet, wanted: str) -> tuple[bool, bool, bool, bool, str, int, str]:
    drawn = sum(bool(roi.contours) for roi in one.rois)
    named = bool(wanted) and one.label.lower() == wanted.lower()
    return named, drawn > 0, not one.ours, one.approved, one.drawn_at, drawn, one.label


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(rtstruct.quoted, names))


def _drawn_names(chosen: StructureSet, one: _Series, say: Say) -> tuple[str, ...]:
    """Names of the structures that are drawn on this series."""
    frames = {"", *(frame for frame, uids in chosen.series.items() if one.uid in uids)}
    frames |= {one.frame} if one.frame else {roi.frame for roi in chosen.rois}
    elsewhere = {roi.name for roi in chosen.rois if roi.contours and roi.frame not in frames}
    drawn = [roi.name for roi in chosen.rois if roi.contours and roi.name not in elsewhere]
    absent = sorted({r.name for r in chosen.rois if not r.contours and r.name not in drawn})
    lines = sorted({r.name for r in chosen.rois if r.name in absent and r.others})
    absent = [name for name in absent if name not in lines]
    if lines:
        message = f"drawn by points or open lines only, which hold no area: {_quoted(lines)}"
        say("W_LABEL_ABSENT", message, "draw closed contours where it is to be used")
    twice = sorted({r.name for r in chosen.rois if r.shared and r.paired and r.contours})
    if twice:
        message = (
            f"ROI number used more than once, told by their place in the file: {_quoted(twice)}"
        )
        say("W_ROI_NUMBER", message, "export the structure set again, or look at these structures")
    if absent:
        say("W_LABEL_ABSENT", f"named, but not drawn, so not annotated: {_quoted(absent)}")
    if elsewhere:
        listed = _quoted(sorted(elsewhere))
        say("W_LABEL_ELSEWHERE", f"drawn in another frame of reference, left out: {listed}")
    return tuple(sorted(drawn))


def _lost(path: Path, code: str, problem: str) -> CaseFolder:
    remedy = "put the CT that it belongs to back, or remove it"
    if code == "W_DICOM_UNREADABLE":
        remedy = "export it again"
    finding = Finding(
        code, "error", "", "", f"structure set {_quoted([path.name])}: {problem}", remedy
    )
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
    one = _quoted([lost[0].name])
    message = f"{len(lost)} files are empty, or begin as DICOM but cannot be read ({one} is one)"
    finding = Finding("W_DICOM_UNREADABLE", severity, "", "", message, "copy or export them again")
    return replace(case, remarks=(*case.remarks, finding))


def _digest(patient: str) -> str:
    return hashlib.sha256(patient.encode()).hexdigest()[:16] if patient else ""
