"""Measures contours against an archive on each CT's own grid: a model's, or drawn before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from core.archives.archive import Archive, CaseRef, read_case
from core.archives.images.volume import Volume
from core.errors import CaseError, Finding, UserError
from core.metrics.scores import NOTHING, Outline
from core.organs.vocabulary import BUILT_IN, Organ, vocabulary
from core.text import aligned, figure
from hnfed.evaluate.measures import CaseMeasures, measure, summary, summary_rows

Outlines = Mapping[str, Outline]

# Measure, heading and digits of the columns of the text table.
SHOWN = (
    ("dice", "Dice", 3),
    ("hd95_mm", "HD95 mm", 2),
    ("msd_mm", "MSD mm", 2),
    ("surface_dice_1mm", "SD 1mm", 3),
    ("surface_dice_2mm", "SD 2mm", 3),
    ("detection_rate", "found", 2),
    ("volume_ml", "mL", 1),
    ("volume_bias_percent", "bias %", 1),
)
SHOWN_CASE = (*SHOWN[:5], ("volume_ml", "mL", 1), ("predicted_ml", "predicted mL", 1))
WITH_INTERVAL = ("dice", "hd95_mm")
RULES = (
    "mean: organs weigh equally; n and missed are sums. [low, high]: 95 % interval, bootstrap over",
    "  the cases; of all measures in --json and --csv.",
    "HD95: the larger of the two directed 95th percentiles of distances between border voxels,",
    "  on the CT's own grid. MSD: mean distance between the borders, both ways. SD: surface Dice,",
    "  the share of both borders within 1 or 2 mm of the other. bias: predicted volume against the",
    "  reference's.",
    "missed: the prediction is empty; it counts as 0 in Dice, surface Dice and found, and is left",
    "  out of HD95, MSD and bias, which are over the cases in which the organ was found.",
)


@dataclass(frozen=True)
class Method:
    """What is evaluated: a model, or contours that were drawn before.

    Attributes:
        organs: organs to score, where a case annotates them.
        segment: gives a case's predicted organs on the CT's grid, those that were not found empty
            or left out, and what a missed organ costs in mm. A `CaseError` leaves the case out.
        penalty: the cost of a missed organ, in words.
        notes: what a reader of its scores must know; one sentence each.
    """

    organs: Sequence[str]
    segment: Callable[[Volume], tuple[Outlines, float]]
    penalty: str
    notes: Sequence[str] = ()


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
    scores: tuple[CaseMeasures, ...]
    cases: int
    penalty: str
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    sites: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Means and intervals by organ and over them (`hnfed.evaluate.measures.summary`)."""
        return summary(self.scores, self.organs)


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
    method: Method,
    progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Scores cases one after another; only one is in memory at a time.

    A case whose CT or prediction cannot be used is left out, counted in a note and named in a
    finding; the others go on.

    Args:
        archive: where the cases lie.
        refs: the cases.
        method: whose contours are scored.
        progress: called before each case with (done, in all, case).

    Raises:
        UserError: no case could be used, or none annotates any of the organs.
    """
    organs, notes = method.organs, list(method.notes)
    scores: list[CaseMeasures] = []
    noticed: list[Finding] = []
    lost: list[Finding] = []
    cases = 0
    for done, ref in enumerate(refs):
        if progress is not None:
            progress(done, len(refs), ref.case)
        try:
            volume, left_out = read_case(archive, ref, organs)
            noticed += left_out
            drawn, penalty_mm = method.segment(volume)
        except CaseError as error:
            lost.append(error.finding(ref.case))
            continue
        cases += 1
        scores += _scores(volume, organs, drawn, penalty_mm)
    noticed = lost + noticed
    if not scores:
        reason = noticed[0].message if noticed else f"no case annotates {', '.join(organs)}"
        remedy = lost[0].remedy if lost else "see `hnfed check DATA`"
        raise UserError("--data", archive.root, remedy, problem=f"nothing to score: {reason}")
    if lost:
        notes.append(
            f"{len(lost)} of {len(refs)} cases could not be used; the scores are without them."
        )
    return Evaluation(
        tuple(organs),
        tuple(scores),
        cases,
        method.penalty,
        tuple(notes),
        (*archive.findings, *noticed),
        {ref.case: ref.site for ref in refs if ref.site},
    )


def _scores(
    volume: Volume, organs: Sequence[str], drawn: Outlines, penalty_mm: float
) -> list[CaseMeasures]:
    """Organ by organ, so that predicted organs may overlap as the annotated ones may."""
    return [
        measure(
            volume.case,
            organ,
            drawn.get(organ, NOTHING),
            volume.masks[organ],
            volume.geometry.spacing_mm,
            penalty_mm,
        )
        for organ in organs
        if organ in volume.masks
    ]


def as_json(result: Evaluation, *, per_case: bool) -> dict[str, Any]:
    """The content of ``evaluate --json``."""
    content: dict[str, Any] = {
        "schema": 1,
        **result.summary,
        "penalty": result.penalty,
        "rules": list(RULES),
        "notes": list(result.notes),
        "findings": [asdict(finding) for finding in result.findings],
    }
    if per_case:
        content["cases"] = [
            asdict(score) | {"site": result.sites.get(score.case)} for score in result.scores
        ]
    return content


def as_rows(result: Evaluation) -> list[list[Any]]:
    """The content of ``evaluate --csv``: a header, a line an organ, the mean."""
    return summary_rows(result.summary)


def case_rows(result: Evaluation) -> list[list[Any]]:
    """The measures of each case and organ, with a header; for ``--per-case``, local."""
    columns = [f.name for f in fields(CaseMeasures)]
    lines = [[getattr(score, name) for name in columns] for score in result.scores]
    return [columns, *lines]


def table(result: Evaluation, *, per_case: bool) -> str:
    """The scores as text, with the definitions that a reader needs."""
    rows = [("organ", "n", "missed", *(title for _, title, _ in SHOWN))]
    content = result.summary
    for name, cell in (*content["organs"].items(), ("mean", content["mean"])):
        counts = (str(cell["n"]), str(cell["missed"]))
        rows.append((name, *counts, *(_shown(cell, key, digits) for key, _, digits in SHOWN)))
    text = aligned(rows)
    if per_case:
        cases = [("case", "organ", *(title for _, title, _ in SHOWN_CASE))]
        cases += [
            (s.case, s.organ, *(figure(getattr(s, key), digits) for key, _, digits in SHOWN_CASE))
            for s in sorted(result.scores, key=lambda s: (s.case, result.organs.index(s.organ)))
        ]
        text += "\n\n" + aligned(cases, words=2)
    return f"{text}\n\n{_footnote(result, content['mean'])}"


def _footnote(result: Evaluation, mean: Mapping[str, Any]) -> str:
    penalised = figure(mean["hd95_mm_penalised"], 2)
    lines = [
        f"{result.cases} cases. n: cases in which the organ is annotated.",
        *RULES,
        f"  Mean HD95 with {result.penalty} for each miss: {penalised} mm.",
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _shown(cell: Mapping[str, Any], key: str, digits: int) -> str:
    """A number, with its interval where it is one of the first two."""
    text = figure(cell.get(key), digits)
    limits = cell["intervals"].get(key) if key in WITH_INTERVAL else None
    return f"{text} [{figure(limits[0], digits)}, {figure(limits[1], digits)}]" if limits else text
