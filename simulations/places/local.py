"""Cells as processes of this machine, which end with their grid."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from simulations.places.place import Ending, Place, Task, command, environment, write_note

NAME = "local"
GRACE_SECONDS = 60.0


@contextmanager
def opened(side_by_side: int, lock: int) -> Iterator[Place]:
    """This machine.

    Args:
        side_by_side: cells at a time, where the user gives no number.
        lock: file descriptor of the folder's lock; the cells inherit it, so one that outlives its
            grid holds the folder too.
    """
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(tasks: Sequence[Task]) -> None:
        for task in tasks:
            with task.log.open("ab") as file:
                processes[task.name] = subprocess.Popen(
                    command(task.started()),
                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                    env=environment(), start_new_session=True, pass_fds=(lock,),
                )  # fmt: skip
            write_note(task, "grid", {"place": NAME})

    def ended(task: Task) -> Ending | None:
        return processes[task.name].poll()

    def stop(tasks: Sequence[Task]) -> str:
        tasks = [task for task in tasks if task.name in processes]
        for task in tasks:
            processes[task.name].terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for task in tasks:
            try:
                processes[task.name].wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                processes[task.name].kill()
                processes[task.name].wait()
        names = ", ".join(task.name for task in tasks)
        return f"ended: {names}; the same command goes on with them"

    yield Place(NAME, side_by_side, False, start, ended, stop)
