from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from core.files import replace_file
from core.journal import append_event
from core.os_refusals import about, in_words


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.EACCES, "no permission"),
        (errno.EROFS, "can only be read"),
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "larger than is allowed"),
        (errno.ENOTDIR, "a file stands where a folder"),
        (errno.EIO, "cannot be read or written"),
    ],
)
def test_names_path_cause_and_remedy(number: int, word: str) -> None:
    told = in_words(OSError(number, os.strerror(number), "/a/b c"))
    assert told is not None
    assert told.value == "/a/b c"
    assert word in told.problem
    assert told.remedy


def test_a_name_that_is_no_text_is_told_too() -> None:
    told = in_words(OSError(errno.EACCES, "x", os.fsdecode(b"/a/\xe4")))
    assert "%E4" in str(told)


def test_other_errors_are_not_explained_away() -> None:
    assert in_words(ConnectionResetError(errno.ECONNRESET, "reset")) is None
    assert in_words(OSError("no number")) is None


def test_a_file_that_is_open_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full") as caught, about(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "full")
    assert caught.value.filename == str(tmp_path / "x")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits a child process of its own")
def test_a_limit_of_size_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    """The real refusal: RLIMIT_FSIZE, in a child process."""
    path = tmp_path / "metrics.json"
    replace_file(path, "old")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        done = 0
        for write in (
            lambda: replace_file(path, "x" * 5000),
            lambda: append_event(tmp_path / "journal.jsonl", {"event": "x" * 5000}),
        ):
            try:
                write()
            except OSError as error:
                told = in_words(error)
                done += told is not None and str(tmp_path) in str(told.value)
        os._exit(0 if done == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) in (
        ["metrics.json"],
        ["journal.jsonl", "metrics.json"],
    )
