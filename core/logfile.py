"""Logs that grow to a bound: the newest part under its name, older ones beside it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

LARGEST_BYTES: Final = 4 << 20
PARTS: Final = 4  # the newest among them


def append_log(path: Path, text: str, *, largest: int = LARGEST_BYTES, parts: int = PARTS) -> None:
    """Appends to a log; before it grows beyond its bound, it becomes ``NAME.1``, that ``NAME.2``.

    A log has one writer at a time. Only this account can read it.

    Args:
        path: of the log; its folder exists.
        text: with its line ends; of a longer one than `largest` characters the end is kept.
        largest: bytes that one part may hold.
        parts: how many there are at most, two or more.

    Raises:
        OSError: it cannot be written.
    """
    content = text[-largest:].encode("utf-8", "replace")[-largest:]
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = 0
    if size and size + len(content) > largest:
        _turn(path, parts)
        path.replace(path.with_name(f"{path.name}.1"))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def cut_log(path: Path, *, largest: int = LARGEST_BYTES, parts: int = PARTS) -> None:
    """Begins a log anew that has grown beyond its bound, while another program appends to it.

    The program keeps the file that it has open, so what is in it is copied to ``NAME.1`` and the
    file emptied; lines of that very moment can be lost. Nothing happens to a log that is not there.

    Args:
        path: of a log that is opened for appending alone.
        largest: bytes from which on it is begun anew.
        parts: how many there are at most, two or more.
    """
    try:
        if path.stat().st_size <= largest:
            return
    except FileNotFoundError:
        return
    copy = path.with_name(f".{path.name}.part")
    shutil.copyfile(path, copy)
    os.truncate(path, 0)
    _turn(path, parts)
    copy.replace(path.with_name(f"{path.name}.1"))


def _turn(path: Path, parts: int) -> None:
    """Every part but the newest takes the name of the next older one; the oldest goes."""
    for n in reversed(range(1, parts)):
        part = path.with_name(f"{path.name}.{n}")
        if n + 1 == parts:
            part.unlink(missing_ok=True)
        elif part.exists():
            part.replace(path.with_name(f"{path.name}.{n + 1}"))
