"""A fold is one draw: false alarms by simulation, the t test of fold means, what is not claimed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hnfed.evaluate.clusters import clustered, clustered_difference
from hnfed.evaluate.statistics import organ_mean, verdict

NAN = math.nan
SIZES = (16, 16, 16, 15)  # 63 patients in four folds
FOLDS = [k for k, size in enumerate(SIZES) for _ in range(size)]


def false_alarms(between: float, studies: int = 1200) -> tuple[float, float]:
    """Share of studies without a true difference that a test calls different: patients, folds."""
    rng = np.random.default_rng(19)
    luck = rng.normal(0.0, between, (studies, len(SIZES)))[:, FOLDS]  # of a fold's two models
    differences = luck + rng.normal(0.0, 0.03, (studies, len(FOLDS)))
    over_patients = stats.wilcoxon(differences, axis=1).pvalue
    over_folds = [clustered(row, FOLDS).p or 0.0 for row in differences]
    return float(np.mean(over_patients <= 0.05)), float(np.mean(np.array(over_folds) <= 0.05))


@pytest.mark.parametrize("between", [0.006, 0.015])
def test_false_alarms_stay_at_the_level_where_the_models_of_a_fold_have_luck(
    between: float,
) -> None:
    over_patients, over_folds = false_alarms(between)
    assert over_patients > 0.08  # 63 patients are no 63 models
    assert over_folds < 0.062


def test_without_luck_both_keep_the_level() -> None:
    over_patients, over_folds = false_alarms(0.0)
    assert over_patients < 0.062
    assert over_folds < 0.062


def test_equal_folds_give_the_t_test_of_their_means() -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(0.02, 0.05, (20, 3))
    folds = [i % 5 for i in range(20)]
    means = [float(table[i::5].mean()) for i in range(5)]
    told = clustered(table, folds)
    known = stats.ttest_1samp(means, 0.0)
    low, high = known.confidence_interval(0.95)
    assert told.value == pytest.approx(np.mean(means))
    assert (told.p, told.patients) == (pytest.approx(known.pvalue), 20)
    assert (told.low, told.high) == (pytest.approx(low, abs=1e-8), pytest.approx(high, abs=1e-8))


def test_a_missing_organ_weighs_as_in_the_mean_over_organs() -> None:
    rng = np.random.default_rng(4)
    table = rng.normal(0.7, 0.1, (16, 2))
    table[3:10, 1] = NAN
    table[15] = NAN
    told = clustered(table, [i // 4 for i in range(16)])
    assert told.value == pytest.approx(organ_mean(table))
    assert told.patients == 15
    assert told.low is not None
    assert told.high is not None
    assert told.low < (told.value or 0) < told.high
    assert clustered([[NAN]], [0]).patients == 0


def test_two_folds_give_a_difference_and_no_verdict() -> None:
    rng = np.random.default_rng(5)
    first = 0.8 + rng.normal(0, 0.01, 20)
    told = clustered_difference(first, first - 0.1, [i % 2 for i in range(20)])
    assert told.value == pytest.approx(0.1)
    assert (told.low, told.p) == (None, None)
    assert verdict(told, None) == "inconclusive"


def test_equal_scores_differ_in_nothing() -> None:
    scores = np.random.default_rng(6).random((12, 2))
    told = clustered_difference(scores, scores, [i % 4 for i in range(12)])
    assert (told.value, told.low, told.high, told.p) == (0.0, 0.0, 0.0, 1.0)
