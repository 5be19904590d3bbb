from __future__ import annotations

import json

import pytest

from core.metrics.scores import OrganSum
from core.plan.schema import Weighting
from server.progress import Progress, judge, score, weigh


def sums(**dice: float) -> dict[str, dict[str, OrganSum]]:
    return {s: {"Brainstem": OrganSum(2, 2, 2 * d, 0.0, 0.0)} for s, d in dice.items()}


def test_the_best_round_is_judged_over_the_same_sites_only() -> None:
    progress = Progress()
    assert judge(progress, sums(a=0.2, b=0.8), 0)
    assert judge(progress, sums(a=0.3), 1)  # b is away: a alone got better
    assert progress.best_round == 1
    judge(progress, sums(a=0.25, b=0.9), 2)  # on a, which both know, it is worse
    assert (progress.best_round, progress.scored) == (1, 2)
    judge(progress, sums(b=0.95), 3)  # nothing in common
    assert progress.best_round == 1


def test_a_tie_keeps_the_earlier_round() -> None:
    progress = Progress()
    judge(progress, sums(a=0.2), 0)
    judge(progress, sums(a=0.2), 1)
    assert progress.best_round == 0


def test_the_score_pools_cases_and_then_averages_organs() -> None:
    cells = {
        "a": {"X": OrganSum(3, 3, 3 * 0.5, 0.0, 0.0), "Y": OrganSum(1, 1, 0.9, 0.0, 0.0)},
        "b": {"X": OrganSum(1, 1, 0.1, 0.0, 0.0), "Y": OrganSum()},
    }
    pairs = {("a", "X"), ("b", "X"), ("a", "Y")}
    assert score(cells, pairs) == pytest.approx(((1.5 + 0.1) / 4 + 0.9) / 2)


def test_without_scores_the_latest_weights_are_the_best() -> None:
    progress = Progress()
    assert not judge(progress, {}, 0)
    assert not judge(progress, {"a": {"X": OrganSum()}, "b": {}}, 1)  # no val case there
    assert (progress.best_round, progress.best) == (1, {})
    judge(progress, sums(a=0.1), 2)
    assert progress.best_round == 2
    judge(progress, {}, 3)  # nobody answered the last time: the best stays what it was
    assert progress.best_round == 2


def test_progress_survives_json() -> None:
    progress = Progress(round=3, scored=2, best_round=1, best=sums(a=0.4), stopped={"a": True})
    progress.organ_factors = [0.5, 1.5]
    again = Progress.from_json(json.loads(json.dumps(progress.to_json())))
    assert again == progress


def test_organs_are_weighed_by_the_dice_over_the_cases_of_all_sites() -> None:
    cells = {
        "a": {"X": OrganSum(3, 3, 3 * 0.5, 0.0, 0.0), "Y": OrganSum(1, 1, 0.9, 0.0, 0.0)},
        "b": {"X": OrganSum(1, 1, 0.1, 0.0, 0.0), "Y": OrganSum()},
    }
    progress = Progress()
    assert weigh(progress, Weighting(), ["X", "Y"], cells) == ()
    assert progress.organ_factors == []
    settings = Weighting(by="dice", bound=10.0, smoothing=0.0)
    assert weigh(progress, settings, ["X", "Y"], cells) == ()
    x, y = 1 - (1.5 + 0.1) / 4, 1 - 0.9
    assert progress.organ_factors == pytest.approx([2 * x / (x + y), 2 * y / (x + y)])


def test_where_a_site_tells_no_score_the_weights_are_static() -> None:
    progress = Progress(organ_factors=[0.5, 1.5])
    settings = Weighting(by="dice")
    assert weigh(progress, settings, ["Brainstem", "Y"], sums(a=0.5) | {"b": {}}) == ("b",)
    assert progress.organ_factors == []
