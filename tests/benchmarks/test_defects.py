"""A few kinds of defects; `python -m benchmarks.defects` plants them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.defect_kinds import KINDS
from benchmarks.defects import false_alarms, planted, write_clean

SOME = (
    "CT cut short",
    "HU 1024 too high",
    "mask moved off the grid",
    "left and right exchanged",
    "upside down",
    "slices twice as far apart",
    "one CT in two splits",
    "one patient in two splits",
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_clean(tmp_path_factory.mktemp("clean"), {"miccai": 2})


@pytest.mark.parametrize("name", SOME)
def test_planted_defects_are_found(name: str, clean: dict[str, Path], tmp_path: Path) -> None:
    outcome = planted(clean, tmp_path, name)
    assert outcome.found, outcome


def test_clean_phantoms_raise_no_alarm(clean: dict[str, Path]) -> None:
    assert false_alarms(clean) == []


def test_there_are_at_least_forty_kinds() -> None:
    assert len(KINDS) >= 40
    assert set(SOME) <= set(KINDS)
