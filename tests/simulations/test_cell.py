"""What a cell's folder holds, which may come from anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import UserError
from core.tracking import foreign_run
from simulations.cell import read_metrics, read_record
from tests.traps import endless, pipe, within


def test_records_and_metrics_are_read_where_they_are_there(tmp_path: Path) -> None:
    assert (read_record(tmp_path), read_metrics(tmp_path)) == (None, {})
    for name in ("cell.json", "metrics.json"):
        (tmp_path / name).write_text(json.dumps({"schema": 1}))
    assert read_record(tmp_path) == read_metrics(tmp_path) == {"schema": 1}
    for trap in (pipe, endless):
        for name in ("cell.json", "metrics.json"):
            trap(tmp_path / name)
        with within():
            assert (read_record(tmp_path), read_metrics(tmp_path)) == (None, {})


def test_what_is_no_record_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, other = tmp_path / "cell", tmp_path / "other.json"
    cell.mkdir()
    other.write_text("{}")
    path = cell / "metrics.json"
    path.symlink_to(other)
    with pytest.raises(UserError, match="a link out of the folder"):
        read_metrics(cell)
    path.unlink()
    for text, problem in (("[1]", "no JSON object"), ("{", "JSONDecodeError")):
        path.write_text(text)
        with pytest.raises(UserError, match=problem):
            read_metrics(cell)
    monkeypatch.setattr(foreign_run, "MOST_BYTES", 1)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"metrics\.json"):
        read_metrics(cell)
