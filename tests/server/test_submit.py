"""`hnfed run --auto-resume`: what died goes on; what would end the same way again does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.journal import JOURNAL, append_event
from core.kit import Kit
from server import submit

DONE, FAILED = "finished:completed", "finished:failed"


class Attempts:
    """A federation whose attempts end as they are told to; each writes what it did."""

    def __init__(self, folder: Path, *ends: tuple[int, str | UserError, str]) -> None:
        self.folder = folder
        self.ends = list(ends)
        self.resumed: list[bool] = []

    def __call__(self, kit: Kit, values: dict[str, str]) -> str:
        self.resumed.append(bool(values["resume"]))
        rounds, status, closed = self.ends.pop(0)
        for _ in range(rounds):
            append_event(self.folder / JOURNAL, {"event": "round"})
        if closed:
            append_event(self.folder / JOURNAL, {"event": "run-end", "status": closed})
        if isinstance(status, UserError):
            raise status
        return status


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(submit, "RESUME_SECONDS", 0.0)

    def go(again: int, *ends: tuple[int, str | UserError, str]) -> tuple[str, list[bool]]:
        attempts = Attempts(tmp_path, *ends)
        monkeypatch.setattr(submit, "_run", attempts)
        kit: Any = None
        return submit._run_on(kit, {"resume": ""}, tmp_path, again), attempts.resumed

    return go


def test_a_run_that_died_is_resumed_until_it_is_done(run: Any) -> None:
    found = run(5, (1, FAILED, ""), (0, FAILED, ""), (2, DONE, "completed"))
    assert found == (DONE, [False, True, True])


def test_a_server_that_is_away_is_waited_for(run: Any) -> None:
    away = UserError("server", "127.0.0.1:1", "start it", problem="Flower did not answer")
    assert run(2, (1, away, ""), (1, DONE, "completed")) == (DONE, [False, True])
    with pytest.raises(UserError, match="did not answer"):
        run(0, (0, away, ""))


def test_what_ended_by_itself_without_a_round_is_not_tried_again(run: Any) -> None:
    assert run(9, (0, FAILED, "failed")) == (FAILED, [False])


def test_what_ended_by_itself_after_a_round_is_tried_again(run: Any) -> None:
    assert run(9, (1, FAILED, "failed"), (1, DONE, "completed")) == (DONE, [False, True])


def test_a_server_that_died_before_a_round_was_done_is_no_end(run: Any) -> None:
    """Flower ends our ServerApp with its SuperLink: the journal gets its last line all the same."""
    ends = ((0, FAILED, "interrupted"), (1, DONE, "completed"))
    assert run(9, *ends) == (DONE, [False, True])


def test_an_end_of_an_attempt_before_does_not_count(run: Any, tmp_path: Path) -> None:
    append_event(tmp_path / JOURNAL, {"event": "run-end", "status": "failed"})
    away = UserError("server", "127.0.0.1:1", "start it", problem="Flower did not answer")
    assert run(2, (0, away, ""), (1, DONE, "completed")) == (DONE, [False, True])


def test_what_a_user_stopped_stays_stopped(run: Any) -> None:
    assert run(9, (3, "finished:stopped", "interrupted")) == ("finished:stopped", [False])


def test_a_server_that_is_silent_for_a_while_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = ["running", "", "", DONE]

    def status(kit: Kit, run: str) -> str:
        answer = answers.pop(0)
        if not answer:
            raise UserError("server", "127.0.0.1:1", "start it", problem="Flower did not answer")
        return answer

    kit: Any = None
    monkeypatch.setattr(submit, "_status", status)
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.0)
    assert submit._ended(kit, "1") == DONE
    monkeypatch.setattr(submit, "SILENT_SECONDS", -1.0)
    answers.append("")
    with pytest.raises(UserError, match="did not answer"):
        submit._ended(kit, "1")


@pytest.mark.parametrize("told", ["", "no JSON", '{"success": false}', '{"runs": []}'])
def test_what_flower_says_instead_of_a_status(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    kit: Any = None
    monkeypatch.setattr(submit, "flower", lambda *_: told)
    with pytest.raises(UserError):
        submit._status(kit, "1")


def test_without_it_one_attempt_is_all(run: Any) -> None:
    assert run(0, (1, FAILED, "")) == (FAILED, [False])
