"""Charts of what a journal says, however far its rounds lie apart."""

from __future__ import annotations

import time

import pytest

from hnfed.report.charts import Axes, Series, line_chart


@pytest.mark.parametrize("last", [3, 20, 10**7, 10**15])
def test_rounds_far_apart_are_drawn_at_once(last: int) -> None:
    """The rounds under a chart were looked for one by one: 8 s for ten million of them."""
    begun = time.process_time()
    drawn = str(line_chart([Series("a", [(1, 0.2), (last, 0.4)], "c1")], "loss", Axes("round")))
    assert time.process_time() - begun < 1.0
    assert 2 < drawn.count('text-anchor="middle"') < 20
