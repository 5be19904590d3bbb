"""Dice and HD95 per organ on the CT's own grid, and what of them may be published.

HD95 is the larger of the two directed 95th percentiles (numpy's linear interpolation) of the
distances in mm between border voxels: mask voxels with one of their 6 neighbours outside the mask,
beyond the volume counting as outside. It is MONAI's definition; medpy pools both directions,
Google's surface-distance weighs surface elements by area, and both give other numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from core.metrics.surfaces import Floats, Indices, border, distances_mm, foreground

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]

PERCENTILE, SURFACE_MM = 95.0, 2.0
LONGEST_MM = 1e4  # no distance in a patient is longer


@dataclass(frozen=True)
class CaseScore:
    """Scores of one annotated organ of one case.

    Attributes:
        dice: 0 where the prediction is empty.
        hd95_mm: None where the prediction is empty (missed), NaN where it was not computed.
        penalty_mm: what a miss costs in `hd95_mm_penalised`: the diagonal of the crop.
        volume_ml: of the annotation, on the CT's own grid.
        predicted_ml: of the prediction on the same grid; 0 where it is empty.
        surface_dice_2mm: share of the border voxels of both masks within 2 mm of the other border;
            0 where the prediction is empty, NaN where it was not computed.
    """

    case: str
    organ: str
    dice: float
    hd95_mm: float | None
    penalty_mm: float
    volume_ml: float
    predicted_ml: float
    surface_dice_2mm: float


@dataclass(frozen=True)
class OrganSum:
    """Exact sums over the annotated cases of one organ: a site's private numbers.

    Attributes:
        n: annotated cases.
        detected: those with a prediction.
        dice: sum of Dice over the n cases.
        hd95_mm: sum of HD95 over the detected cases (NaN: not computed).
        penalised_mm: the same plus the penalty of each missed case.
    """

    n: int = 0
    detected: int = 0
    dice: float = 0.0
    hd95_mm: float = 0.0
    penalised_mm: float = 0.0

    def plus(self, other: OrganSum) -> OrganSum:
        """Returns the sums over both sets of cases."""
        return OrganSum(*(getattr(self, f) + getattr(other, f) for f in SUM_FIELDS))


@dataclass(frozen=True)
class Measure:
    """What is told of an organ over a site's cases: summed there, published as a mean.

    Attributes:
        field: of `OrganSum`, where its sum stands and by which it travels.
        over: ``n`` or ``detected``: whose cases count.
        value: of one case that counts.
        highest: of one case; the lowest is 0.
        words: what the sum is, for the list of what may leave a site.
        heading: of its column in the report.
        unit: "" for a share of 1.
    """

    field: str
    over: str
    value: Callable[[CaseScore], float]
    highest: float
    words: str
    heading: str
    unit: str = ""

    def cases(self, n: Any, detected: Any) -> Any:
        """Those of both that count, be they numbers or lists."""
        return n if self.over == "n" else detected


def _hd95_mm(score: CaseScore) -> float:
    return score.penalty_mm if score.hd95_mm is None else score.hd95_mm


# By key of a published cell. Messages, guard, server and report read them here.
MEASURES: Mapping[str, Measure] = {
    "dice": Measure("dice", "n", lambda s: s.dice, 1.0, "sum of Dice over the cases", "Dice"),
    "hd95_mm": Measure(
        "hd95_mm",
        "detected",
        _hd95_mm,
        LONGEST_MM,
        "sum of HD95 over the cases in which it was found",
        "HD95",
        "mm",
    ),
    "hd95_mm_penalised": Measure(
        "penalised_mm",
        "n",
        _hd95_mm,
        LONGEST_MM,
        "sum of HD95 over all cases, a miss as the crop's diagonal",
        "penalised",
        "mm",
    ),
}
SUM_FIELDS = ("n", "detected", *(m.field for m in MEASURES.values()))
SUPPRESSED: Mapping[str, Any] = {
    **dict.fromkeys(("n", "missed", *MEASURES)),
    "suppressed": True,
}


def dice(pred: Mask, truth: Mask) -> float:
    """Returns 2 |P and T| / (|P| + |T|), 0 for an empty prediction.

    Args:
        pred: (Z, Y, X) bool.
        truth: (Z, Y, X) bool, not empty (an empty truth is no case, D18).
    """
    assert truth.any(), "empty truth"
    both = int(np.count_nonzero(pred & truth))
    return 2 * both / (int(np.count_nonzero(pred)) + int(np.count_nonzero(truth)))


class Outline(NamedTuple):
    """A predicted organ: flat indices of its voxels, and of those at its border."""

    voxels: Indices
    border: Indices


NOTHING = Outline(np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp))


def outline(mask: Mask) -> Outline:
    """Of a mask (Z, Y, X); empty where it is."""
    voxels = foreground(mask)
    return Outline(voxels, border(mask, voxels))


def outlines(labelmap: Labels, organs: Sequence[str]) -> dict[str, Outline]:
    """Of each organ of a label map (Z, Y, X), i + 1 = organs[i], in one pass over it."""
    voxels = foreground(labelmap)
    edges = border(labelmap, voxels)
    flat = np.ascontiguousarray(labelmap).reshape(-1)
    labels, edge_labels = flat[voxels], flat[edges]
    return {
        organ: Outline(voxels[labels == i], edges[edge_labels == i])
        for i, organ in enumerate(organs, start=1)
    }


def score_organ(
    case: str,
    organ: str,
    predicted: Outline,
    truth: Mask,
    spacing_mm: Sequence[float],
    penalty_mm: float,
) -> tuple[CaseScore, tuple[Floats, Floats] | None]:
    """Scores one organ.

    Args:
        case: case id, kept in the score.
        organ: kept in the score.
        predicted: on the grid of `truth`.
        truth: (Z, Y, X) bool, not empty (an empty truth is no case, D18).
        spacing_mm: (z, y, x).
        penalty_mm: what a miss costs.

    Returns:
        The score, and the distances in mm of each border's voxels to the other border; None for an
        empty prediction.
    """
    inside, found, voxel_ml = foreground(truth), predicted.voxels, math.prod(spacing_mm) / 1000
    assert inside.size, f"{case}: empty truth of {organ}"
    volume_ml, predicted_ml = inside.size * voxel_ml, found.size * voxel_ml
    if not found.size:
        return CaseScore(case, organ, 0.0, None, penalty_mm, volume_ml, 0.0, 0.0), None
    both = int(np.count_nonzero(truth.reshape(-1)[found]))
    overlap = 2 * both / (found.size + inside.size)
    away = distances_mm(predicted.border, border(truth, inside), truth.shape, spacing_mm)
    farthest = max(float(np.percentile(directed, PERCENTILE)) for directed in away)
    near = float((np.concatenate(away) <= SURFACE_MM).mean())
    score = CaseScore(case, organ, overlap, farthest, penalty_mm, volume_ml, predicted_ml, near)
    return score, away


def score_case(
    case: str,
    labelmap: Labels,
    organs: Sequence[str],
    truth: Mapping[str, Mask],
    spacing_mm: Sequence[float],
    penalty_mm: float,
) -> list[CaseScore]:
    """Scores a predicted label map against the organs that the case annotates.

    Args:
        case: case id, kept in the scores.
        labelmap: (Z, Y, X) uint8 on the CT's grid, i + 1 = organs[i].
        organs: organs of the phase.
        truth: annotated organ -> (Z, Y, X) bool on the same grid, none empty; they may overlap.
        spacing_mm: (z, y, x).
        penalty_mm: diagonal of the crop.

    Returns:
        One score for each organ in both `organs` and `truth`, in the order of `organs`.
    """
    scores = []
    for organ, drawn in outlines(labelmap, organs).items():
        if organ in truth:
            mask = truth[organ]
            assert mask.shape == labelmap.shape, (organ, mask.shape, labelmap.shape)
            scores.append(score_organ(case, organ, drawn, mask, spacing_mm, penalty_mm)[0])
    return scores


def overlap_case(
    case: str,
    labelmap: Labels,
    organs: Sequence[str],
    truth: Mapping[str, Mask],
    spacing_mm: Sequence[float],
    penalty_mm: float,
) -> list[CaseScore]:
    """`score_case` without distances: `hd95_mm` is NaN, or None where an organ was missed."""
    voxel_ml = math.prod(spacing_mm) / 1000
    drawn = np.bincount(labelmap.reshape(-1), minlength=len(organs) + 1)
    scores = []
    for position, organ in enumerate(organs, start=1):
        if organ not in truth:
            continue
        mask, found = truth[organ], int(drawn[position])
        assert mask.shape == labelmap.shape, (organ, mask.shape, labelmap.shape)
        inside = foreground(mask)
        assert inside.size, f"{case}: empty truth of {organ}"
        both = int(np.count_nonzero(labelmap.reshape(-1)[inside] == position))
        overlap, far = 2 * both / (found + inside.size), math.nan if found else None
        sizes = inside.size * voxel_ml, found * voxel_ml
        near = math.nan if found else 0.0
        scores.append(CaseScore(case, organ, overlap, far, penalty_mm, *sizes, near))
    return scores


def without_distances(
    sites: Mapping[str, Mapping[str, OrganSum]],
) -> dict[str, dict[str, OrganSum]]:
    """The sums by site and organ with HD95 as not computed: what stands there is none."""
    return {
        site: {o: replace(s, hd95_mm=math.nan, penalised_mm=math.nan) for o, s in sums.items()}
        for site, sums in sites.items()
    }


def organ_sums(scores: Iterable[CaseScore], organs: Sequence[str]) -> dict[str, OrganSum]:
    """Returns the exact sums per organ over a site's cases (n = 0 where none is annotated)."""
    sums = {organ: OrganSum() for organ in organs}
    for s in scores:
        if s.organ not in sums:
            continue
        found = int(s.hd95_mm is not None)
        told = {m.field: m.value(s) if m.cases(1, found) else 0.0 for m in MEASURES.values()}
        sums[s.organ] = sums[s.organ].plus(OrganSum(1, found, **told))
    return sums


def of_few(n: float, detected: float, min_cell: int) -> bool:
    """Whether a sum over `n` cases (-1: withheld), or over those found, is of too few."""
    return n < 0 or 0 < n < min_cell or 0 < detected < min_cell


def pool_sites(
    sites: Mapping[str, Mapping[str, OrganSum]], organs: Sequence[str], min_cell: int
) -> dict[str, Any]:
    """Pools the sites' cases per organ and averages over organs, publishing no suppressed cell.

    A site with fewer than `min_cell` cases of an organ is left out there, unless at least two sites
    are and together reach `min_cell`: so what remains after subtracting every published cell is
    nothing, or a sum over at least two sites and `min_cell` cases. Where the organ was found in
    fewer cases, their number and HD95, which is of them alone, are not published; Dice is.

    Args:
        sites: site -> organ -> its exact sums; -1 cases where it withheld them.
        organs: organs of the phase.
        min_cell: smallest number of cases that is published.

    Returns:
        ``{"dice", "hd95_mm", "hd95_mm_penalised", "missed", "n", "organs": {organ: cell}}``: the
        first three are unweighted means over the organs that have the number (a missed organ counts
        Dice 0); `n` and `missed` are sums over the published cells.
    """
    cells = {}
    for organ in organs:
        found = [site[organ] for site in sites.values() if organ in site]
        cells[organ] = _pool([s for s in found if s.n >= 0], min_cell)
        if not cells[organ]["n"] and any(s.n < 0 for s in found):
            cells[organ] = dict(SUPPRESSED)
    shown = [cell for cell in cells.values() if cell["n"]]
    means = {key: _mean([cell[key] for cell in shown if cell[key] is not None]) for key in MEASURES}
    missed = [cell["missed"] for cell in shown]
    totals = {"missed": None if None in missed else sum(missed), "n": sum(c["n"] for c in shown)}
    return {**means, **totals, "organs": cells}


def _pool(sums: Sequence[OrganSum], min_cell: int) -> dict[str, Any]:
    small = [s for s in sums if 0 < s.n < min_cell]
    used = [s for s in sums if s.n >= min_cell]
    if len(small) >= 2 and sum(s.n for s in small) >= min_cell:
        used.append(_added(small))
    if small and not used:
        return dict(SUPPRESSED)
    rarely = [of_few(s.n, s.detected, min_cell) for s in used]
    total = _added([_unfound(s) if few else s for s, few in zip(used, rarely, strict=True)])
    means = {
        key: _ratio(getattr(total, m.field), m.cases(total.n, total.detected))
        for key, m in MEASURES.items()
    }
    return {"n": total.n, "missed": None if any(rarely) else total.n - total.detected, **means}


def _added(sums: Sequence[OrganSum]) -> OrganSum:
    return functools.reduce(OrganSum.plus, sums, OrganSum())


def _unfound(s: OrganSum) -> OrganSum:
    """Without what is of the few cases alone in which the organ was found."""
    return replace(s, detected=0, hd95_mm=0.0, penalised_mm=math.nan)


def _ratio(total: float, count: int) -> float | None:
    return None if count == 0 or math.isnan(total) else total / count


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
