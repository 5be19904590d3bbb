"""A cell on a node of a cluster: one start of it, which goes on with what an earlier one has left.

The cluster's own machinery calls this on the node: Ray as a task, submitit as a job of Slurm's.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from core.processes import with_parent
from simulations.places.place import Task, command, environment, read_note, write_note

GRACE_SECONDS = 60.0  # of a cell that is told to end; it keeps what it has done
_at_work: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class CellRun:
    """Runs a cell to its end.

    Attributes:
        task: the cell.
        attempt: of the grid, which tells its own notes from older ones by it.
    """

    task: Task
    attempt: str

    def __call__(self) -> int:
        """Starts the cell here, or goes on with it, and waits for its end.

        Returns:
            Its exit code. Where this process is told to end before, the cell ends first.
        """
        before = read_note(self.task.out, self.task.name, "node")
        starts = int(before.get("starts", 0)) if before.get("attempt") == self.attempt else 0
        note = {"attempt": self.attempt, "node": socket.gethostname(), "starts": starts + 1}
        write_note(self.task, "node", {**note, "code": None})
        with self.task.log.open("ab") as file:
            process = subprocess.Popen(
                command(self.task.started()),
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                env=environment(), start_new_session=True, preexec_fn=_of_this_process,
            )  # fmt: skip
        _at_work.append(process)
        try:
            code = process.wait()
        finally:
            _end(process)
            _at_work.remove(process)
        write_note(self.task, "node", {**note, "code": code})
        return code

    def checkpoint(self) -> Any:
        """For submitit: the job's time is over; the cell ends in order, and is queued again."""
        from submitit.helpers import DelayedSubmission

        for process in _at_work:
            _end(process)
        return DelayedSubmission(self)


def _of_this_process() -> None:
    """The cell ends with this process; Slurm's warning before the end is not for it."""
    with_parent()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    if process.poll() is None:
        process.kill()
        process.wait()
