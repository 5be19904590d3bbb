"""A file is the old or the new one, never a part."""

from __future__ import annotations

import csv
import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.files import plain_row, replace_csv, replace_file


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


@pytest.mark.parametrize(
    "text",
    [
        "=1+1", "+cmd", "-x", "@SUM(A1)", "\tx", "\r=1", "\n=1", "'=1", "''@x",
        "\uff1d1", "-", "=", "-1\n",
    ],
)  # fmt: skip
def test_a_text_that_a_spreadsheet_would_run_is_none_in_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    replace_csv(path, ["case", "n"], [[text, 1]])
    with path.open(newline="", encoding="utf-8") as file:
        raw = next(csv.DictReader(file))
    assert raw["case"].startswith("'")
    assert raw["case"][1:] == text
    assert plain_row(raw) == {"case": text, "n": "1"}


def test_numbers_stay_numbers_and_plain_text_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    row = ["-1.25", -3, "+0.5", "'tis", "a=b", "", None, 1e-7, "-inf"]
    replace_csv(path, list("abcdefghi"), [row])
    assert path.read_text().splitlines()[1] == "-1.25,-3,+0.5,'tis,a=b,,,1e-07,-inf"


@given(st.lists(st.text(max_size=8), min_size=1, max_size=3))
def test_a_table_is_read_as_it_was_written(cells: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        names = [f"c{i}" for i in range(len(cells))]
        text = [c.encode("utf-8", "replace").decode().replace("\0", "") for c in cells]
        replace_csv(path, names, [text])
        with path.open(newline="", encoding="utf-8") as file:
            rows = [plain_row(row) for row in csv.DictReader(file)]
        assert rows == [dict(zip(names, text, strict=True))] or text == [""]
