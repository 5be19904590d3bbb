"""Which CT series a structure set (or segmentation) is drawn on; and if on none, why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.archives.dicom.rtstruct import StructureSet
from core.archives.dicom.tree import Series, Tree
from core.errors import Finding

CODE = "W_STRUCTURE_SET_ALONE"


def drawn_on(drawn: StructureSet, series: Sequence[Series]) -> list[Series]:
    """CT series of the same patient that a structure set refers to, else of its frame of reference.

    A UID that CTs of several studies bear counts in the structure set's own study alone; where
    that leaves several patients, none is taken.

    Args:
        drawn: the structure set.
        series: all CT series.
    """
    of_patient = [one for one in series if _may_be_one(one.patient, drawn.patient)]
    listed = _listed(drawn)
    named = [one for one in of_patient if one.uid and one.uid in listed]
    if len({one.uid for one in named}) < len(named):
        named = [one for one in named if one.study == drawn.study] or named
    if named:
        return named if len({one.patient for one in named}) == 1 else []
    near = [one for one in of_patient if one.frame and one.frame in drawn.series]
    if len({one.patient for one in near}) > 1:
        near = [one for one in near if one.study == drawn.study]
    if len({one.patient for one in near}) > 1:
        return []
    near.sort(key=lambda one: (one.study == drawn.study, one.slices))
    return near[-1:]


def why_alone(
    path: Path, tree: Tree, cases: Sequence[Series]
) -> tuple[Finding | None, Series | None]:
    """Why a structure set is drawn on no CT, and on which CT it should have been.

    Args:
        path: its file.
        tree: everything found.
        cases: CT series that are cases and have no structure set.

    Returns:
        The finding (None where its study has no CT, which is told anyway), and the one case of
        `cases` that lacks it, or None.
    """
    drawn = tree.sets[path]
    listed, frames = _listed(drawn), {frame for frame in drawn.series if frame}
    kind = next((tree.modality_of[u] for u in (*listed, *frames) if u in tree.modality_of), "")
    fits = [one for one in tree.series.values() if one.uid in listed or one.frame in frames]
    ours = [one for one in fits if _may_be_one(one.patient, drawn.patient)]
    remedy = "put the CT that it belongs to back, or remove it"
    if kind and not fits:
        if not any(_may_be_one(one.patient, drawn.patient) for one in tree.series.values()):
            return None, None
        problem = f"it is drawn on images of modality {kind}"
        remedy = "export the contours on the planning CT; those on other images are not read"
        return _finding(path, problem, remedy, "warning"), None
    if ours and any(one.quarrel for one in ours):
        return _finding(path, "the CT that it names is several scans", remedy, "error"), None
    if ours:
        problem = "CTs of several patients bear the UIDs that it refers to"
        remedy = "anonymise CTs and structure sets again, with UIDs of their own for each patient"
        return _finding(path, problem, remedy, "error"), None
    if fits:
        problem = "it refers to a CT of this archive, but its PatientID is another than the CT's"
        remedy = "if both are of one patient, correct PatientID in one of them; else remove it"
        return _finding(path, problem, remedy, "error"), _only(fits, cases)
    problem = "no CT here has the UIDs of series or frame of reference that it refers to"
    remedy = "export or anonymise it together with its CT, so that both keep the same UIDs"
    if not listed and not frames:
        problem = "it refers to no series and to no frame of reference"
        remedy = "export it again with its references, together with its CT"
    return _finding(path, problem, remedy, "error"), _meant(path, drawn, cases)


def _meant(path: Path, drawn: StructureSet, cases: Sequence[Series]) -> Series | None:
    """The one case without structures that is of the set's patient, or lies beside it."""
    of_patient = [one for one in cases if drawn.patient and one.patient == drawn.patient]
    beside = [one for one in cases if one.folder == path.parent]
    for group in (of_patient, beside):
        if len(group) == 1:
            return group[0]
    return None


def _only(fits: Sequence[Series], cases: Sequence[Series]) -> Series | None:
    keys = {one.key for one in fits}
    lacking = [one for one in cases if one.key in keys]
    return lacking[0] if len(lacking) == 1 else None


def _finding(path: Path, problem: str, remedy: str, severity: str) -> Finding:
    name = path.name.replace("'", "").replace('"', "")
    return Finding(CODE, severity, "", "", f"structure set '{name}': {problem}", remedy)


def _listed(drawn: StructureSet) -> frozenset[str]:
    return frozenset[str]().union(*drawn.series.values()) - {""}


def _may_be_one(patient: str, other: str) -> bool:
    return not patient or not other or patient == other
