"""The journal survives kills and holds strict JSON."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.files import UnfitError
from core.journal import MOST_UNREADABLE, append_event, read_events
from core.run_records import DEEPEST
from tests.traps import pipe, within

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_round_trip_keeps_order_and_stamps_utc_time(tmp_path: Path) -> None:
    path = tmp_path / "run" / "journal.jsonl"
    append_event(path, {"event": "run-start", "run": "demo"})
    append_event(
        path, {"event": "run-end", "status": "completed", "time": "2026-01-01T00:00:00+00:00"}
    )
    first, last = read_events(path)
    assert (first["event"], first["run"]) == ("run-start", "demo")
    assert datetime.fromisoformat(first["time"]).utcoffset() == timedelta(0)
    assert last["time"] == "2026-01-01T00:00:00+00:00"
    assert path.read_bytes().count(b"\n") == 2


@settings(max_examples=50, deadline=None)
@given(payload=st.dictionaries(st.text(), JSON, max_size=4))
def test_any_json_comes_back_and_stays_one_line(
    payload: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    append_event(path, {"event": "note", "payload": payload})
    assert read_events(path)[0]["payload"] == payload
    assert len(path.read_text().splitlines()) == 1


def test_numbers_of_numpy_and_non_finite_ones(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    values = (np.float32(0.5), np.int64(3), float("nan"), np.float64("inf"))
    append_event(
        path, {"event": "round", "values": values, "names": frozenset({"b", "a"}), "at": Path("x")}
    )
    line = path.read_text()
    assert json.loads(line, parse_constant=pytest.fail)["values"] == [0.5, 3, None, None]
    assert json.loads(line)["names"] == ["a", "b"]
    assert json.loads(line)["at"] == "x"


def test_a_torn_tail_is_reported_and_does_not_spoil_the_next_event(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    append_event(path, {"event": "run-start"})
    append_event(path, {"event": "round", "round": 1})
    path.write_bytes(path.read_bytes()[:-9])
    assert [e["event"] for e in read_events(path)] == ["run-start", "unreadable"]
    append_event(path, {"event": "round", "round": 2})
    events = read_events(path)
    assert [e["event"] for e in events] == ["run-start", "unreadable", "round"]
    assert events[1]["line"] == 2
    assert events[2]["round"] == 2


def test_each_event_is_synced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    append_event(tmp_path / "journal.jsonl", {"event": "note", "text": "a"})
    assert synced == [(tmp_path / "journal.jsonl").stat().st_size]


def test_missing_journal_and_unusable_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none.jsonl") == []
    with pytest.raises(ValueError, match="needs its kind"):
        append_event(tmp_path / "journal.jsonl", {"text": "no kind"})
    with pytest.raises(TypeError):
        append_event(tmp_path / "journal.jsonl", {"event": "note", "text": object()})
    assert not (tmp_path / "journal.jsonl").exists()


def test_of_many_unreadable_lines_the_first_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = ["0", '{"event": "unreadable", "line": "\\u001b[2J"}', '{"event": 3}', "[" * 50] * 100
    path.write_text("\n".join([*lines, '{"event": "run-end"}', "0"]) + "\n")
    events = read_events(path)
    assert len(events) == MOST_UNREADABLE + 2
    assert [e["line"] for e in events[:MOST_UNREADABLE]] == list(range(1, MOST_UNREADABLE + 1))
    assert sum(e["lines"] for e in events if e["event"] == "unreadable") == 401
    assert events[-1] == {"event": "run-end"}
    with path.open("a") as file:
        file.write('0\n{"event": "round"}\n')
    assert read_events(path)[len(events) :] == [{"event": "round"}], "who follows misses none"


def test_in_what_is_no_journal_nothing_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.journal.NO_JOURNAL", 10)
    path = tmp_path / "journal.jsonl"
    path.write_text("0\n" * 5000 + '{"event": "round"}\n')
    events = read_events(path)
    assert {e["event"] for e in events} == {"unreadable"}
    assert sum(e["lines"] for e in events) == 5001


def test_a_journal_is_a_plain_file_of_a_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(tmp_path / "pipe.jsonl")
    with within(), pytest.raises(ValueError, match="no plain file"):
        read_events(tmp_path / "pipe.jsonl")
    append_event(tmp_path / "journal.jsonl", {"event": "round"})
    monkeypatch.setattr("core.journal.JOURNAL_BYTES", 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_events(tmp_path / "journal.jsonl")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"event":"note"}\n' * 101, "more than 100 events"),
        ("\n" * 101, "more than 100 events"),
        ('{"event":"note","of":[' + "[]," * 398 + "[]]}\n", "more than 400 lists and mappings"),
    ],
)
def test_what_a_journal_from_anywhere_may_hold(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event":"note"}\n' * 100)
    assert len(read_events(path, most=100)) == 100
    path.write_text(text)
    with pytest.raises(UnfitError, match=problem):
        read_events(path, most=100)
    read_events(path)  # a run's own is read to its end


def test_an_event_that_is_too_deep_is_none(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    deep = "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)
    path.write_text(f'{{"event":"note","of":{deep}}}\n{{"event":"note","of":{deep[1:-1]}}}\n')
    assert [e["event"] for e in read_events(path)] == ["unreadable", "note"]
