"""Where a run stands, from its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from core.errors import UserError
from core.journal import JOURNAL
from hnfed.watch.run_state import RunState, read_run_state
from tests.hnfed.watch.journals import START, accepted, cell, rejected, round_of, sent, started


@contextmanager
def at_work(run: Path) -> Iterator[None]:
    (run / "state").mkdir(exist_ok=True)
    with FileLock(run / "state" / ".lock"):
        yield


def seen(run: Path, second: float) -> RunState:
    return read_run_state(run, START + second)


def sites(state: RunState) -> dict[str, str]:
    return {site.name: site.state for site in state.sites}


def test_sites_train_answer_and_are_late(tmp_path: Path) -> None:
    run = started(tmp_path, (2, sent("a", 1)), (2, sent("b", 1)))
    with at_work(run):
        state = seen(run, 5)
        assert (state.state, state.ended, state.seconds) == ("running", "", 5.0)
        assert sites(state) == {"a": "training", "b": "training"}
        assert [s.seconds for s in state.sites] == [3.0, 3.0]
        assert sites(seen(run, 5000)) == {"a": "training", "b": "training"}, "nothing to compare"
    other = started(tmp_path / "other", (2, sent("a", 1)), (12, accepted("a", 1)),
                    (13, sent("a", 2)))  # fmt: skip
    with at_work(other):
        assert sites(seen(other, 50))["a"] == "training"
        assert sites(seen(other, 13 + 1.5 * 10 + 31))["a"] == "late"


def test_a_refusal_is_told_with_its_reason(tmp_path: Path) -> None:
    run = started(
        tmp_path, (2, sent("a", 1)), (2, sent("b", 1)), (3, rejected("a", 1, "E_POLICY")),
        (3, rejected("b", 1, "E_ERROR", "the site is not connected; Flower error 5")),
    )  # fmt: skip
    with at_work(run):
        a, b = seen(run, 4).sites
    assert (a.state, a.code, a.refused) == ("refused", "E_POLICY", 1)
    assert "policy.yaml" in a.why
    assert b.state == "not connected"
    with at_work(run):
        started(run, (5, sent("a", 1)))
        (a, _) = seen(run, 6).sites
    assert (a.state, a.code, a.refused) == ("training", "", 0), "of the latest start"


def test_scores_are_pooled_over_published_cells_and_have_a_trend(tmp_path: Path) -> None:
    run = started(
        tmp_path,
        (2, round_of(1, {"a": {"Brainstem": cell(3, 0.2)}, "b": {"Brainstem": cell(1, 0.6)}})),
        (3, round_of(2, {"a": {"Brainstem": cell(3, 0.4)}, "b": {"Brainstem": cell(None, None)}})),
        (3, round_of(2, {"a": {"Brainstem": cell(3, 0.4)}, "b": {"Brainstem": cell(None, None)}})),
    )  # fmt: skip
    with at_work(run):
        state = seen(run, 30)
    (organ,) = state.phases[0].organs
    assert organ.history == [(0, pytest.approx(0.3)), (1, pytest.approx(0.4))]
    assert organ.dice == pytest.approx(0.4)
    assert organ.sites == {"a": 0.4, "b": None}
    assert organ.withheld
    phase = state.phases[0]
    assert (phase.state, phase.round, phase.best_round) == ("running", 2, 1)
    assert phase.seconds_left == pytest.approx(2 * 10.0), "a round told twice counts once"
    assert state.phases[1].state == "to come"
    assert (state.bytes_to_sites, state.bytes_from_sites) == (400, 360)


def test_where_all_cells_are_withheld_there_is_no_score(tmp_path: Path) -> None:
    run = started(tmp_path, (2, round_of(1, {"a": {"Brainstem": cell(None, None)}})))
    (organ,) = seen(run, 3).phases[0].organs
    assert (organ.dice, organ.history, organ.withheld) == (None, [], True)


@pytest.mark.parametrize(
    ("status", "well"),
    [("completed", True), ("failed", False), ("interrupted", False), ("incomplete", False)],
)
def test_an_end_is_told(tmp_path: Path, status: str, well: bool) -> None:
    run = started(
        tmp_path, (2, sent("a", 1)), (8, {"event": "note", "text": "why it ended"}),
        (9, {"event": "run-end", "status": status, "seconds": 9.0}),
    )  # fmt: skip
    state = seen(run, 500)
    assert (state.state, state.well, state.over, state.seconds) == (status, well, True, 9.0)
    assert state.notes == ["why it ended"]
    assert sites(state)["a"] == "unanswered"


def test_a_run_that_was_killed_has_vanished(tmp_path: Path) -> None:
    run = started(tmp_path, (2, sent("a", 1)))
    with at_work(run):
        assert seen(run, 3).state == "running"
    state = seen(run, 60)
    assert (state.state, state.over, state.well) == ("vanished", True, False)
    assert "--resume" in state.ended
    assert state.seconds == 2.0, "to its last word"


def test_looking_never_takes_a_lock(tmp_path: Path) -> None:
    """A start that found its lock taken by a look would be refused."""
    run = started(tmp_path)
    (run / "state").mkdir()
    (run / "state" / ".lock").touch()
    before = (run / "state" / ".lock").stat()
    taken: list[str] = []

    def refuse(*_: object, **__: object) -> None:
        taken.append("taken")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("filelock.FileLock.acquire", refuse)
        patch.setattr("fcntl.flock", refuse)
        seen(run, 3)
    assert taken == []
    assert (run / "state" / ".lock").stat().st_mtime == before.st_mtime


def test_before_the_journal_there_is_a_run_that_waits_or_prepares(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"phases": []}))
    assert seen(tmp_path, 0).state == "waiting"
    with FileLock(tmp_path / ".start.lock"):
        assert seen(tmp_path, 0).state == "preparing"


def test_a_phase_that_is_through_shows_its_best_weights_and_the_test(tmp_path: Path) -> None:
    run = started(tmp_path, (2, round_of(1, {"a": {"Brainstem": cell(3, 0.25)}})))
    block = {
        "name": "pretrain", "rounds": 1, "best_round": 1,
        "sites": {"a": {"val": {"Brainstem": cell(3, 0.7)}, "test": {}}},
        "mean": {"dice": 0.8, "organs": {"Brainstem": cell(3, 0.8)}},
        "mean_val": {"dice": 0.7, "organs": {"Brainstem": cell(3, 0.7)}},
    }  # fmt: skip
    (run / "metrics.json").write_text(json.dumps({"schema": 1, "phases": [block]}))
    phase = seen(run, 5).phases[0]
    assert (phase.state, phase.dice, phase.test, phase.best_round) == ("done", 0.7, 0.8, 1)
    (organ,) = phase.organs
    assert (organ.dice, organ.test, organ.sites) == (0.7, 0.8, {"a": 0.7})
    assert organ.history == [(0, 0.25), (1, 0.7)]
    block["mean"] = {"dice": None, "organs": {"Brainstem": cell(None, None)}}
    (run / "metrics.json").write_text(json.dumps({"schema": 1, "phases": [block]}))
    phase = seen(run, 5).phases[0]
    assert (phase.test, phase.withheld) == (None, True)


def test_a_folder_from_anywhere_is_no_danger(tmp_path: Path) -> None:
    run = started(tmp_path, (2, {"event": "note", "text": "\x1b[2Jgone"}),
                  (2, sent("../up", 1)), (2, sent("a", 1)))  # fmt: skip
    with (run / JOURNAL).open("a") as file:
        file.write('{"torn')
    (run / "metrics.json").write_text("[1, 2")
    state = seen(run, 3)
    assert state.notes == ["<U+001B>[2Jgone"]
    assert "../up" not in sites(state)
    assert any("names are none" in text for text in state.problems)
    assert any("metrics.json" in text for text in state.problems)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_run_state(tmp_path / "absent")
    with pytest.raises(UserError, match="neither a run nor a kit"):
        read_run_state(tmp_path)


def test_the_data_are_plain_json(tmp_path: Path) -> None:
    run = started(tmp_path, (2, round_of(1, {"a": {"Brainstem": cell(3, 0.25)}})))
    told = json.loads(json.dumps(seen(run, 3).to_json(), allow_nan=False))
    assert told["phases"][0]["organs"][0]["history"] == [[0, 0.25]]
    assert "pids" not in told


def test_lines_that_are_no_events_are_counted_but_for_a_torn_last_one(tmp_path: Path) -> None:
    run = started(tmp_path)
    with (run / JOURNAL).open("a") as file:
        file.write("0\n" * 50 + '{"torn')
    assert seen(run, 3).problems == [f"{JOURNAL}: 50 lines are no events"]
