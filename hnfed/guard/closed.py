"""Starts the worker of one message, gives it the order, takes its answer, and ends it.

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

from core.service import end_with_parent
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


def work(
    task: Mapping[str, Any],
    blobs: Mapping[str, bytes],
    limits: Limits,
    *,
    scratch: Path,
    log: Log,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Has one message answered behind the walls.

    Args:
        task: for `hnfed.guard.worker`.
        blobs: arrays by record.
        limits: of the worker.
        scratch: an empty folder that is its own.
        log: where what it prints goes.

    Returns:
        Values and arrays of its answer, both as it says.

    Raises:
        OvertimeError: it took too long.
        WorkerError: it ended without an answer, or said what is none.
    """
    late = threading.Event()
    with _started(scratch, log) as (child, channel):

        def expire() -> None:
            late.set()
            _kill(child)

        timer = threading.Timer(limits.seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            frames.send(channel, dict(task), dict(blobs))
            return frames.receive(channel, limits.reply_bytes)
        except (frames.FrameError, OSError) as error:
            if late.is_set():
                raise OvertimeError(f"longest_s: {limits.seconds:.0f}") from error
            _kill(child)
            code = child.wait(END_SECONDS)
            killed = "killed; is memory short?" if code == -signal.SIGKILL else f"exit code {code}"
            raise WorkerError(f"{error} ({killed})") from error
        finally:
            timer.cancel()


@contextlib.contextmanager
def _started(scratch: Path, log: Log) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, *WORKER, str(theirs.fileno())]
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=scratch, env=_environment(scratch), pass_fds=(theirs.fileno(),),
            start_new_session=True, preexec_fn=partial(end_with_parent, os.getpid()),
        )  # fmt: skip
    finally:
        theirs.close()
    assert child.stdout is not None
    reader = threading.Thread(target=_read, args=(child.stdout, log), daemon=True)
    reader.start()
    try:
        yield child, ours
    finally:
        ours.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(END_SECONDS if sys.exc_info()[0] is None else 0.0)
        _kill(child)  # and what it left in its group
        child.wait()
        reader.join(END_SECONDS)
        child.stdout.close()


def _environment(scratch: Path) -> dict[str, str]:
    # numpy's threads begin as it is imported; training uses torch's
    own = {"FLWR_HOME": str(scratch), "MPLCONFIGDIR": str(scratch), "OPENBLAS_NUM_THREADS": "1"}
    return worker_environment(scratch) | own


@contextlib.contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """An empty folder for one message; nothing of it stays, nor of an earlier one."""
    _cleared(root)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        yield folder
    finally:
        _cleared(root)


def _cleared(root: Path) -> None:
    """Removes a folder as far as that can be: what was made so that it cannot stops no order."""
    with contextlib.suppress(RecursionError):  # folders in folders
        shutil.rmtree(root, ignore_errors=True)


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _read(stream: IO[bytes], log: Log) -> None:
    with contextlib.suppress(ValueError):  # closed by the other thread
        while piece := stream.read1(65536):  # type: ignore[attr-defined]
            log.add(piece.decode("utf-8", "replace"))
