from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.logfile import append_log, cut_log


def parts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_a_full_log_is_turned_and_the_oldest_part_goes(tmp_path: Path) -> None:
    log = tmp_path / "client.log"
    for word in ("one--", "two--", "three", "four-", "five-"):
        append_log(log, word, largest=5, parts=3)
    assert parts(tmp_path) == {
        "client.log": "five-",
        "client.log.1": "four-",
        "client.log.2": "three",
    }


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=60), max_size=30))
def test_it_never_grows_beyond_its_bound(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("log") / "x.log"
    for text in texts:
        append_log(log, text, largest=50, parts=3)
        found = list(log.parent.iterdir())
        assert len(found) <= 3
        assert all(path.stat().st_size <= 50 for path in found)


def test_what_another_program_appends_to_is_emptied_and_copied(tmp_path: Path) -> None:
    log = tmp_path / "superlink.log"
    cut_log(log)
    with log.open("ab", buffering=0) as writer:
        for word in (b"one--", b"two--", b"three"):
            writer.write(word)
            cut_log(log, largest=4, parts=3)
            assert log.read_bytes() == b""
        writer.write(b"four")
        cut_log(log, largest=4, parts=3)
    assert parts(tmp_path) == {
        "superlink.log": "four", "superlink.log.1": "three", "superlink.log.2": "two--",
    }  # fmt: skip


def test_of_a_text_that_is_too_long_the_end_is_kept(tmp_path: Path) -> None:
    append_log(tmp_path / "x.log", "0123456789", largest=4)
    assert parts(tmp_path) == {"x.log": "6789"}


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("text")
    (tmp_path / "x.log").symlink_to(victim)
    with pytest.raises(OSError):
        append_log(tmp_path / "x.log", "more")
    assert victim.read_text() == "text"
