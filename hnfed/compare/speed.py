"""How fast a variant learned: epochs and seconds to a validation Dice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hnfed.compare.runs import Scored
from hnfed.compare.variants import VariantPhase


@dataclass(frozen=True)
class Speed:
    """How fast a variant learned, as means over the seeds that got there.

    Attributes:
        best: highest validation Dice, of each seed.
        best_epoch, best_seconds: when.
        to_level: (seeds that reached the level, epoch, seconds).
        to_reference: the same for the reference's best validation Dice.
        seeds: with a curve.
    """

    variant: str
    seeds: int
    best: float | None
    best_epoch: float | None
    best_seconds: float | None
    to_level: tuple[int, float | None, float | None]
    to_reference: tuple[int, float | None, float | None]


def speed(result: VariantPhase, base: VariantPhase, level: float) -> Speed:
    """How fast a variant learned, to a Dice of `level` and to the best of `base`."""
    tops = [max(curve, key=lambda s: s.dice) for curve in result.curves]
    theirs = mean_of(max(s.dice for s in curve) for curve in base.curves)
    return Speed(
        result.variant.label,
        len(result.curves),
        mean_of(s.dice for s in tops),
        mean_of(s.epoch for s in tops),
        mean_of(s.seconds for s in tops),
        _until(result.curves, level),
        (0, None, None) if theirs is None else _until(result.curves, theirs),
    )


def _until(
    curves: Sequence[Sequence[Scored]], level: float
) -> tuple[int, float | None, float | None]:
    """Seeds that reach a Dice, and the first epoch and second at which they do."""
    first = [next((s for s in curve if s.dice >= level), None) for curve in curves]
    there = [s for s in first if s is not None]
    return len(there), mean_of(s.epoch for s in there), mean_of(s.seconds for s in there)


def mean_curve(curves: Sequence[Sequence[Scored]]) -> list[tuple[float, float]]:
    """Mean over the seeds at the epochs that all of them have."""
    by_epoch = [{s.epoch: s.dice for s in curve} for curve in curves]
    shared = sorted(set.intersection(*(set(c) for c in by_epoch)))
    return [(e, math.fsum(c[e] for c in by_epoch) / len(by_epoch)) for e in shared]


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known; None where none is."""
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None
