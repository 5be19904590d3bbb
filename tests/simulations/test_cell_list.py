"""Where cells are, from notes that others may have written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulations import cell_list
from simulations.cell_list import whereabouts
from simulations.places.place import note_path


def noted(out: Path, of: str, **content: object) -> None:
    path = note_path(out, "c1", of)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def test_a_note_writes_nothing_on_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_list, "_held", lambda out: True)
    noted(tmp_path, "grid", place="ray", address="\x1b[2J\x1b]0;owned\x07", attempt=1)
    waits = whereabouts(tmp_path, ["c1"])["c1"]
    assert waits == "Ray at <U+001B>[2J<U+001B>]0;owned<U+0007>: waits for room on a node"
    noted(tmp_path, "node", attempt=1, node="\x1b[31mX")
    runs = whereabouts(tmp_path, ["c1"])["c1"]
    assert runs.endswith("running on <U+001B>[31mX")
    noted(tmp_path, "grid", place="ray", address="a" * 10_000)
    assert len(whereabouts(tmp_path, ["c1"])["c1"]) == 200
    noted(tmp_path, "node")
    assert whereabouts(tmp_path, ["c1"])["c1"]
