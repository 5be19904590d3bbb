"""Intervals and tests against SciPy, exhaustive enumeration and simulated truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hnfed.evaluate import statistics
from hnfed.evaluate.statistics import (
    Difference,
    estimate,
    expanded_tail,
    holm,
    organ_mean,
    paired,
    smallest_p,
    verdict,
    wilcoxon_p,
)

PROBABILITIES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6)
NAN = math.nan


def test_the_interval_of_a_plain_mean_is_that_of_scipy_at_the_expanded_level() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.1, 12)
    level = 1 - 2 * expanded_tail(len(values))
    assert 0.95 < level < 0.99
    told = estimate(values, resamples=40_000)
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, confidence_level=level, method="percentile",
        random_state=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    assert told.value == pytest.approx(values.mean())
    assert (told.low, told.high) == pytest.approx(tuple(reference), abs=2.5e-3)


def test_the_interval_over_organs_resamples_patients_and_averages_organs_equally() -> None:
    rng = np.random.default_rng(2)
    table = rng.normal(0.7, 0.1, (14, 3)) + rng.normal(0, 0.1, (14, 1))
    table[4:, 2] = NAN  # an organ of four patients weighs as much as one of fourteen

    def over_organs(rows: np.ndarray) -> float:
        return float(np.mean([np.mean(c[~np.isnan(c)]) for c in rows.T if not np.isnan(c).all()]))

    draws = [over_organs(table[rng.integers(0, 14, 14)]) for _ in range(8000)]
    tail = expanded_tail(14)
    told = estimate(table)
    assert told.value == pytest.approx(over_organs(table))
    assert (told.low, told.high) == pytest.approx(np.quantile(draws, [tail, 1 - tail]), abs=4e-3)
    assert told.patients == 14


def test_the_interval_is_near_students_where_the_values_are_normal() -> None:
    values = np.random.default_rng(3).normal(0.0, 1.0, 40)
    low, high = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    told = estimate(values)
    assert told.low == pytest.approx(low, abs=0.03)
    assert told.high == pytest.approx(high, abs=0.03)


def test_intervals_over_six_patients_hold_the_true_mean_nearly_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    plain = hits = 0
    for _ in range(600):
        values = rng.normal(0.0, 1.0, 6)
        told = estimate(values, resamples=1000)
        assert told.low is not None
        assert told.high is not None
        hits += told.low <= 0 <= told.high
        means = statistics._organ_means(statistics._draws(6, 1000, 0), values[:, None])
        plain += np.quantile(means, 0.025) <= 0 <= np.quantile(means, 0.975)
    assert plain / 600 < 0.90 < hits / 600 < 0.985


def test_of_one_patient_there_is_a_mean_and_no_interval() -> None:
    assert estimate([[0.5, NAN]]) == statistics.Estimate(1, 0.5)
    assert estimate(np.empty((0, 2))) == statistics.Estimate(0)
    assert estimate([[NAN, NAN]]) == statistics.Estimate(0)
    assert organ_mean(np.empty((0, 0))) is None


def test_equal_input_gives_equal_intervals() -> None:
    values = np.random.default_rng(5).random((7, 2))
    assert estimate(values) == estimate(values.copy())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-8, 8), min_size=1, max_size=8))
def test_wilcoxon_is_exact_with_and_without_ties(differences: list[int]) -> None:
    moved = [d for d in differences if d]
    p = wilcoxon_p([float(d) for d in differences])
    if not moved:
        assert p == 1.0
        return
    ranks = stats.rankdata(np.abs(moved))
    observed = abs(np.sum(ranks * np.sign(moved)))
    signs = np.array(list(itertools.product((-1, 1), repeat=len(moved))))
    assert p == pytest.approx(np.mean(np.abs(signs @ ranks) >= observed - 1e-9))
    assert smallest_p([float(d) for d in differences]) <= p + 1e-12  # type: ignore[operator]


def test_wilcoxon_is_scipys_and_its_smallest_p_is_attained() -> None:
    values = [0.01 * (i + 1) for i in range(7)]
    assert wilcoxon_p([0.0, *values]) == pytest.approx(2 / 2**7) == smallest_p([0.0, *values])
    mixed = [0.3, -0.1, 0.25, 0.4, -0.05, 0.6, 0.7, 0.2]
    assert wilcoxon_p(mixed) == pytest.approx(stats.wilcoxon(mixed, method="exact").pvalue)
    assert smallest_p([0.4]) == 1.0 == smallest_p([0.0])
    assert wilcoxon_p([]) is None is smallest_p([])


@settings(deadline=None)
@given(PROBABILITIES)
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    everyone = range(len(p_values))
    for i, adjusted in enumerate(holm(p_values)):
        groups = [
            g
            for k in range(len(p_values))
            for g in itertools.combinations(everyone, k + 1)
            if i in g
        ]
        closed = max(min(1.0, len(g) * min(p_values[j] for j in g)) for g in groups)
        assert adjusted == pytest.approx(closed)


def test_what_was_not_compared_does_not_cost_power() -> None:
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]


def test_a_paired_difference_takes_only_what_both_have() -> None:
    first = [[0.8, 0.5], [0.7, NAN], [0.9, 0.6], [NAN, NAN]]
    second = [[0.7, 0.4], [0.6, 0.9], [NAN, 0.2], [0.1, 0.1]]
    told = paired(first, second)
    assert told.patients == 3
    assert told.value == pytest.approx((0.1 + (0.1 + 0.4) / 2) / 2)
    assert told.p_smallest == 0.25
    assert paired([[NAN]], [[0.5]]) == Difference(0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_exchanging_the_models_changes_signs_and_nothing_else(
    pairs: list[tuple[float, float]],
) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    there, back = paired(a, b), paired(b, a)
    assert there.value == pytest.approx(-(back.value or 0.0), abs=1e-9)
    assert there.low == pytest.approx(-(back.high or 0.0), abs=1e-6)
    assert (there.p, there.p_smallest) == (pytest.approx(back.p), back.p_smallest)


def test_nothing_is_claimed_where_the_pairs_are_too_few() -> None:
    clear = [0.1 + 0.01 * i for i in range(8)]
    nothing = [0.0] * 8
    five, six = paired(clear[:5], nothing[:5]), paired(clear[:6], nothing[:6])
    assert five.p_smallest == 0.0625
    assert verdict(five, 0.001) == "inconclusive"
    assert six.p_smallest == 0.03125
    assert verdict(six, six.p) == "better"
    assert verdict(paired(nothing[:6], clear[:6]), six.p) == "worse"
    assert verdict(six, 0.0626) == "inconclusive"
    assert verdict(Difference(9, 0.1, -0.01, 0.2, 0.01, 0.004), 0.01) == "inconclusive"
    assert verdict(Difference(0), None) == ""
