from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.plan import Weighting
from core.weighting import term_factors


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
