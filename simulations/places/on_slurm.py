"""Cells as jobs of Slurm's, in arrays that submitit hands in; they outlive their grid."""

from __future__ import annotations

import math
import secrets
import shlex
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import private_folder
from simulations.places.cell_run import CellRun
from simulations.places.place import (
    NOTES,
    ROOT,
    Ending,
    Place,
    Task,
    no_such,
    read_note,
    write_note,
)

NAME = "slurm"
POLL_SECONDS = 5.0
NOTE_SECONDS = 30.0  # until what a node wrote last is seen here, over a network's file system
# A job that comes to its time limit is queued again, and its cell goes on: so often, so long each.
REQUEUES, MINUTES = 100, 240
OVER = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL",
    "DEADLINE", "PREEMPTED", "REVOKED",
}  # fmt: skip
OWN = ("job_name", "cpus_per_task", "gpus_per_node", "setup", "nodes", "ntasks_per_node")


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job.

    Attributes:
        state: such as ``PENDING``.
        nodes: where it is; "" before.
        reason: why it waits, or why it ended so.
    """

    state: str
    nodes: str
    reason: str

    def words(self) -> str:
        """``running on node7``, ``pending (Priority)``."""
        state = self.state.lower().replace("_", " ")
        if self.state != "PENDING" and self.nodes:
            return f"{state} on {self.nodes}"
        return f"{state} ({self.reason})" if self.reason not in ("", "None") else state


class Queue:
    """Slurm's queue, asked once in a while for all jobs together."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] | None = {}
        self._asked: set[str] = set()
        self._when = -math.inf

    def job(self, identifier: str, among: Sequence[str]) -> Job | None:
        """A job; one that Slurm has forgotten is over, one that it cannot tell of is none."""
        wanted = set(among) | {identifier}
        if not wanted <= self._asked or time.monotonic() - self._when > POLL_SECONDS:
            self._jobs, self._asked, self._when = jobs_of(wanted), wanted, time.monotonic()
        if self._jobs is None:
            return None
        return self._jobs.get(identifier, Job("COMPLETED", "", "no longer in the queue"))


def jobs_of(identifiers: set[str]) -> dict[str, Job] | None:
    """What `squeue` says of these jobs, those that Slurm still knows; None where it says nothing.

    Accounting (`sacct`), which many clusters lack, is not asked.
    """
    arrays = sorted({identifier.partition("_")[0] for identifier in identifiers})
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%r"]
    try:
        done = subprocess.run(
            [*command, f"--jobs={','.join(arrays)}"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return {} if "Invalid job id" in done.stderr else None
    rows = [line.strip().split("|", 3) for line in done.stdout.splitlines()]
    return {row[0]: Job(row[1], row[2], row[3]) for row in rows if len(row) == 4}


@contextmanager
def opened(out: Path, settings: Mapping[str, Any], side_by_side: int | None) -> Iterator[Place]:
    """The Slurm cluster that this machine can submit to.

    Args:
        out: folder of the cells, on a path that all nodes share.
        settings: of submitit's `SlurmExecutor`, such as ``partition`` and ``time`` (minutes).
        side_by_side: cells of an array at a time.

    Raises:
        UserError: there is no submitit or no Slurm here, or a setting that submitit does not have.
    """
    executor = _executor(out, {"time": MINUTES, **settings})
    if side_by_side is not None:
        executor.update_parameters(array_parallelism=side_by_side)
    queue = Queue()
    jobs: dict[str, tuple[str, str]] = {}  # by cell: job and attempt
    seen: dict[str, float] = {}  # by cell: when it was looked at
    over: dict[str, float] = {}  # by job without an exit code: when it was found to be over

    def look(identifier: str) -> Job | None:
        return queue.job(identifier, [job for job, _ in jobs.values()])

    def start(tasks: Sequence[Task]) -> None:
        fresh = []
        for task in tasks:
            note = read_note(out, task.name, "grid")
            known = look(note["job"]) if note.get("place") == NAME and note.get("job") else None
            if known is not None and known.state not in OVER:
                jobs[task.name] = (note["job"], note["attempt"])
                print(f"{task.name} is Slurm's job {note['job']}: {known.words()}", flush=True)
            else:
                fresh.append(task)
        for size in sorted({(task.cpus, task.gpus) for task in fresh}):
            jobs.update(_submit(executor, [t for t in fresh if (t.cpus, t.gpus) == size]))

    def ended(task: Task) -> Ending | None:
        identifier, attempt = jobs[task.name]
        now = time.monotonic()
        if now - seen.get(task.name, -math.inf) < POLL_SECONDS:
            return None
        seen[task.name] = now
        note = read_note(out, task.name, "node")
        code = note.get("code") if note.get("attempt") == attempt else None
        if code == 0:
            return 0
        found = look(identifier)
        if found is None or found.state not in OVER:
            return None
        if code is not None:
            return int(code)
        if now - over.setdefault(identifier, now) < NOTE_SECONDS:
            return None
        where = f"; its output: {executor.folder}/{identifier}_0_log.err"
        return f"Slurm's job {identifier} is {found.words()}{where}"

    def stop(tasks: Sequence[Task]) -> str:
        left = ", ".join(
            f"{task.name} ({jobs[task.name][0]})" for task in tasks if task.name in jobs
        )
        return f"left with Slurm: {left}; the same command follows them, scancel JOB ends one"

    yield Place(NAME, None, True, start, ended, stop)


def _executor(out: Path, settings: Mapping[str, Any]) -> Any:
    try:
        from submitit import SlurmExecutor
    except ImportError:
        raise no_such(NAME, "submitit") from None
    private_folder(out / NOTES)
    try:
        executor = SlurmExecutor(out / NOTES / NAME, max_num_timeout=REQUEUES)
    except RuntimeError as error:
        remedy = "run this on a machine that can submit jobs: sbatch, srun and squeue on the PATH"
        raise UserError("--on", NAME, remedy, problem=str(error)) from None
    known = sorted(executor._valid_parameters() - set(OWN))
    for name, value in settings.items():
        if name not in known:
            raise UserError("--slurm", f"{name}={value}", f"use one of {', '.join(known)}")
    try:
        executor.update_parameters(**settings)
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError("--slurm", dict(settings), "correct it", problem=str(error)) from None
    return executor


def _submit(executor: Any, tasks: Sequence[Task]) -> dict[str, tuple[str, str]]:
    """Hands in cells that need the same, as one array; returns job and attempt by cell."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if not tasks:
        return {}
    gpus = {"gpus_per_node": math.ceil(tasks[0].gpus)} if tasks[0].gpus else {}
    path = f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"
    attempts = [secrets.token_hex(8) for _ in tasks]
    executor.update_parameters(
        job_name=f"hnfed-{tasks[0].out.name}", cpus_per_task=tasks[0].cpus, setup=[path], **gpus
    )
    runs = [CellRun(task, attempt) for task, attempt in zip(tasks, attempts, strict=True)]
    handed = []
    try:
        with warnings.catch_warnings(), executor.batch():
            warnings.simplefilter("ignore")
            handed = [executor.submit(run) for run in runs]
    except (FailedJobError, FailedSubmissionError) as error:
        remedy = "correct --slurm KEY=VALUE (partition, time, account ...)"
        problem = " ".join(str(error).split())
        raise UserError("--on", NAME, remedy, problem=problem or "sbatch failed") from None
    found = {}
    for task, attempt, job in zip(tasks, attempts, handed, strict=True):
        write_note(task, "grid", {"place": NAME, "job": job.job_id, "attempt": attempt})
        found[task.name] = (str(job.job_id), attempt)
    return found
