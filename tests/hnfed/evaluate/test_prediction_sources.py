"""Label tables beside label maps, which may come from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import UserError
from core.tracking import foreign_run
from hnfed.evaluate.prediction_sources import label_table
from tests.traps import TRAPS, within


@pytest.mark.parametrize("trap", TRAPS)
def test_a_pipe_or_device_is_no_table(tmp_path: Path, trap: Callable[[Path], None]) -> None:
    trap(tmp_path / "labels.json")
    with within(), pytest.raises(UserError, match="no plain file"):
        label_table(tmp_path / "labels.json")


def test_a_table_is_neither_deep_nor_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"labels": {"Brainstem": 1}}')
    assert label_table(path) == {"Brainstem": (1,)}
    monkeypatch.setattr(foreign_run, "MOST_BYTES", 10)
    with pytest.raises(UserError, match="more than 10 bytes"):
        label_table(path)
    monkeypatch.undo()
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="too deep"):
        label_table(path)
