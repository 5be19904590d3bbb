"""The measures of a case beside MONAI's: every row is there, and another value ends it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import case_metrics
from benchmarks.case_metrics import MOST_OFF, UNITS, rows
from hnfed.evaluate.measures import CaseMeasures, measure

SMALL = ((24, 64, 64), (4.0, 3.0, 3.0), 1.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_metrics, "QUICK", SMALL)


def test_every_measure_has_its_row_and_is_monais() -> None:
    wall, cpu, *rest = rows(quick=True)
    assert wall["name"] == "evaluate's measures, 24x64x64"
    for found in (wall, cpu):
        assert found["ratio"] > 0
        assert found["met"] is None  # a small volume says nothing of the target
    assert [r["name"] for r in rest] == [f"evaluate's {n}, largest difference" for n in UNITS]
    assert all(0 <= r["value"] < MOST_OFF for r in rest)


@pytest.mark.parametrize("name", UNITS)
def test_a_value_that_is_off_ends_the_benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(*arguments: Any) -> CaseMeasures:
        told = measure(*arguments)
        return replace(told, **{name: getattr(told, name) + 2 * MOST_OFF})

    monkeypatch.setattr(case_metrics, "measure", changed)
    with pytest.raises(AssertionError, match=name):
        rows(quick=True)
