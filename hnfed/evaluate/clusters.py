"""How sure a mean over the folds of a cross-validation is: a fold is one draw, not its patients.

All test patients of a fold are judged by one trained model (or one pair of models). What that model
owes to its draw of cases, batches and start is shared by all of them, so they are no independent
evidence for a method: a test over patients then raises false alarms, the more patients the more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from hnfed.evaluate.statistics import DECIMALS, LEVEL, Difference, Floats, organ_mean

FEWEST = 3  # clusters; of two numbers no scatter can be known


def clustered(values: npt.ArrayLike, clusters: Sequence[object]) -> Difference:
    """Mean over organs (D18) with interval and two-sided p from the scatter between clusters.

    The variance is that of the clusters' parts in the mean, K / (K - 1) times the sum of their
    squares, with Student's t of K - 1 degrees of freedom. Where every cluster has as many patients
    of every organ this is the t test of the clusters' means. It takes clusters for independent
    draws; folds share training patients, which no estimate from one cross-validation can account
    for (Y. Bengio, Y. Grandvalet, "No unbiased estimator of the variance of K-fold
    cross-validation", JMLR 5, 2004).

    Args:
        values: (patients, organs), NaN where a patient does not annotate the organ.
        clusters: fold of each patient, in the same order.

    Returns:
        The mean; interval and p are None below three clusters with values. `p_smallest` is 0: this
        p has no floor.
    """
    table = np.asarray(values, np.float64).reshape(len(clusters), -1)
    known = ~np.isnan(table)
    rows, organs = np.flatnonzero(known.any(axis=1)), np.flatnonzero(known.any(axis=0))
    if not rows.size:
        return Difference(0)
    table, known = table[rows][:, organs], known[rows][:, organs]
    names = [clusters[int(i)] for i in rows]
    mean, patients = organ_mean(table), len(names)
    groups = [[i for i, name in enumerate(names) if name == one] for one in dict.fromkeys(names)]
    if len(groups) < FEWEST or mean is None:
        return Difference(patients, mean)
    residuals = np.where(known, table - np.nanmean(table, axis=0), 0.0) / known.sum(axis=0)
    parts: Floats = np.array([residuals[group].sum(axis=0).mean() for group in groups])
    freedom = len(groups) - 1
    error = round(float(np.sqrt(len(groups) / freedom * np.sum(parts**2))), DECIMALS)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return Difference(patients, mean, mean - half, mean + half, _p(mean, error, freedom), 0.0)


def clustered_difference(
    first: npt.ArrayLike, second: npt.ArrayLike, clusters: Sequence[object]
) -> Difference:
    """`clustered` of first minus second, over the patients and organs that both have.

    Args:
        first: (patients, organs), NaN where unknown.
        second: the same patients and organs in the same order.
        clusters: fold of each patient.
    """
    minus = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return clustered(np.round(minus, DECIMALS), clusters)


def _p(mean: float, error: float, freedom: int) -> float:
    if error == 0:
        return 1.0 if round(mean, DECIMALS) == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, freedom))
