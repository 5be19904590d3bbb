"""The site's own log of what went wrong with an order: whole errors, for this machine only."""

from __future__ import annotations

import os
import threading
import time
import traceback
from pathlib import Path

CLIENT_LOG = "client.log"
MOST_BYTES = 16 * 2**20  # then a new file is begun, and the last one kept beside it
MOST_OF_ONE = 2 * 2**20  # of one order


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
        """Adds text; of one order no more than `MOST_OF_ONE` bytes."""
        data = text.encode("utf-8", "replace")
        with self._lock:
            if self._left <= 0:
                return
            data = data[: self._left]
            self._left -= len(data)
            if self._left <= 0:
                data += b"\n--- the rest of what this order wrote is left out\n"
            self._write(data)

    def error(self, error: BaseException) -> None:
        """Adds an error with its traceback."""
        self.add("".join(traceback.format_exception(error)))

    def _write(self, data: bytes) -> None:
        try:
            if self._path.is_file() and self._path.stat().st_size > MOST_BYTES:
                self._path.replace(self._path.with_name(f"{CLIENT_LOG}.1"))
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError:  # a full or lost disk: the server still gets its code
            return
        with os.fdopen(handle, "ab", buffering=0) as file:
            file.write(data)
