"""A file is the old or the new one, never a part."""

from __future__ import annotations

import errno
import os
import stat
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


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".findings.csv.next").write_text("half")
    replace_file(tmp_path / "findings.csv", "whole")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]


def test_a_folder_that_cannot_be_flushed_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(tmp_path / "report.html", "page")
    assert (tmp_path / "report.html").read_text() == "page"


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
