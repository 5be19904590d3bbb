"""The statistics of the deciding experiment, on plain tables; docs/deciding.md says what for.

Legend: differences (patients,), folds (patients,), curves (patients, seeds, steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hnfed.evaluate.clusters import clustered
from hnfed.evaluate.statistics import ALPHA, LEVEL

Floats = npt.NDArray[np.float64]
EXCHANGES = 100_000
RESAMPLES = 10_000
CHUNK = 10_000
PLATEAU = 0.95  # share of the plateau of scratch that counts as reached


def permutation_p(differences: Floats, *, exchanges: int = EXCHANGES, seed: int = 0) -> float:
    """Two-sided p of the mean difference, the two arms of a patient exchanged at random.

    Both arms judged the same patient in the same fold, so exchanging them stays within the fold.
    (1 + exchanges with a mean as far from 0) / (1 + exchanges).
    """
    generator = np.random.default_rng(seed)
    found = abs(float(differences.mean())) - 1e-12
    extreme = 0
    for start in range(0, exchanges, CHUNK):
        signs = generator.integers(0, 2, (min(CHUNK, exchanges - start), differences.size)) * 2 - 1
        extreme += int((np.abs(signs @ differences) / differences.size >= found).sum())
    return (1 + extreme) / (1 + exchanges)


@dataclass(frozen=True)
class Judged:
    """A mean difference of two arms.

    Attributes:
        patients: how many.
        mean: over the patients.
        low: of the bootstrap interval over patients, within folds.
        high: of the same.
        p: of the permutation within folds: the primary test.
        fold_low: of the interval with a fold as one draw (D19); None below three folds.
        fold_high: of the same.
        fold_p: of that test.
    """

    patients: int
    mean: float
    low: float
    high: float
    p: float
    fold_low: float | None
    fold_high: float | None
    fold_p: float | None

    @property
    def verdict(self) -> str:
        """In words, of the method or of these networks alone."""
        if self.p >= ALPHA:
            return "inconclusive: no difference is shown, and none is excluded beyond the interval"
        side = "better" if self.mean > 0 else "worse"
        if self.fold_p is not None and self.fold_p < ALPHA:
            return f"shown: {side}"
        return f"{side} for these trained networks; not shown for the method (a fold as one draw)"


def judged(differences: Floats, folds: Sequence[str], *, seed: int = 0) -> Judged:
    """Mean difference with both tests.

    Args:
        differences: one a patient: first arm minus second, mean of organs and seeds.
        folds: of the patients.
        seed: of exchanges and resamples.
    """
    generator = np.random.default_rng(seed)
    rows = _resampled(folds, generator, RESAMPLES)
    low, high = np.quantile(differences[rows].mean(axis=1), _tails())
    by_fold = clustered(differences[:, None], list(folds))
    return Judged(
        int(differences.size),
        float(differences.mean()),
        float(low),
        float(high),
        permutation_p(differences, seed=seed),
        by_fold.low,
        by_fold.high,
        by_fold.p,
    )


def steps_to(curve: Floats, steps: Sequence[int], level: float) -> float:
    """Steps after which a curve first reaches a level, linear between points from (0, 0) on.

    Args:
        curve: Dice after each number of steps.
        steps: ascending.
        level: to be reached.

    Returns:
        Infinity where it never does.
    """
    before = (0.0, 0.0)
    for step, value in zip(steps, curve, strict=True):
        if value >= level:
            part = (level - before[1]) / (float(value) - before[1])
            return before[0] + (step - before[0]) * part
        before = (float(step), float(value))
    return float("inf")


@dataclass(frozen=True)
class Speed:
    """How soon an arm is where scratch ends.

    Attributes:
        steps: it takes to 95 % of the plateau of scratch; infinity where it never gets there.
        scratch: steps that scratch takes.
        ratio: of the two.
        low: of the bootstrap interval of the ratio, over patients and seeds.
        high: of the same; infinity where the arm does not get there in enough resamples.
        missed: share of the resamples in which it does not get there.
    """

    steps: float
    scratch: float
    ratio: float
    low: float
    high: float
    missed: float


def speed(
    arm: Floats, scratch: Floats, steps: Sequence[int], folds: Sequence[str], *, seed: int = 0
) -> Speed:
    """Ratio of the steps to 95 % of what scratch has after the last step.

    Patients are drawn again within their folds, and seeds among the seeds; both arms of a patient
    and a seed stay together.

    Args:
        arm: (patients, seeds, steps), mean of the organs.
        scratch: the same patients and seeds.
        steps: ascending, of the last axis.
        folds: of the patients.
        seed: of the resamples.
    """
    generator = np.random.default_rng(seed)

    def both(first: Floats, second: Floats) -> tuple[float, float]:
        level = PLATEAU * float(second[-1])
        return steps_to(first, steps, level), steps_to(second, steps, level)

    taken = both(arm.mean(axis=(0, 1)), scratch.mean(axis=(0, 1)))
    ratios = np.empty(RESAMPLES)
    rows = _resampled(folds, generator, RESAMPLES)
    seeds = generator.integers(0, arm.shape[1], (RESAMPLES, arm.shape[1]))
    for i, (row, column) in enumerate(zip(rows, seeds, strict=True)):
        some = np.ix_(row, column)
        first, second = both(arm[some].mean(axis=(0, 1)), scratch[some].mean(axis=(0, 1)))
        ratios[i] = first / second
    low, high = np.quantile(ratios, _tails(), method="inverted_cdf")
    return Speed(
        *taken, taken[0] / taken[1], float(low), float(high), float(np.isinf(ratios).mean())
    )


@dataclass(frozen=True)
class Scatter:
    """Standard deviations of the differences between two arms, by their source.

    Attributes:
        patient: what a patient adds, whatever the seed.
        model: what a pair of trained networks (fold and seed) adds to all its patients.
        rest: of one patient and one seed.
        fold: what a fold's draw of training cases adds to all its networks; a pilot of two folds
            cannot tell it.
    """

    patient: float
    model: float
    rest: float
    fold: float = 0.0


def scatter(tables: Sequence[Floats]) -> Scatter:
    """Sources of scatter, by the mean squares of a two-way table a fold; below 0 counts as 0.

    Args:
        tables: differences (patients, seeds) of each fold, two seeds or more.
    """
    sums, freedom = np.zeros(3), np.zeros(3)
    sizes = np.array([table.shape for table in tables], np.float64)
    for table in tables:
        n, s = table.shape
        rows, columns, all_ = table.mean(axis=1), table.mean(axis=0), table.mean()
        left = table - rows[:, None] - columns[None, :] + all_
        sums += (s * ((rows - all_) ** 2).sum(), n * ((columns - all_) ** 2).sum(), (left**2).sum())
        freedom += (n - 1, s - 1, (n - 1) * (s - 1))
    patient, model, rest = sums / freedom
    mean_patients, mean_seeds = sizes.mean(axis=0)
    return Scatter(
        float(np.sqrt(max(patient - rest, 0.0) / mean_seeds)),
        float(np.sqrt(max(model - rest, 0.0) / mean_patients)),
        float(np.sqrt(rest)),
    )


def power(
    of: Scatter, effect: float, sizes: Sequence[int], seeds: int, *, studies: int = 1000
) -> tuple[float, float]:
    """Share of simulated studies whose p is below 0.05: by permutation, and by folds.

    Args:
        of: scatter of the differences.
        effect: true mean difference.
        sizes: patients of each fold.
        seeds: networks of each arm and fold.
        studies: how many to simulate.
    """
    generator = np.random.default_rng(0)
    folds = np.repeat(np.arange(len(sizes)), sizes)
    total, k = folds.size, len(sizes)
    draw = generator.normal
    table = effect + of.patient * draw(size=(studies, total))
    table += of.rest / np.sqrt(seeds) * draw(size=(studies, total))
    by_fold = of.fold * draw(size=(studies, k)) + of.model / np.sqrt(seeds) * draw(
        size=(studies, k)
    )
    table += by_fold[:, folds]
    signs = generator.integers(0, 2, (2000, total)) * 2 - 1
    extreme = np.abs(table @ signs.T) >= np.abs(table.sum(axis=1))[:, None] - 1e-12
    exchanged = (1 + extreme.sum(axis=1)) / (1 + len(signs))
    clusters = [clustered(row[:, None], list(folds)).p or 1.0 for row in table]
    return float((exchanged < ALPHA).mean()), float((np.array(clusters) < ALPHA).mean())


def _tails() -> tuple[float, float]:
    return (1 - LEVEL) / 2, (1 + LEVEL) / 2


def _resampled(
    folds: Sequence[str], generator: np.random.Generator, times: int
) -> npt.NDArray[np.int64]:
    """Rows of patients, drawn again within each fold."""
    names = np.array(folds)
    parts = []
    for name in dict.fromkeys(folds):
        rows = np.flatnonzero(names == name)
        parts.append(rows[generator.integers(0, rows.size, (times, rows.size))])
    return np.concatenate(parts, axis=1)
