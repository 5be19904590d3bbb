"""`hnfed run`: what died goes on; what would end the same way again, or is at work, does not."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

import pytest
from filelock import FileLock

from core.errors import UserError
from core.identifiers import run_id
from core.journal import JOURNAL, append_event
from hnfed.deploy import submit
from hnfed.deploy.provision import ROSTER
from hnfed.guard.approvals import installed
from hnfed.guard.kit import SERVER, Kit
from server.app import run_folder_of

DONE, FAILED = "finished:completed", "finished:failed"


class Attempts:
    """A federation whose attempts end as they are told to; each writes what it did."""

    def __init__(self, folder: Path, *ends: tuple[int, str | UserError, str]) -> None:
        self.folder = folder
        self.ends = list(ends)
        self.resumed: list[bool] = []

    def __call__(self, kit: Kit, values: dict[str, str], folder: Path) -> str:
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
    over = Thread()
    assert submit._ended(kit, "1", over) == DONE
    monkeypatch.setattr(submit, "SILENT_SECONDS", -1.0)
    answers.append("")
    with pytest.raises(UserError, match="did not answer"):
        submit._ended(kit, "1", over)


def test_flower_is_asked_seldom_until_the_log_of_the_run_is_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each question is a process: one a second took a fifth of a core for as long as a run."""
    asked: list[str] = []
    kit: Any = None

    def status(kit: Kit, run: str) -> str:
        asked.append(run)
        return "running" if not ended.is_set() else DONE

    ended = Event()
    stream = Thread(target=ended.wait, args=(30.0,), daemon=True)
    stream.start()
    monkeypatch.setattr(submit, "_status", status)
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(submit, "ASK_SECONDS", 60.0)
    Timer(0.3, ended.set).start()
    assert submit._ended(kit, "1", stream) == DONE, "at once, not after the 60 s"
    assert len(asked) == 2, "once, and when the log was at its end"


def test_a_run_whose_log_broke_off_is_asked_for_ever_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, pauses = ["running"] * 6 + ["finished:failed"], []
    kit: Any = None
    monkeypatch.setattr(submit, "_status", lambda kit, run: answers.pop(0))
    monkeypatch.setattr(submit.time, "sleep", pauses.append)
    assert submit._ended(kit, "1", Thread()) == "finished:failed"
    assert pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


@pytest.mark.parametrize("told", ["", "no JSON", '{"success": false}', '{"runs": []}'])
def test_what_flower_says_instead_of_a_status(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    kit: Any = None
    monkeypatch.setattr(submit, "flower", lambda *_: told)
    with pytest.raises(UserError):
        submit._status(kit, "1")


def test_without_it_one_attempt_is_all(run: Any) -> None:
    assert run(0, (1, FAILED, "")) == (FAILED, [False])


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    monkeypatch.setattr(submit, "answers", lambda *_: True)
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.01)
    (tmp_path / "runs").mkdir()
    (tmp_path / ROSTER).write_text('{"miccai": "key", "nyu": "key"}')
    return Kit(tmp_path, "hn", SERVER, "127.0.0.1", 1, 2)


def at_work(kit: Kit, run: str = "") -> tuple[Path, FileLock]:
    """A run's folder, and the lock that its ServerApp holds."""
    folder = kit.folder / "runs" / "x"
    (folder / "state").mkdir(parents=True)
    if run:
        (folder / submit.FLOWER_RUN).write_text(run)
    return folder, FileLock(folder / "state" / ".lock")


def test_without_a_server_nothing_is_made(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "answers", lambda *_: False)
    with pytest.raises(UserError, match=r"does not answer on 127\.0\.0\.1:2\n.*hnfed server"):
        submit.submit(kit, "smoke", [], again=3)
    assert not list((kit.folder / "runs").iterdir())


def test_what_is_no_number_of_tries(kit: Kit) -> None:
    with pytest.raises(UserError, match="--auto-resume"):
        submit.submit(kit, "smoke", [], again=-1)


def test_a_site_that_the_federation_does_not_have(kit: Kit) -> None:
    with pytest.raises(UserError, match=r"site_b: no such site in this federation\n.*miccai, nyu"):
        submit.submit(kit, "smoke", ["phases.pretrain.sites=[nyu, site_b]"])
    assert not list((kit.folder / "runs").iterdir())


def test_a_site_that_was_revoked_does_not_keep_a_run_from_going_on(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "_run_on", lambda *_: DONE)
    monkeypatch.setattr("hnfed.report.page.write_report", lambda folder: folder)
    assert submit.submit(kit, "smoke", [], name="x") == 0
    (kit.folder / ROSTER).write_text('{"nyu": "key"}')
    assert submit.submit(kit, "smoke", [], name="x", resume=True) == 0


@pytest.mark.parametrize("name", ["run 1", "lr=0.01", "lauf-ä", "a:b", "x" * 200, "-x"])
def test_a_run_of_any_name_goes_from_start_to_end_and_on(
    name: str, kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[dict[str, str]] = []

    def run_on(_: Kit, values: dict[str, str], folder: Path, again: int) -> str:
        told.append(values)
        return DONE if len(told) > 1 else "finished:failed"

    monkeypatch.setattr(submit, "_run_on", run_on)
    monkeypatch.setattr("hnfed.report.page.write_report", lambda folder: folder)
    assert submit.submit(kit, "smoke", [], name=name) == 1
    command = shlex.split(capsys.readouterr().err.strip().splitlines()[-1])
    assert command[-2:] == [f"--name={name}", "--resume"]
    assert submit.submit(kit, "smoke", [], name=name, resume=True) == 0
    assert {v["out"] for v in told} == {name}
    assert len({v["run_id"] for v in told}) == 1
    assert run_id(told[0]["run_id"])
    monkeypatch.setenv("HNFED_RUNS", str(kit.folder / "runs"))
    assert run_folder_of(told[0]["out"]) == kit.folder / "runs" / name


def test_the_bundles_hash_is_told_as_the_sites_see_it(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "flower", lambda *_: '{"run-id": "5"}')
    assert submit._submitted(kit, {}) == "5"
    assert hashlib.sha256(installed()).hexdigest() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("told", "words"),
    [({"success": False, "error-message": "a\nno such app"}, "no such app"), ({}, "named no run")],
)
def test_an_answer_without_a_run(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(submit, "flower", lambda *_: json.dumps(told))
    with pytest.raises(UserError, match=words):
        submit._submitted(kit, {})


def test_a_run_at_work_is_followed_again_and_none_is_submitted(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lock = at_work(kit, "77")
    status = ["running"]
    monkeypatch.setattr(submit, "_status", lambda kit, run, unknown="": status[0])
    monkeypatch.setattr(submit, "_followed", lambda kit, run: f"{DONE} {run}")
    monkeypatch.setattr(submit, "_submitted", lambda kit, values: "78")
    with lock:
        assert submit._run(kit, {"resume": "1"}, folder) == f"{DONE} 77"
    status[0] = "starting"
    (folder / submit.FLOWER_RUN).write_text("79")
    assert submit._run(kit, {"resume": "1"}, folder) == f"{DONE} 79", "it takes the lock later"
    status[0] = "running"
    assert submit._run(kit, {"resume": "1"}, folder) == f"{DONE} 78", "it died: a new attempt"
    assert (folder / submit.FLOWER_RUN).read_text() == "78"


@pytest.mark.parametrize("run", ["", "77"])
def test_a_run_at_work_that_cannot_be_followed_is_refused(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    folder, lock = at_work(kit, run)
    monkeypatch.setattr(submit, "END_SECONDS", 0.0)
    monkeypatch.setattr(submit, "_status", lambda kit, run, unknown="": "finished:stopped")
    with lock, pytest.raises(UserError, match="still at work") as refused:
        submit._run(kit, {"resume": "1"}, folder)
    assert "journal.jsonl" in str(refused.value)
    assert "stop ID" in str(refused.value)


def test_an_interrupted_run_is_stopped_and_its_resumption_told(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []

    def flower(kit: Kit, *words: str) -> str:
        asked.append(words)
        return '{"run-id": "5"}'

    def interrupted(*_: Any) -> str:
        raise KeyboardInterrupt

    class Stream:
        stdout = ()

        def __init__(self, *_: Any, **__: Any) -> None: ...
        def kill(self) -> None: ...
        def wait(self) -> None: ...

    monkeypatch.setattr(submit, "flower", flower)
    monkeypatch.setattr(submit, "_ended", interrupted)
    monkeypatch.setattr(submit.subprocess, "Popen", Stream)
    with pytest.raises(KeyboardInterrupt):
        submit.submit(kit, "smoke", ["preprocess.spacing_mm=[6,9,9]"], name="x")
    assert asked[-1][:2] == ("stop", "5")
    told = capsys.readouterr().err
    assert "the run was stopped at the server" in told
    command = told.strip().splitlines()[-1]
    assert shlex.split(command) == [
        "hnfed", "run", "smoke", "preprocess.spacing_mm=[6,9,9]", "--server", str(kit.folder),
        "--name=x", "--resume",
    ]  # fmt: skip
    assert "'preprocess.spacing_mm=[6,9,9]'" in command, "the shell must not read the brackets"


def test_an_interruption_is_one_where_the_server_is_down_too(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flower(kit: Kit, *words: str) -> str:
        raise UserError("server", "x", "start it", problem="Flower did not answer")

    monkeypatch.setattr(submit, "flower", flower)
    submit._stop(kit, "5")
    assert "could not be stopped at the server: Flower did not answer" in capsys.readouterr().err
