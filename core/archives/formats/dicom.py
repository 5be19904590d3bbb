"""DICOM archives: CT series and what is drawn on them in any tree, matched by what they say.

A case is a CT series with the structure set that is drawn on it (referenced series, else frame of
reference), or with a DICOM SEG where there is no structure set. Of several the approved ones come
first, then the latest, then the one with most structures drawn; the site may name another by its
label. In a study without any, the case is the series with most slices. What was passed over is
said in the case's remarks.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.archives.case_folders import CaseFolder
from core.archives.dicom import rtstruct, segmentation
from core.archives.dicom.match import drawn_on, why_alone
from core.archives.dicom.rtstruct import StructureSet
from core.archives.dicom.series import read_series
from core.archives.dicom.tree import Key, Series, Tree, read_tree
from core.data.geometry import Geometry
from core.errors import Finding, plain_text

ALL_ONE_PATIENT = 3
Say = Callable[..., None]
Sets = Mapping[Key, Sequence[Path]]


def find(root: Path, structure_set: str = "") -> list[CaseFolder]:
    """Lists the cases below `root`; opens headers and structure sets, no pixels.

    Args:
        root: folder of the tree.
        structure_set: label of the structure set to be taken wherever a CT has several.
    """
    tree = read_tree(root)
    found = [_mixed(one) for one in tree.series.values() if one.quarrel]
    series = [one for one in tree.series.values() if not one.quarrel]
    sets: dict[Key, list[Path]] = defaultdict(list)
    alone: list[Path] = []
    for path, drawn in sorted(tree.sets.items()):
        targets = drawn_on(drawn, series)
        for one in targets:
            sets[one.key].append(path)
        if not targets:
            alone.append(path)
    chosen = _cases_of(series, sets)
    said: dict[Key, list[Finding]] = defaultdict(list)
    for path in alone:
        kept = [one for one in chosen if one.key not in sets]
        finding, lacking = why_alone(path, tree, kept)
        if finding is None:
            continue
        if lacking is not None:
            said[lacking.key].append(finding)
        else:
            found.append(CaseFolder(path.parent, (), (), (), path.stem, "", (finding,)))
    for path, error in tree.damaged_sets:
        found.append(_lost(path, error.problem))
    names = _names_of(chosen)
    for one in chosen:
        case = _case(series, tree, one, sets, structure_set, names[one.key])
        found.append(replace(case, remarks=(*case.remarks, *said[one.key])))
    found += _no_cts(tree)
    return list(_with_unreadable(_told_apart(found), tree.unreadable))


def _mixed(one: Series) -> CaseFolder:
    remedy = "give each scan its own UIDs (export or anonymise it again), in a folder of its own"
    message = f"a CT series of {len(one.files)} images is several scans: {one.quarrel}"
    finding = Finding("E_SERIES_MIXED", "error", "", "", message, remedy)
    return CaseFolder(one.folder, (), (), (), "", "", (finding,))


def _no_cts(tree: Tree) -> Iterator[CaseFolder]:
    """Studies that have images, none of them a CT."""
    with_ct = {one.owner for one in tree.series.values()}
    for owner, others in tree.others.items():
        if owner in with_ct or owner in tree.localizers:
            continue
        kinds = ", ".join(f"{n} of modality {kind}" for kind, n in sorted(others.count.items()))
        message = f"a study has images ({kinds}), but no CT"
        remedy = "export the CT of this patient; other modalities are not contoured"
        finding = Finding("E_NO_CT", "error", "", "", message, remedy)
        yield CaseFolder(others.folder, (), (), (), "", "", (finding,))


def _names_of(chosen: Sequence[Series]) -> dict[Key, str]:
    """What each case is called beside its folder: "" where it is alone there."""
    folders = Counter(one.folder for one in chosen)
    stems = {
        one.key: f"{one.folder.name}_{re.sub(r'[^A-Za-z0-9.-]', '-', one.number) or 'series'}"
        for one in chosen
    }
    doubled = Counter((one.folder, stems[one.key]) for one in chosen)
    names = {}
    for one in chosen:
        name = stems[one.key] if folders[one.folder] > 1 else ""
        if name and doubled[one.folder, name] > 1:
            name += f"_{_digest(_unique(one, chosen))[:6]}"
        names[one.key] = name
    return names


def _unique(one: Series, chosen: Sequence[Series]) -> str:
    """The series' UID, with more of its key where another series bears the same."""
    twice = sum(other.uid == one.uid for other in chosen) > 1
    return "\n".join(one.key) if twice else one.uid


def _told_apart(cases: list[CaseFolder]) -> list[CaseFolder]:
    """Without patients where all cases bear one id: an id that an anonymiser wrote is none."""
    told = {case.patient for case in cases if case.files}
    if len(told) > 1 or "" in told or sum(bool(case.files) for case in cases) < ALL_ONE_PATIENT:
        return cases
    message = "all cases bear one PatientID: it is not taken for one patient"
    remedy = "name patients in cases.csv (column patient) where several cases are of one"
    remark = Finding("W_PATIENT_ID", "warning", "", "", message, remedy)
    return [replace(case, patient="", remarks=(*case.remarks, remark)) for case in cases]


def read_ct(files: tuple[Path, ...]) -> tuple[npt.NDArray[Any], Geometry]:
    """Reads the CT of a case, as `core.archives.dicom.series.read_series`."""
    return read_series(files)


def read_mask(
    path: Path, image: npt.NDArray[Any], geometry: Geometry, name: str = ""
) -> tuple[npt.NDArray[np.bool_], str]:
    """Draws one structure on the CT's grid, as `core.archives.dicom.rtstruct.draw`.

    Args:
        path: the structure set, or a DICOM SEG (`core.archives.dicom.segmentation.draw`).
        image: the CT (Z, Y, X); not used here.
        geometry: the CT's grid.
        name: of the structure.
    """
    if segmentation.is_segmentation(path):
        return segmentation.draw(path, name, geometry), ""
    return rtstruct.draw(path, name, geometry)


def _cases_of(series: Sequence[Series], sets: Sets) -> list[Series]:
    """Series that are cases: those with structures; of a study without, the longest."""
    studies: dict[tuple[str, ...], list[Series]] = defaultdict(list)
    for one in series:
        studies[one.owner if one.study or one.uid else one.key].append(one)
    chosen: list[Series] = []
    for members in studies.values():
        held = [one for one in members if one.key in sets]
        chosen += held or [max(members, key=lambda one: one.slices)]
    return chosen


def _case(
    series: Sequence[Series], tree: Tree, one: Series, sets: Sets, wanted: str, case: str
) -> CaseFolder:
    remarks: list[Finding] = []

    def say(code: str, message: str, remedy: str = "nothing to do") -> None:
        remarks.append(Finding(code, "warning", "", "", message, remedy))

    paths = sets.get(one.key, ())
    passed = [
        other
        for other in series
        if other.owner == one.owner and other.key != one.key and other.key not in sets
    ]
    if passed:
        sizes = ", ".join(str(other.slices) for other in passed)
        how = "the one with structures" if paths else "the longest"
        message = f"{len(passed)} other CT series of the study ({sizes} slices) passed over: "
        say("W_SERIES_SECOND", f"{message}{how}, of {one.slices} slices, is read")
    torn = [o for o in series if one.uid and (o.patient, o.uid) == (one.patient, one.uid)]
    if len(torn) > 1:
        sizes = ", ".join(str(other.slices) for other in torn if other.key != one.key)
        say(
            "W_SERIES_TORN",
            f"its series UID ({one.slices} slices here) is that of {sizes} slices of another study "
            "of this patient too: each is read by itself",
            "where it is one scan, give all its images one StudyInstanceUID; else nothing to do",
        )
    if one.copies:
        say("W_SLICE_COPIES", f"{one.copies} files are copies of slices that are read")
    if tree.localizers[one.owner]:
        say("W_LOCALIZER", f"{tree.localizers[one.owner]} localizer images passed over")
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
        listed = frozenset[str]().union(*chosen.series.values())
        if listed and one.uid not in listed:
            message = f"structure set {_quoted([chosen.label])} names a series that is not here: "
            say("W_STRUCTURE_SET_FRAME", f"{message}matched by its frame of reference")
        names = _drawn_names(chosen, one, say)
        structures = (path,) * len(names)
    return CaseFolder(
        one.folder, tuple(sorted(one.files)), structures, names, case, _digest(one.patient),
        tuple(remarks),
    )  # fmt: skip


def _rank(one: StructureSet, wanted: str) -> tuple[bool, bool, bool, bool, bool, str, int, str]:
    drawn = sum(roi.drawn for roi in one.rois)
    named = bool(wanted) and one.label.lower() == wanted.lower()
    contours = one.kind == "RTSTRUCT"
    return named, drawn > 0, not one.ours, contours, one.approved, one.drawn_at, drawn, one.label


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(rtstruct.quoted, names))


def _drawn_names(chosen: StructureSet, one: Series, say: Say) -> tuple[str, ...]:
    """Names of the structures that are drawn on this series."""
    frames = {"", *(frame for frame, uids in chosen.series.items() if one.uid in uids)}
    frames |= {one.frame} if one.frame else {roi.frame for roi in chosen.rois}
    elsewhere = {roi.name for roi in chosen.rois if roi.drawn and roi.frame not in frames}
    drawn = [roi.name for roi in chosen.rois if roi.drawn and roi.name not in elsewhere]
    absent = sorted({r.name for r in chosen.rois if not r.drawn and r.name not in drawn})
    lines = sorted({r.name for r in chosen.rois if r.name in absent and r.others})
    absent = [name for name in absent if name not in lines]
    if lines:
        message = f"drawn by points or open lines only, which hold no area: {_quoted(lines)}"
        say("W_LABEL_ABSENT", message, "draw closed contours where it is to be used")
    twice = sorted({r.name for r in chosen.rois if r.shared and r.paired and r.drawn})
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


def _lost(path: Path, problem: str) -> CaseFolder:
    message = f"structure set {_quoted([path.name])}: {problem}"
    finding = Finding("W_DICOM_UNREADABLE", "error", "", "", message, "export it again")
    return CaseFolder(path.parent, (), (), (), path.stem, "", (finding,))


def _with_unreadable(
    cases: list[CaseFolder], paths: Sequence[tuple[Path, str]]
) -> Iterator[CaseFolder]:
    """The cases, each told of the files beside it that cannot be read; files alone are cases."""
    beside: dict[Path, list[tuple[Path, str]]] = defaultdict(list)
    for path, why in paths:
        beside[path.parent].append((path, why))
    for case in cases:
        yield _with_remarks(case, beside.pop(case.folder, []))
    for folder, lost in beside.items():
        yield _with_remarks(CaseFolder(folder, (), (), (), ""), lost)


def _with_remarks(case: CaseFolder, lost: Sequence[tuple[Path, str]]) -> CaseFolder:
    """The case with a remark for each reason for which files beside it cannot be read."""
    severity = "warning" if case.files else "error"
    remarks = []
    for why in dict.fromkeys(reason for _, reason in lost):
        named = [path for path, reason in lost if reason == why]
        one = _quoted([plain_text(named[0].name)])
        what = {"": "begin as DICOM but cannot be read", "empty": "are empty"}.get(
            why, f"cannot be opened: {why}"
        )
        remedy = "copy or export them again"
        if why not in ("", "empty"):
            remedy = "give the account that runs hnfed the right to read them, or copy them again"
        message = f"{len(named)} files {what} ({one} is one)"
        remarks.append(Finding("W_DICOM_UNREADABLE", severity, "", "", message, remedy))
    return replace(case, remarks=(*case.remarks, *remarks))


def _digest(patient: str) -> str:
    return hashlib.sha256(plain_text(patient).encode()).hexdigest()[:16] if patient else ""
