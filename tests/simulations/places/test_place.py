"""Notes of where cells are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from simulations.places.place import Task, note_path, read_note, write_note
from tests.traps import TRAPS, within


def test_a_note_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_note(Task("c", tmp_path, (), 1, 0.0), "grid", {"place": "ray"})
    assert read_note(tmp_path, "c", "grid") == {"place": "ray"}


@pytest.mark.parametrize("trap", TRAPS)
def test_pipes_devices_and_links_are_no_notes(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, trap: Callable[[Path], None]
) -> None:
    for of in ("grid", "node"):
        note_path(tmp_path, "c", of).parent.mkdir(exist_ok=True)
    trap(note_path(tmp_path, "c", "grid"))
    other = tmp_path_factory.mktemp("other") / "note.json"
    other.write_text('{"node": "elsewhere"}')
    note_path(tmp_path, "c", "node").symlink_to(other)
    with within():
        assert (read_note(tmp_path, "c", "grid"), read_note(tmp_path, "c", "node")) == ({}, {})
