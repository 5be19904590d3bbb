"""Scores contours against an archive on each CT's own grid: a model's, or drawn before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from core.anatomy import BUILT_IN, Organ, vocabulary
from core.data.archive import Archive, CaseRef, read_case
from core.data.volume import Volume
from core.errors import CaseError, Finding, UserError
from core.metrics import CaseScore, organ_sums, pool_sites, score_case, summarise

Masks = Mapping[str, npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Evaluation:
    """Scores of an archive's cases.

    Attributes:
        organs: organs that were asked for, in table order.
        scores: one a case and annotated organ.
        cases: cases read.
        penalty: what a missed organ costs in ``hd95_mm_penalised``, in words.
        notes: what a reader of the table must know; one sentence each.
        findings: what was left out of the archive.
        sites: case -> its site, where the archive names sites.
    """

    organs: tuple[str, ...]
    scores: tuple[CaseScore, ...]
    cases: int
    penalty: str
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    sites: Mapping[str, str] = field(default_factory=dict)


def vocabulary_of(organs: Sequence[str]) -> dict[str, Organ]:
    """The built-in organs, and those of a checkpoint that its plan defined itself."""
    return vocabulary({organ: {} for organ in organs if organ not in BUILT_IN})


def choose_cases(archive: Archive, split: str, site: str | None) -> list[CaseRef]:
    """The cases of one split and site, as ``cases.csv`` of the archive says.

    Args:
        archive: opened archive.
        split: ``test | val | train | all``.
        site: value of the column ``site``; None for all. Ignored where the archive names no sites.

    Raises:
        UserError: the archive gives no split (or site) of that name.
    """
    refs = list(archive.cases)
    sites = sorted({ref.site for ref in refs if ref.site})
    if site is not None and sites:
        refs = [ref for ref in refs if ref.site == site]
        if not refs:
            raise UserError("--site", site, f"use one of {', '.join(sites)}", problem="not in DATA")
    if split == "all":
        return refs
    if not any(ref.split for ref in refs):
        raise UserError(
            "--split",
            split,
            "use --split all, or put a cases.csv (columns case, split) at the root of DATA",
            problem="DATA has no cases.csv that gives splits",
        )
    chosen = [ref for ref in refs if ref.split == split]
    if not chosen:
        known = ", ".join(sorted({ref.split for ref in refs if ref.split}))
        raise UserError("--split", split, f"use one of {known}, all", problem="no case in it")
    return chosen


def evaluate(
    archive: Archive,
    refs: Sequence[CaseRef],
    organs: Sequence[str],
    segment: Callable[[Volume], tuple[Masks, float]],
    *,
    penalty: str,
    notes: Sequence[str] = (),
    findings: Sequence[Finding] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Scores cases one after another; only one is in memory at a time.

    A case whose CT or prediction cannot be used is left out, counted in a note and named in a
    finding; the others go on.

    Args:
        archive: where the cases lie.
        refs: the cases.
        organs: organs to score, where a case annotates them.
        segment: gives a case's predicted masks (Z, Y, X) on the CT's grid, organs that were not
            found left out, and what a missed organ costs in mm. A `CaseError` leaves the case out.
        penalty: the cost of a missed organ, in words.
        notes: passed on.
        findings: those of the archive, passed on.
        progress: called before each case with (done, in all, case).

    Raises:
        UserError: no case could be used, or none annotates any of the organs.
    """
    scores: list[CaseScore] = []
    noticed: list[Finding] = []
    lost: list[Finding] = []
    cases = 0
    for done, ref in enumerate(refs):
        if progress is not None:
            progress(done, len(refs), ref.case)
        try:
            volume, left_out = read_case(archive, ref, organs)
            noticed += left_out
            masks, penalty_mm = segment(volume)
        except CaseError as error:
            message = str(error).splitlines()[0]
            lost.append(Finding(error.code, "error", ref.case, "", message, error.remedy))
            continue
        cases += 1
        scores += _scores(volume, organs, masks, penalty_mm)
    noticed = lost + noticed
    if not scores:
        reason = noticed[0].message if noticed else f"no case annotates {', '.join(organs)}"
        remedy = lost[0].remedy if lost else "see `hnfed check DATA`"
        raise UserError("--data", archive.root, remedy, problem=f"nothing to score: {reason}")
    if lost:
        told = f"{len(lost)} of {len(refs)} cases could not be used; the scores are without them."
        notes = [*notes, told]
    return Evaluation(
        tuple(organs),
        tuple(scores),
        cases,
        penalty,
        tuple(notes),
        (*findings, *noticed),
        {ref.case: ref.site for ref in refs if ref.site},
    )


def _scores(
    volume: Volume, organs: Sequence[str], masks: Masks, penalty_mm: float
) -> list[CaseScore]:
    """Organ by organ, so that predicted masks may overlap as the annotated ones may."""
    scores: list[CaseScore] = []
    for organ in organs:
        if organ not in volume.masks:
            continue
        predicted = masks.get(organ)
        labels = (
            np.zeros(volume.geometry.size, np.uint8)
            if predicted is None
            else np.ascontiguousarray(predicted).view(np.uint8)
        )
        scores += score_case(
            volume.case,
            labels,
            [organ],
            {organ: volume.masks[organ]},
            volume.geometry.spacing_mm,
            penalty_mm,
        )
    return scores


def as_json(result: Evaluation, *, per_case: bool) -> dict[str, Any]:
    """The content of ``evaluate --json``."""
    organs = summarise(result.scores, result.organs, 1)
    content: dict[str, Any] = {
        "schema": 1,
        "organs": organs,
        "mean": _mean(result),
        "penalty": result.penalty,
        "notes": list(result.notes),
        "findings": [asdict(finding) for finding in result.findings],
    }
    if per_case:
        content["cases"] = [
            asdict(score) | {"site": result.sites.get(score.case)} for score in result.scores
        ]
    return content


def _mean(result: Evaluation) -> dict[str, Any]:
    """Means over organs; the archive counts as one site, and nothing is suppressed."""
    pooled = pool_sites({"data": organ_sums(result.scores, result.organs)}, result.organs, 1)
    return {key: value for key, value in pooled.items() if key != "organs"}


def table(result: Evaluation, *, per_case: bool) -> str:
    """The scores as text, with the definitions that a reader needs."""
    rows = [("organ", "n", "missed", "Dice", "HD95 mm")]
    summary = summarise(result.scores, result.organs, 1)
    mean = _mean(result)
    for name, cell in (*((o, summary[o]) for o in result.organs), ("mean", mean)):
        counts = (str(cell["n"]), str(cell["missed"]))
        rows.append((name, *counts, _dice(cell["dice"]), _mm(cell["hd95_mm"])))
    text = aligned(rows)
    if per_case:
        cases = [("case", "organ", "Dice", "HD95 mm")]
        cases += [
            (s.case, s.organ, _dice(s.dice), _mm(s.hd95_mm))
            for s in sorted(result.scores, key=lambda s: (s.case, result.organs.index(s.organ)))
        ]
        text += "\n\n" + aligned(cases, words=2)
    return f"{text}\n\n{_footnote(result, mean)}"


def _footnote(result: Evaluation, mean: Mapping[str, Any]) -> str:
    lines = [
        f"{result.cases} cases. n: cases in which the organ is annotated.",
        "mean: organs weigh equally; n and missed are sums.",
        "HD95: the larger of the two directed 95th percentiles of distances between border voxels,",
        "  on the CT's own grid, over the cases in which the organ was found.",
        "missed: the prediction is empty; it counts as Dice 0 and has no HD95.",
        f"  Mean HD95 with {result.penalty} for each miss: {_mm(mean['hd95_mm_penalised'])} mm.",
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _dice(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mm(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def aligned(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Columns of equal width: the first `words` to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
