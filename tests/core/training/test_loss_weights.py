from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.plan.schema import Weighting
from core.training.loss_weights import organ_factors, organ_weights, term_factors


def test_static_leaves_the_plan_as_it_is():
    assert term_factors(Weighting(), 3, 10) == {}


@pytest.mark.parametrize(
    ("round_number", "factors"),
    [
        (1, {"ce": 1.0, "focal": 0.0}),
        (3, {"ce": 0.5, "focal": 0.5}),
        (5, {"ce": 0.0, "focal": 1.0}),
        (8, {"ce": 0.0, "focal": 1.0}),
    ],
)
def test_the_shift_moves_weight_from_cross_entropy_to_focal(round_number, factors):
    assert term_factors(Weighting(terms="shift", shift_end=0.5), round_number, 8) == factors


@given(st.integers(1, 60), st.floats(0.01, 1.0))
def test_the_shift_only_ever_goes_one_way(rounds, shift_end):
    settings = Weighting(terms="shift", shift_end=shift_end)
    course = [term_factors(settings, r, rounds) for r in range(1, rounds + 1)]
    assert course[0] == {"ce": 1.0, "focal": 0.0}
    for before, after in itertools.pairwise(course):
        assert after["ce"] <= before["ce"]
        assert after["focal"] >= before["focal"]
    for factors in course:
        assert factors["ce"] + factors["focal"] == pytest.approx(1.0)
        assert 0 <= factors["ce"] <= 1


def test_the_worse_organ_weighs_more_and_the_last_weights_are_kept_in_part():
    settings = Weighting(by="dice", bound=4.0, smoothing=0.5)
    organs = ["Brainstem", "OpticChiasm"]
    first = organ_factors(settings, organs, {"Brainstem": 0.8, "OpticChiasm": 0.4}, [])
    assert first == pytest.approx([0.75, 1.25])  # half of (1, 1), half of (0.5, 1.5)
    second = organ_factors(settings, organs, {"Brainstem": 0.8, "OpticChiasm": 0.4}, first)
    assert second == pytest.approx([0.625, 1.375])


def test_an_organ_without_a_score_is_weighed_like_the_others():
    settings = Weighting(by="dice", smoothing=0.0)
    got = organ_factors(settings, ["A", "B", "C"], {"A": 0.2, "C": 0.6}, [])
    assert got == pytest.approx([0.8 / 0.6, 1.0, 0.4 / 0.6])


@pytest.mark.parametrize("dice", [{}, {"A": 1.0, "B": 1.0}])
def test_scores_that_say_nothing_move_nothing(dice):
    settings = Weighting(by="dice")
    assert organ_factors(settings, ["A", "B"], dice, [0.5, 1.5]) == [0.5, 1.5]


def test_static_organ_weights_do_not_follow_the_scores():
    assert organ_factors(Weighting(), ["A", "B"], {"A": 0.1, "B": 0.9}, []) == [1.0, 1.0]


@given(
    st.lists(
        st.lists(st.none() | st.floats(0.0, 1.0), min_size=3, max_size=3), min_size=1, max_size=8
    ),
    st.floats(1.0, 50.0),
    st.floats(0.0, 0.95),
)
def test_factors_keep_their_mean_and_their_bound(course, bound, smoothing):
    settings = Weighting(by="dice", bound=bound, smoothing=smoothing)
    factors = []
    for dice in course:
        told = {o: d for o, d in zip("ABC", dice, strict=True) if d is not None}
        factors = organ_factors(settings, "ABC", told, factors)
        assert sum(factors) / 3 == pytest.approx(1.0)
        assert max(factors) <= bound * min(factors) * (1 + 1e-9)


def test_the_plans_own_weight_is_multiplied():
    settings = Weighting(organs={"B": 3.0})
    assert organ_weights(settings, ["A", "B"], []) == [1.0, 3.0]
    assert organ_weights(settings, ["A", "B"], [0.5, 1.5]) == [0.5, 4.5]
