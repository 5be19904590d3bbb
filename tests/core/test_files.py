"""A file is the old or the new one, never a part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.files import replace_file


def test_a_file_is_replaced_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "findings.csv"
    replace_file(path, "case,code\r\nä,x\r\n")
    assert path.read_bytes() == "case,code\r\nä,x\r\n".encode()
    replace_file(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in tmp_path.iterdir()] == ["findings.csv"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "index.json"
    replace_file(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OSError, match="No space"):
            replace_file(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["index.json"]
