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

    def __init__(self, folder: Path, *ends: tuple[int, str | UserError, bool]) -> None:
        self.folder = folder
        self.ends = list(ends)
        self.resumed: list[bool] = []

    def __call__(self, kit: Kit, values: dict[str, str]) -> str:
        self.resumed.append(bool(values["resume"]))
        rounds, status, closed = self.ends.pop(0)
        for _ in range(rounds):
            append_event(self.folder / JOURNAL, {"event": "round"})
        if closed:
            append_event(self.folder / JOURNAL, {"event": "run-end"})
        if isinstance(status, UserError):
            raise status
        return status


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(submit, "RESUME_SECONDS", 0.0)

    def go(again: int, *ends: tuple[int, str | UserError, bool]) -> tuple[str, list[bool]]:
        attempts = Attempts(tmp_path, *ends)
        monkeypatch.setattr(submit, "_run", attempts)
        kit: Any = None
        return submit._run_on(kit, {"resume": ""}, tmp_path, again), attempts.resumed

    return go


def test_a_run_that_died_is_resumed_until_it_is_done(run: Any) -> None:
    found = run(5, (1, FAILED, False), (0, FAILED, False), (2, DONE, True))
    assert found == (DONE, [False, True, True])


def test_a_server_that_is_away_is_waited_for(run: Any) -> None:
    away = UserError("server", "127.0.0.1:1", "start it", problem="Flower did not answer")
    assert run(2, (1, away, False), (1, DONE, True)) == (DONE, [False, True])
    with pytest.raises(UserError, match="did not answer"):
        run(0, (0, away, False))


def test_what_ended_by_itself_without_a_round_is_not_tried_again(run: Any) -> None:
    assert run(9, (0, FAILED, True)) == (FAILED, [False])


def test_what_ended_by_itself_after_a_round_is_tried_again(run: Any) -> None:
    assert run(9, (1, FAILED, True), (1, DONE, True)) == (DONE, [False, True])


def test_without_it_one_attempt_is_all(run: Any) -> None:
    assert run(0, (1, FAILED, False)) == (FAILED, [False])
