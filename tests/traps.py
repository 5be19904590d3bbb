"""Files that are none to read in a folder from elsewhere: pipes, devices, links out of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

SECRET = "of another folder"


@contextmanager
def within(seconds: float = 20.0) -> Iterator[None]:
    """Fails where something waits for a pipe, or reads what has no end."""

    def over(number: int, frame: FrameType | None) -> None:
        pytest.fail("it waits, or does not come to an end")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    """A pipe into which nobody writes."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def endless(path: Path) -> None:
    """A link to a device that has no end."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    """A folder in a file's place."""
    path.unlink(missing_ok=True)
    path.mkdir()


TRAPS: tuple[Callable[[Path], None], ...] = (pipe, endless, folder)
