"""What `hnfed evaluate` measures of one organ of one case, and of an organ over the cases.

Beside Dice and HD95 (`core.metrics.scores`): mean surface distance, surface Dice, volume and its
bias, detection rate, each with a bootstrap interval over the cases (`hnfed.evaluate.statistics`).
Distances are those between border voxels (`core.metrics.surfaces`), each border voxel counted once;
MONAI's `compute_average_surface_distance(symmetric=True)` and `compute_surface_dice` agree.

A missed organ (empty prediction) counts 0 in Dice, surface Dice and detection rate; distances and
volumes are over the cases in which it was found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.metrics.scores import MEASURES as SCORES
from core.metrics.scores import CaseScore, Outline, organ_sums, pool_sites, score_organ
from hnfed.evaluate.statistics import estimate

# Column -> its value for a case; NaN where the case does not count.
MEASURES = (
    *SCORES,
    "msd_mm",
    "surface_dice_1mm",
    "surface_dice_2mm",
    "detection_rate",
    "volume_ml",
    "volume_bias_ml",
    "volume_bias_percent",
)
# In mL an organ's size decides: their mean over organs says nothing.
NO_MEAN = ("volume_ml", "volume_bias_ml")


@dataclass(frozen=True)
class CaseMeasures(CaseScore):
    """All measures of one annotated organ of one case.

    Attributes:
        msd_mm: mean over the border voxels of both masks of the distance to the other border; None
            where the organ was missed.
        surface_dice_1mm: as `surface_dice_2mm`, within 1 mm.
    """

    msd_mm: float | None
    surface_dice_1mm: float


def measure(
    case: str,
    organ: str,
    predicted: Outline,
    truth: npt.NDArray[np.bool_],
    spacing_mm: Sequence[float],
    penalty_mm: float,
) -> CaseMeasures:
    """Measures a prediction on the CT's own grid.

    Args:
        case: case id, kept in the result.
        organ: TG-263 name, kept in the result.
        predicted: on the grid of `truth`; `core.metrics.scores.NOTHING` where there is none.
        truth: (Z, Y, X) bool, not empty.
        spacing_mm: (z, y, x).
        penalty_mm: what a miss costs in ``hd95_mm_penalised``.
    """
    score, away = score_organ(case, organ, predicted, truth, spacing_mm, penalty_mm)
    if away is None:
        return CaseMeasures(**asdict(score), msd_mm=None, surface_dice_1mm=0.0)
    every = np.concatenate(away)
    return CaseMeasures(
        **asdict(score),
        msd_mm=float(every.mean()),
        surface_dice_1mm=float((every <= 1.0).mean()),
    )


def summary(scores: Sequence[CaseMeasures], organs: Sequence[str]) -> dict[str, Any]:
    """Each organ over its cases, and the mean over organs (they weigh equally; D18).

    Returns:
        ``{"organs": {organ: cell}, "mean": cell}``; a cell holds n, missed, the `MEASURES` and
        ``intervals``: the ends of the 95 % interval by measure, None below two cases.
    """
    pooled = pool_sites({"data": organ_sums(scores, organs)}, organs, 1)
    tables = {name: _table(scores, organs, name) for name in MEASURES}
    cells = {}
    for i, organ in enumerate(organs):
        known = pooled["organs"][organ]
        cell = _cell({name: table[:, [i]] for name, table in tables.items()}, known)
        cells[organ] = {"n": known["n"], "missed": known["missed"], **cell}
    overall = {name: table for name, table in tables.items() if name not in NO_MEAN}
    mean = {"n": pooled["n"], "missed": pooled["missed"], **_cell(overall, pooled)}
    return {"organs": cells, "mean": mean}


def summary_rows(content: Mapping[str, Any]) -> list[list[Any]]:
    """`summary` as lines of a table: a header, a line an organ, the mean."""
    ends = [f"{name}_{end}" for name in MEASURES for end in ("low", "high")]
    rows: list[list[Any]] = [["organ", "n", "missed", *MEASURES, *ends]]
    for organ, cell in (*content["organs"].items(), ("mean", content["mean"])):
        values = [cell.get(name) for name in MEASURES]
        limits = [
            limit for name in MEASURES for limit in cell["intervals"].get(name) or (None, None)
        ]
        rows.append([organ, cell["n"], cell["missed"], *values, *limits])
    return rows


def value_of(score: CaseMeasures, name: str) -> float:
    """The value of one of the `MEASURES` for a case; NaN where the case does not count."""
    missed = score.hd95_mm is None
    if name in SCORES:
        return SCORES[name].value(score) if SCORES[name].cases(1, not missed) else math.nan
    bias_ml = score.predicted_ml - score.volume_ml
    values: dict[str, float | None] = {
        "detection_rate": 0.0 if missed else 1.0,
        "volume_bias_ml": None if missed else bias_ml,
        "volume_bias_percent": None if missed else 100 * bias_ml / score.volume_ml,
    }
    value = values[name] if name in values else getattr(score, name)
    return math.nan if value is None else float(value)


def _table(
    scores: Sequence[CaseMeasures], organs: Sequence[str], name: str
) -> npt.NDArray[np.float64]:
    """(cases, organs), NaN where a case has no value."""
    cases = {case: i for i, case in enumerate(dict.fromkeys(s.case for s in scores))}
    table = np.full((len(cases), len(organs)), np.nan)
    for score in scores:
        table[cases[score.case], organs.index(score.organ)] = value_of(score, name)
    return table


def _cell(
    tables: Mapping[str, npt.NDArray[np.float64]], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Means and intervals; the means that `core.metrics.scores` publishes stand as it has them."""
    cell: dict[str, Any] = {}
    intervals: dict[str, list[float] | None] = {}
    for name, table in tables.items():
        told = estimate(table)
        cell[name] = known.get(name, told.value)
        limited = told.low is not None and told.high is not None
        intervals[name] = [float(told.low or 0.0), float(told.high or 0.0)] if limited else None
    return {**cell, "intervals": intervals}
