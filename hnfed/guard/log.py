"""The site's own log of what went wrong with an order: whole errors, for this machine only."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from pathlib import Path

from core.logfile import append_log

CLIENT_LOG = "client.log"
MOST_OF_ONE = 2**20  # signs of one order


class Log:
    """``client.log`` of a site, which neither grows for ever nor is readable by others.

    Args:
        state: the site's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / CLIENT_LOG
        self._left = MOST_OF_ONE
        self._lock = threading.Lock()

    def begin(self, about: str) -> None:
        """A new order: a line that says which."""
        with self._lock:
            self._left = MOST_OF_ONE
        self.add(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {about}\n")

    def add(self, text: str) -> None:
        """Adds text; of one order no more than `MOST_OF_ONE` signs."""
        with self._lock:
            if self._left <= 0:
                return
            text = text[: self._left]
            self._left -= len(text)
            if self._left <= 0:
                text += "\n--- the rest of what this order wrote is left out\n"
            self._write(text)

    def error(self, error: BaseException) -> None:
        """Adds an error with its traceback."""
        self.add("".join(traceback.format_exception(error)))

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a full or lost disk: the server still gets its code
            append_log(self._path, text)
