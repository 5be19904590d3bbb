"""Charts of what a journal says, whatever it says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnfed.report.charts import Axes, Series, line_chart, ticks


@pytest.mark.parametrize("last", [3, 20, 10**7, 10**15])
def test_rounds_far_apart_are_drawn(last: int) -> None:
    """The rounds under a chart were looked for one by one."""
    drawn = str(line_chart([Series("a", [(1, 0.2), (last, 0.4)], "c1")], "loss", Axes("round")))
    assert 2 < drawn.count('text-anchor="middle"') < 20


@pytest.mark.parametrize(("low", "high"), [(0.0, 5e-324), (0.0, 0.0), (1.0, 1.0), (-1e15, 1e15)])
def test_any_two_numbers_have_ticks(low: float, high: float) -> None:
    """A loss of 5e-324 of one site made the report of a whole run impossible."""
    steps = ticks(low, high, 5)
    assert len(steps) >= 2
    assert steps[0] < steps[-1]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_span_the_numbers(low: float, span: float) -> None:
    steps = ticks(low, low + span, 5)
    assert steps[0] <= low + 1e-6
    assert steps[-1] >= low + span - 1e-6 * span - 1e-6
    assert len(steps) <= 12
    assert all(math.isfinite(step) for step in steps)
