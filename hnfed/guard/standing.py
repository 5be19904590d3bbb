"""What a site's client and its node note of themselves, for `hnfed watch` on the same machine.

Small files in the guard's folder, which only this account can open. Nothing of them leaves the
site, nothing is decided by them, and a disk that takes none stops nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.files import replace_file
from hnfed.guard.kit_files import kept_json

CLIENT, WORK = "client.json", "work.json"  # of the client, and of the order at work
LOCK = "client.lock"  # held by a client as long as it lives
MOST_BYTES = 1_000_000  # of a note
HEARD_SECONDS = 10.0  # between two notes that the server was heard


class Standing:
    """How a client stands with its server: ``dialling``, ``connected``, ``waiting``, ``stopped``.

    Args:
        guard: the guard's folder.
    """

    def __init__(self, guard: Path) -> None:
        self._path = guard / CLIENT
        self._told: dict[str, Any] = {}
        self._noted = 0.0
        self._lock = -1
        with contextlib.suppress(OSError):  # another client of this state folder holds it
            self._lock = os.open(guard / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def tell(self, state: str, why: str = "") -> None:
        """Notes a state, and what stands in the way, once."""
        if (state, why) != (self._told.get("state"), self._told.get("why")):
            now = time.time()
            since = self._told.get("since", now) if state == self._told.get("state") else now
            self._told = {"state": state, "why": why, "since": since, "heard": now}
            note(self._path, self._told)

    def heard(self, ago: float) -> None:
        """Notes, every few seconds at most, that the server was heard so many seconds ago."""
        at = time.time() - ago
        if at - self._told.get("heard", 0.0) >= HEARD_SECONDS:
            self._told["heard"] = at
            note(self._path, self._told)

    def close(self) -> None:
        """Lets the lock go."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def note(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a note; a full or lost disk keeps the one before."""
    with contextlib.suppress(OSError):
        replace_file(path, json.dumps({"schema": 1, **values}))


def read_note(path: Path) -> dict[str, Any]:
    """Reads a note; {} where there is none, or what is there is no note."""
    try:
        found = kept_json(path, MOST_BYTES)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
