from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from core.journal import read_events
from core.plan.schema import Phase, Plan
from server.record import JOURNAL, Recorder, end_untold, tell


def test_every_line_that_is_told_bears_the_mark(capsys: pytest.CaptureFixture[str]) -> None:
    tell("error: x = 3\n  remedy: mend it")
    assert capsys.readouterr().out.splitlines() == [
        "hnfed| error: x = 3",
        "hnfed|   remedy: mend it",
    ]


@pytest.mark.parametrize(
    ("told", "asked", "status"),
    [
        ("", "interrupted", "interrupted"),
        ("incomplete", "interrupted", "interrupted"),  # its sites were ended a moment before it
        ("incomplete", "failed", "incomplete"),
        ("completed", "interrupted", "completed"),
    ],
)
def test_the_end_of_a_run_is_told_once_and_truly(
    tmp_path: Path, told: str, asked: str, status: str
) -> None:
    plan = Plan(phases=[Phase(name="p", sites=["a"], organs=["Brainstem"])])
    recorder = Recorder(tmp_path, "r-1", plan)
    recorder.say({"event": "run-start", "run": "r-1"})
    if told:
        recorder.write_metrics(told)
        recorder.say({"event": "run-end", "status": told, "seconds": 1.0})
    end_untold(tmp_path, "r-1", plan, asked)
    assert json.loads((tmp_path / "metrics.json").read_text())["status"] == status
    last = read_events(tmp_path / JOURNAL)[-1]
    assert (last["event"], last["status"]) == ("run-end", status)


def test_a_corrected_end_counts_from_the_start(tmp_path: Path) -> None:
    lines = [
        {"time": "2026-01-01T10:00:00.000+00:00", "event": "run-start", "run": "r-1"},
        {"time": "2026-01-01T10:01:00.000+00:00", "event": "run-end", "status": "incomplete"},
    ]
    (tmp_path / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = Plan(phases=[Phase(name="p", sites=["a"], organs=["Brainstem"])])
    end_untold(tmp_path, "r-1", plan, "interrupted")
    ends = [e["seconds"] for e in read_events(tmp_path / JOURNAL) if e.get("seconds")]
    since = datetime.now(UTC) - datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert ends == [pytest.approx(since.total_seconds(), abs=30)]
