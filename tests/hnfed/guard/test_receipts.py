from __future__ import annotations

import json
from pathlib import Path

import torch

from hnfed.guard.receipts import RECEIPTS, read_receipts, summary, write_receipt
from tests.hnfed.guard.test_outbox import HEADER, METRICS, good


def test_receipts_say_what_left(tmp_path: Path) -> None:
    query = {"site": "nyu", "code": "OK"}
    write_receipt(tmp_path, "run-1", "query", query, {"cases": [1, 2, 3]}, {})
    write_receipt(tmp_path, "run-1", "train", HEADER, METRICS, good())
    found = read_receipts(tmp_path)
    last = found["run-1"][-1]
    assert last["bytes"] == 4 * (6 + 4)
    assert [t["name"] for t in last["tensors"]] == ["body.1", "head.weight"]
    assert last["scalars"]["round"] == 3
    text = summary(found)
    assert "pretrain to 3" in text
    told = {line.split()[0]: line.split(maxsplit=1)[1:] for line in text.splitlines()[4:] if line}
    assert set(told) == {*HEADER, *METRICS}
    assert all(told.values()), "each scalar is explained"
    assert "sum of Dice" in told["val.dice"][0]
    changed = {**good(), "body.1": torch.ones(4)}
    write_receipt(tmp_path, "run-1", "train", HEADER, METRICS, changed)
    assert read_receipts(tmp_path)["run-1"][-1]["sha256"] != last["sha256"]
    json.dumps(found)
    assert "nothing has left" in summary(read_receipts(tmp_path / "none"))


def test_all_runs_are_in_one_file_that_others_cannot_read(tmp_path: Path) -> None:
    """A run called ``a/b`` had a folder that nobody listed."""
    for run in ("one", "two", ""):
        write_receipt(tmp_path, run, "error", HEADER, {}, {})
    assert [p.name for p in tmp_path.iterdir()] == [RECEIPTS]
    assert (tmp_path / RECEIPTS).stat().st_mode & 0o077 == 0
    assert set(read_receipts(tmp_path)) == {"one", "two", ""}
    assert "(unknown)" in summary(read_receipts(tmp_path))


def test_a_line_that_a_power_cut_tore_does_not_swallow_the_next(tmp_path: Path) -> None:
    (tmp_path / RECEIPTS).write_text('{"at": "2026')
    write_receipt(tmp_path, "one", "error", HEADER, {}, {})
    assert [len(rows) for rows in read_receipts(tmp_path).values()] == [1]


def test_receipts_of_earlier_versions_are_still_shown(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    line = {"at": "x", "kind": "train", "scalars": dict(HEADER), "tensors": [], "bytes": 0}
    (tmp_path / "old" / RECEIPTS).write_text(json.dumps(line) + "\n")
    assert set(read_receipts(tmp_path)) == {"old"}
