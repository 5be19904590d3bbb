"""The place ``slurm`` with a queue that a file holds; on a real one: tests/simulations."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import UserError
from simulations.cell_list import LOCK, whereabouts
from simulations.places import on_slurm
from simulations.places.on_slurm import Job, jobs_of, opened
from simulations.places.place import Task, read_note, write_note

Queue = Callable[[str], None]


def task(out: Path, name: str, cpus: int = 1, gpus: float = 0.0) -> Task:
    return Task(name, out, ("simulate", "smoke"), cpus, gpus)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Sets what `squeue` says; it is asked each time."""
    folder = tmp_path / "bin"
    folder.mkdir()
    said = folder / "said"
    squeue = folder / "squeue"
    squeue.write_text(f"#!/bin/sh\n. {said}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(on_slurm, "POLL_SECONDS", -1.0)
    monkeypatch.setattr(on_slurm, "NOTE_SECONDS", -1.0)

    def say(script: str) -> None:
        said.write_text(script)

    say("true")
    return say


class Executor:
    """Takes what submitit's would, and hands in nothing."""

    folder = Path("jobs")

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.handed: list[tuple[dict[str, Any], list[Any]]] = []

    def update_parameters(self, **settings: Any) -> None:
        self.settings |= settings

    @contextmanager
    def batch(self) -> Any:
        self.handed.append((dict(self.settings), []))
        yield

    def submit(self, run: Any) -> Any:
        self.handed[-1][1].append(run)
        return SimpleNamespace(job_id=f"{10 + len(self.handed)}_{len(self.handed[-1][1]) - 1}")


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Executor:
    made = Executor()
    monkeypatch.setattr(on_slurm, "_executor", lambda *_: made)
    return made


def test_cells_of_one_size_are_one_array(tmp_path: Path, queue: Queue, executor: Executor) -> None:
    tasks = [task(tmp_path, "a"), task(tmp_path, "b"), task(tmp_path, "c", 4, 0.5)]
    with opened(tmp_path, {}, 2) as place:
        place.start(tasks)
    (small, two), (large, one) = executor.handed
    assert [run.task.name for run in two] == ["a", "b"]
    assert [run.task.name for run in one] == ["c"]
    assert (small["cpus_per_task"], small.get("gpus_per_node")) == (1, None)
    assert (large["cpus_per_task"], large["gpus_per_node"]) == (4, 1)
    assert small["array_parallelism"] == 2
    assert read_note(tmp_path, "b", "grid")["job"] == "11_1"


def test_a_cell_is_at_work_as_long_as_slurm_has_its_job(
    tmp_path: Path, queue: Queue, executor: Executor
) -> None:
    one = task(tmp_path, "a")
    with opened(tmp_path, {}, None) as place:
        place.start([one])
        attempt = executor.handed[0][1][0].attempt

        def noted(code: int | None) -> None:
            write_note(one, "node", {"attempt": attempt, "node": "n", "starts": 1, "code": code})

        for state in ("PENDING||Priority", "RUNNING|n|None", "COMPLETING|n|None"):
            queue(f"echo '11_0|{state}'")
            assert place.ended(one) is None
        noted(143)  # told to end, and queued again
        queue("echo '11_0|PENDING||BeginTime'")
        assert place.ended(one) is None
        queue("echo '11_0|FAILED|n|NonZeroExitCode'")
        assert place.ended(one) == 143
        noted(None)
        queue("echo '11_0|CANCELLED|n|None'")
        assert "Slurm's job 11_0 is cancelled on n" in str(place.ended(one))
        queue("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
        assert "no longer in the queue" in str(place.ended(one))
        queue("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
        assert place.ended(one) is None
        noted(0)
        assert place.ended(one) == 0
        write_note(one, "node", {"attempt": "older", "code": 0})
        assert place.ended(one) is None
        assert place.stays
        assert "left with Slurm: a (11_0)" in place.stop([one])


def test_a_note_that_comes_late_over_the_network_counts(
    tmp_path: Path, queue: Queue, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = task(tmp_path, "a")
    monkeypatch.setattr(on_slurm, "NOTE_SECONDS", 60.0)
    with opened(tmp_path, {}, None) as place:
        place.start([one])
        queue("echo '11_0|COMPLETED|n|None'")
        assert place.ended(one) is None
        attempt = executor.handed[0][1][0].attempt
        write_note(one, "node", {"attempt": attempt, "code": 1})
        assert place.ended(one) == 1


def test_what_an_earlier_grid_handed_in_is_followed_and_not_handed_in_again(
    tmp_path: Path, queue: Queue, executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [task(tmp_path, name) for name in "ab"]
    for one, job in zip(tasks, ("7_0", "7_1"), strict=True):
        write_note(one, "grid", {"place": "slurm", "job": job, "attempt": "old"})
    queue("echo '7_0|RUNNING|n3|None'; echo '7_1|TIMEOUT|n3|TimeLimit'")
    with opened(tmp_path, {}, None) as place:
        place.start(tasks)
        assert [run.task.name for _, runs in executor.handed for run in runs] == ["b"]
        assert "a is Slurm's job 7_0: running on n3" in capsys.readouterr().out
        write_note(tasks[0], "node", {"attempt": "old", "code": 0})
        assert place.ended(tasks[0]) == 0


def test_the_list_says_where_each_cell_is(tmp_path: Path, queue: Queue) -> None:
    for name, job in {"a": "7_0", "b": "7_1", "c": "8"}.items():
        write_note(task(tmp_path, name), "grid", {"place": "slurm", "job": job, "attempt": "x"})
    write_note(task(tmp_path, "d"), "grid", {"place": "local"})
    ray = {"place": "ray", "address": "h:1", "attempt": "now"}
    for name in "ef":
        write_note(task(tmp_path, name), "grid", ray)
    write_note(task(tmp_path, "e"), "node", {"attempt": "now", "node": "n9"})
    write_note(task(tmp_path, "f"), "node", {"attempt": "older", "node": "n9"})
    queue("echo '7_0|RUNNING|n3|None'; echo '7_1|PENDING||Resources'; echo '8|FAILED|n|x'")
    found = whereabouts(tmp_path, list("abcdefg"))
    assert found == dict.fromkeys("cdefg", "") | {
        "a": "Slurm's job 7_0: running on n3",
        "b": "Slurm's job 7_1: pending (Resources)",
    }
    import fcntl

    with (tmp_path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = whereabouts(tmp_path, list("def"))
    assert found == {
        "d": "this machine",
        "e": "Ray at h:1: running on n9",
        "f": "Ray at h:1: waits for room on a node",
    }


def test_what_slurm_says_is_read(queue: Queue) -> None:
    queue('echo "12_3|RUNNING|n[1-2]|None"; echo "13|PENDING||A | B"')
    assert jobs_of({"12_3", "13"}) == {
        "12_3": Job("RUNNING", "n[1-2]", "None"),
        "13": Job("PENDING", "", "A | B"),
    }


def test_without_submitit_or_slurm_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="srun") as caught, opened(tmp_path, {}, None):
        pass
    assert "sbatch, srun and squeue" in caught.value.remedy
    monkeypatch.setitem(sys.modules, "submitit", None)
    with (
        pytest.raises(UserError, match="submitit is not installed") as caught,
        opened(tmp_path, {}, None),
    ):
        pass
    assert "hnfed[slurm]" in caught.value.remedy


def test_a_setting_that_submitit_does_not_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr("submitit.SlurmExecutor.affinity", classmethod(lambda _: 2))
    for name in ("partitoin", "setup"):
        with (
            pytest.raises(UserError, match="use one of account") as caught,
            opened(tmp_path, {name: "x"}, None),
        ):
            pass
        assert "partition" in caught.value.remedy
