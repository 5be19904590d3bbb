"""The numbers of a comparison: tables by organ and site, differences, gains, speed of learning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from core.run_records import mapping, number
from hnfed.compare.notes import left_out
from hnfed.compare.runs import ALONE, POOLED
from hnfed.compare.speed import Speed, mean_curve, mean_of, speed
from hnfed.compare.variants import ALL, Patient, Variant, VariantPhase, in_phase
from hnfed.evaluate.statistics import Difference, Floats, estimate, holm, paired, verdict

MEAN = "mean"


@dataclass(frozen=True)
class Row:
    """One line of `compare.csv`.

    Attributes:
        site: a site, or ``all``.
        organ: an organ, or ``mean``: unweighted over the organs.
        n: annotated contours; of ``mean`` their sum.
        missed: contours of which nothing was found; a fraction where seeds are averaged.
        dice, low, high: with its 95 % interval over patients.
        hd95_mm: over the contours found.
        hd95_mm_penalised: over all of them.
        pairs: patients that the reference has as well.
        difference, diff_low, diff_high: Dice, this variant minus the reference, over the pairs.
        p, p_holm, p_smallest: Wilcoxon; adjusted over the table; what so few pairs can reach.
        verdict: ``better | worse | inconclusive``; "" for the reference and without pairs.
    """

    phase: str
    variant: str
    site: str
    organ: str
    n: int | None = None
    missed: float | None = None
    dice: float | None = None
    low: float | None = None
    high: float | None = None
    hd95_mm: float | None = None
    hd95_mm_penalised: float | None = None
    pairs: int | None = None
    difference: float | None = None
    diff_low: float | None = None
    diff_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    p_smallest: float | None = None
    verdict: str = ""


COLUMNS = tuple(f.name for f in fields(Row))


@dataclass(frozen=True)
class Gain:
    """What a variant has on a site's test cases beyond a model without the others, or without it.

    Attributes:
        variant: label; where it could be doubted, with that of what it is held against.
        pooled: the variant had all cases in one place, which is more than joining.
    """

    variant: str
    pooled: bool
    site: str
    organ: str
    difference: Difference
    p_holm: float | None
    verdict: str


@dataclass(frozen=True)
class PhaseTable:
    """A phase compared.

    Attributes:
        organs: of all variants, in the first one's order.
        sites: with test cases.
        rows: variant by variant; first over all sites, then by site.
        comparisons: tests in the table over all sites, and in the one by site.
        patients: variant -> test patients.
        untrained: (variant, site): tested where it was not trained.
        curves: variant -> epoch -> validation Dice, the mean over its seeds.
        notes: what was left out.
    """

    phase: str
    reference: str
    organs: tuple[str, ...]
    sites: tuple[str, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[int, int]
    patients: Mapping[str, int]
    untrained: frozenset[tuple[str, str]]
    gains: tuple[Gain, ...]
    speeds: tuple[Speed, ...]
    curves: Mapping[str, Sequence[tuple[float, float]]]
    notes: tuple[str, ...]

    def row(self, variant: str, site: str, organ: str) -> Row:
        """One line; empty where there is none."""
        empty = Row(self.phase, variant, site, organ)
        return next(
            (r for r in self.rows if (r.variant, r.site, r.organ) == (variant, site, organ)), empty
        )


def phase_table(
    variants: Sequence[Variant], phase: str, reference: str, level: float
) -> PhaseTable:
    """Compares the variants in one phase.

    Args:
        variants: at least one.
        phase: that all of them have.
        reference: label of the variant that the others are compared with.
        level: validation Dice that the speed is measured to.
    """
    results = in_phase(variants, phase)
    base = next(r for r in results if r.variant.label == reference)
    organs = tuple(dict.fromkeys(o for r in (base, *results) for o in r.organs))
    sites = sorted(
        {k[0] for r in results for k in r.scores} | {s for r in results for s in r.published_sites}
    )
    overall = _adjusted(_rows(results, base, phase, ALL, organs))
    by_site = _adjusted([row for s in sites for row in _rows(results, base, phase, s, organs)])
    return PhaseTable(
        phase,
        reference,
        organs,
        tuple(sites),
        (*overall, *by_site),
        (_tests(overall), _tests(by_site)),
        {r.variant.label: len(r.patients(ALL)) for r in results},
        frozenset(
            (r.variant.label, s)
            for r in results
            for s in {k[0] for k in r.scores}
            if r.trained and s not in r.trained
        ),
        _gains(results, sites, organs),
        tuple(speed(r, base, level) for r in results if r.curves),
        {r.variant.label: mean_curve(r.curves) for r in results if r.curves},
        tuple(left_out(results, base)),
    )


def _dice(result: VariantPhase, patients: Sequence[Patient], organs: Sequence[str]) -> Floats:
    """(patients, organs), NaN where there is no score."""
    table = np.full((len(patients), len(organs)), np.nan)
    for i, (site, case) in enumerate(patients):
        for j, organ in enumerate(organs):
            score = result.scores.get((site, case, organ))
            if score is not None:
                table[i, j] = score.dice
    return table


def _rows(
    results: Sequence[VariantPhase],
    base: VariantPhase,
    phase: str,
    site: str,
    organs: Sequence[str],
) -> list[Row]:
    """A variant's organs and their mean at one site, or at all."""
    rows = []
    for result in results:
        own = [o for o in organs if o in result.organs]
        for organ, chosen in [*((o, [o]) for o in own), (MEAN, own)]:
            row = _measured(result, Row(phase, result.variant.label, site, organ), chosen)
            if row is None:
                continue
            shared = [o for o in chosen if o in base.organs]
            if result is not base and result.scores and base.scores:
                difference = difference_of(result, base, site, shared)
                row = replace(
                    row,
                    pairs=difference.patients,
                    difference=difference.value,
                    diff_low=difference.low,
                    diff_high=difference.high,
                    p=difference.p,
                    p_smallest=difference.p_smallest,
                )
            rows.append(row)
    return rows


def difference_of(
    first: VariantPhase, second: VariantPhase, site: str, organs: Sequence[str]
) -> Difference:
    """Paired over the patients that both scored at a site, or at all."""
    known = set(second.patients(site))
    common = [p for p in first.patients(site) if p in known]
    return paired(_dice(first, common, organs), _dice(second, common, organs))


def _measured(result: VariantPhase, row: Row, organs: Sequence[str]) -> Row | None:
    """The row with its scores; None where the variant has none there."""
    if not result.scores:
        return _published(result, row)
    patients = result.patients(row.site)
    told = estimate(_dice(result, patients, organs))
    if told.value is None:
        return None
    cells = [_distances(result, patients, organ) for organ in organs]
    cells = [cell for cell in cells if cell["n"]]
    return replace(
        row,
        n=sum(cell["n"] for cell in cells),
        missed=math.fsum(cell["missed"] for cell in cells),
        dice=told.value,
        low=told.low,
        high=told.high,
        hd95_mm=mean_of(cell["hd95_mm"] for cell in cells),
        hd95_mm_penalised=mean_of(cell["hd95_mm_penalised"] for cell in cells),
    )


def _distances(result: VariantPhase, patients: Sequence[Patient], organ: str) -> dict[str, Any]:
    scores = [s for p in patients if (s := result.scores.get((*p, organ))) is not None]
    found = [(s.hd95_mm, 1 - s.missed) for s in scores if s.hd95_mm is not None]
    weight = math.fsum(w for _, w in found)
    costs = [s.penalised_mm for s in scores if s.penalised_mm is not None]
    return {
        "n": len(scores),
        "missed": math.fsum(s.missed for s in scores),
        "hd95_mm": math.fsum(v * w for v, w in found) / weight if weight else None,
        "hd95_mm_penalised": mean_of(costs) if len(costs) == len(scores) else None,
    }


def _published(result: VariantPhase, row: Row) -> Row | None:
    """What a server knows: no single case, so no interval."""
    if row.site == ALL:
        mean = result.published
        cell = mean if row.organ == MEAN else mapping(mapping(mean.get("organs")).get(row.organ))
    elif row.organ == MEAN:
        return None
    else:
        cell = mapping(result.published_sites.get(row.site, {}).get(row.organ))
    if not cell.get("n"):
        return None
    return replace(
        row,
        n=int(cell["n"]),
        missed=number(cell.get("missed")),
        dice=number(cell.get("dice")),
        hd95_mm=number(cell.get("hd95_mm")),
        hd95_mm_penalised=number(cell.get("hd95_mm_penalised")),
    )


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    """Holm over all comparisons of the rows, and the verdicts."""
    adjusted = []
    for row, p_holm in zip(rows, holm([row.p for row in rows]), strict=True):
        told = Difference(
            row.pairs or 0,
            row.difference,
            row.diff_low,
            row.diff_high,
            row.p,
            row.p_smallest,
        )
        adjusted.append(replace(row, p_holm=p_holm, verdict=verdict(told, p_holm)))
    return adjusted


def _tests(rows: Sequence[Row]) -> int:
    return sum(row.p is not None for row in rows)


def _gains(
    results: Sequence[VariantPhase], sites: Sequence[str], organs: Sequence[str]
) -> tuple[Gain, ...]:
    """Variants trained at a site against local-only ones and those trained without it, there."""
    alone = [r for r in results if r.variant.baseline == ALONE and r.scores]
    found = []
    for result in (r for r in results if r.scores and r.variant.baseline != ALONE):
        for site in (s for s in sites if s in result.trained):
            without = [r for r in results if r.trained and site not in r.trained]
            for rival in (*alone, *without):
                label = result.variant.label
                if rival in without:
                    label += f" over {rival.variant.label}, trained without it"
                elif len(alone) > 1:
                    label += f" over {rival.variant.label}"
                both = [o for o in organs if o in result.organs and o in rival.organs]
                for organ, chosen in [(MEAN, both), *((o, [o]) for o in both)]:
                    told = difference_of(result, rival, site, chosen)
                    if told.value is not None:
                        names = (label, result.variant.baseline == POOLED, site, organ)
                        found.append((names, told))
    adjusted = holm([told.p for _, told in found])
    return tuple(
        Gain(*names, told, p, verdict(told, p))
        for (names, told), p in zip(found, adjusted, strict=True)
    )
