"""A file is the old or the new one, never a part."""

from __future__ import annotations

import csv
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.files import (
    UnfitError,
    keep_from_others,
    plain_row,
    private_folder,
    read_bounded,
    replace_csv,
    replace_file,
    require_private,
)
from tests.traps import TRAPS, within


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


def test_a_link_in_the_place_of_what_is_to_be_written_is_not_followed(tmp_path: Path) -> None:
    """A run folder from elsewhere held `.report.html.next`, a link to any file of the user's."""
    other, folder = tmp_path / "profile", tmp_path / "run"
    other.write_text("mine")
    folder.mkdir()
    (folder / ".report.html.next").symlink_to(other)
    replace_file(folder / "report.html", "theirs")
    assert other.read_text() == "mine"
    assert (folder / "report.html").read_text() == "theirs"
    assert [p.name for p in folder.iterdir()] == ["report.html"]


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


@pytest.fixture
def open_to_all() -> Iterator[None]:
    """The umask under which everything is made for everybody."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_to_all")
def test_a_private_folder_is_so_under_any_umask(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "cache"
    private_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    require_private("cache", folder)
    folder.chmod(0o750)
    private_folder(folder)  # who opened it, meant it
    assert folder.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o740, 0o755, 0o777, 0o2770])
def test_a_folder_that_others_can_open_is_refused(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(UserError) as refused:
        require_private("site file: cache", tmp_path)
    assert (refused.value.field, refused.value.value) == ("site file: cache", tmp_path)
    assert f"chmod 700 {tmp_path}" in refused.value.remedy
    assert f"{mode & 0o777:03o}" in refused.value.problem
    tmp_path.chmod(0o700)
    require_private("site file: cache", tmp_path)


@pytest.mark.parametrize(("account", "good"), [(0, True), (1, True), (2, False)])
def test_a_folder_of_another_account_is_refused(
    account: int, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tmp_path.stat().st_uid
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: {0: 0, 1: owner, 2: owner + 1}[account])
    if good:
        require_private("state", tmp_path)
        return
    with pytest.raises(UserError, match="another account"):
        require_private("state", tmp_path)


@pytest.mark.usefixtures("open_to_all")
def test_what_a_process_makes_after_it_keeps_from_others(tmp_path: Path) -> None:
    keep_from_others()
    (tmp_path / "folder").mkdir()
    replace_file(tmp_path / "folder" / "cases.csv", "case")
    assert [p.stat().st_mode & 0o077 for p in tmp_path.rglob("*")] == [0, 0]


@pytest.mark.parametrize("trap", TRAPS)
def test_pipes_and_devices_are_neither_read_nor_waited_for(
    tmp_path: Path, trap: Callable[[Path], None]
) -> None:
    trap(tmp_path / "file")
    before = len(os.listdir("/proc/self/fd"))
    with within(), pytest.raises(UnfitError, match="no plain file"):
        read_bounded(tmp_path / "file", 100)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(UnfitError, match="more than 4 bytes"):
        read_bounded(path, 4)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "none", 4)
