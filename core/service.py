"""A long-running process of ours: stopped by a signal, its children ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from types import FrameType
from typing import Any

GRACE_SECONDS, KILL_SECONDS = 8.0, 5.0


class Stopped(Exception):  # noqa: N818
    """A signal asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def stop_by_signal() -> None:
    """Makes Ctrl-C and SIGTERM raise `Stopped`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def end(child: subprocess.Popen[Any]) -> None:
    """SIGTERM to the child's session, SIGKILL to what is left of it."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        try:
            os.killpg(child.pid, number)
            child.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def tell(text: str) -> None:
    """Prints a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
