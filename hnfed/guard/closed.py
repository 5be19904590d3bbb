"""Starts the worker of a message, gives it the order, takes its answer, and ends it.

Whatever the worker does, it has this long and this much, it says so many bytes, and its whole
process group is gone afterwards; it does not outlive the guard either.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from core.processes import end_with_parent
from hnfed.guard import frames
from hnfed.guard.environment import worker_environment
from hnfed.guard.log import Log

END_SECONDS = 10.0
WORKER = ("-I", "-B", "-m", "hnfed.guard.worker")


class OvertimeError(RuntimeError):
    """An order took longer than the site's policy allows."""


class WorkerError(RuntimeError):
    """The worker ended without an answer."""


@dataclass(frozen=True)
class Limits:
    """Of one message's worker.

    Attributes:
        seconds: that it may take.
        reply_bytes: that the arrays of its answer may take.
    """

    seconds: float
    reply_bytes: int


class Workers:
    """Starts a process for each message. The next one can load its libraries meanwhile and wait.

    What waits has run installed code alone, and has no walls yet: those depend on the order.

    Args:
        root: folder for their scratch; what lies there goes.
        log: where what they print goes.
    """

    def __init__(self, root: Path, log: Log) -> None:
        self._root, self._log = root, log
        self._waiting: Worker | None = None

    def get_ready(self) -> None:
        """Has a worker wait for the next message."""
        if self._waiting is None:
            self._waiting = Worker(self._root, self._log, waits=True)

    @contextlib.contextmanager
    def taken(self) -> Iterator[Worker]:
        """The worker for one message: the one that waits, if it is still alive."""
        worker, self._waiting = self._waiting, None
        if worker is not None and not worker.alive:
            worker.end(0.0)
            worker = None
        worker = worker or Worker(self._root, self._log)
        try:
            yield worker
        finally:
            worker.end(END_SECONDS if sys.exc_info()[0] is None else 0.0)

    def close(self) -> None:
        """Ends the one that waits."""
        if self._waiting is not None:
            self._waiting.end(0.0)
            self._waiting = None


class Worker:
    """A process for one message, with a scratch folder that is its own and empty.

    Args:
        root: folder of the scratch.
        log: where what it prints goes.
        waits: for an order that is not there yet: it loads its libraries meanwhile.

    Attributes:
        scratch: the folder.
    """

    def __init__(self, root: Path, log: Log, *, waits: bool = False) -> None:
        _cleared(root)  # nothing of an earlier one stays
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._root, self.scratch = root, Path(tempfile.mkdtemp(dir=root))
        self._channel, theirs = socket.socketpair()
        how = [] if waits else [frames.COLD]
        command = [sys.executable, *WORKER, str(theirs.fileno()), *how]
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, cwd=self.scratch, env=_environment(self.scratch),
                pass_fds=(theirs.fileno(),), start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),
            )  # fmt: skip
        finally:
            theirs.close()
        assert self._child.stdout is not None
        self._stdout = self._child.stdout
        self._reader = threading.Thread(target=_read, args=(self._stdout, log), daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._child.poll() is None

    def work(
        self, task: Mapping[str, Any], blobs: Mapping[str, bytes], limits: Limits
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Has one message answered behind the walls.

        Args:
            task: for `hnfed.guard.worker`.
            blobs: arrays by record.
            limits: of the worker.

        Returns:
            Values and arrays of its answer, both as it says.

        Raises:
            OvertimeError: it took too long.
            WorkerError: it ended without an answer, or said what is none.
        """
        late = threading.Event()

        def expire() -> None:
            late.set()
            self._kill()

        timer = threading.Timer(limits.seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            frames.send(self._channel, dict(task), dict(blobs))
            return frames.receive(self._channel, limits.reply_bytes)
        except (frames.FrameError, OSError) as error:
            if late.is_set():
                raise OvertimeError(f"longest_s: {limits.seconds:.0f}") from error
            self._kill()
            code = self._child.wait(END_SECONDS)
            killed = "killed; is memory short?" if code == -signal.SIGKILL else f"exit code {code}"
            raise WorkerError(f"{error} ({killed})") from error
        finally:
            timer.cancel()

    def end(self, seconds: float) -> None:
        """Its process, all that it started and its scratch are gone afterwards.

        Args:
            seconds: that it has to end by itself.
        """
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)
        self._kill()  # and what it left in its group
        self._child.wait()
        self._reader.join(END_SECONDS)
        self._stdout.close()
        _cleared(self._root)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)


def _cleared(root: Path) -> None:
    """Removes a folder as far as that can be: what was made so that it cannot stops no order."""
    with contextlib.suppress(RecursionError):  # folders in folders
        shutil.rmtree(root, ignore_errors=True)


def _environment(scratch: Path) -> dict[str, str]:
    # numpy's threads begin as it is imported; training uses torch's
    own = {"FLWR_HOME": str(scratch), "MPLCONFIGDIR": str(scratch), "OPENBLAS_NUM_THREADS": "1"}
    return worker_environment(scratch) | own


def _read(stream: IO[bytes], log: Log) -> None:
    with contextlib.suppress(ValueError):  # closed by the other thread
        while piece := stream.read1(65536):  # type: ignore[attr-defined]
            log.add(piece.decode("utf-8", "replace"))
