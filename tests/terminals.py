"""What a child says on a terminal of its own."""

from __future__ import annotations

import os
import time


def heard(terminal: int, seconds: float = 60.0) -> bytes:
    """All that a child on the other end of a pseudo-terminal says, until it ends or is too slow."""
    said = b""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            more = os.read(terminal, 65536)
        except OSError:
            break
        if not more:
            break
        said += more
    return said
