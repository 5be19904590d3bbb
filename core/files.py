"""Files that are whole or not there, and that survive a power cut."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterable
from pathlib import Path

from core.errors import shown


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes beside the file, flushes and renames: whoever reads finds the old or the new one.

    What a killed writer left beside the file is overwritten by the next; a file has one writer at a
    time.

    Args:
        path: file to make or to replace; its folder exists.
        content: bytes, or text to be written as UTF-8 as it stands (`core.errors.shown`).
    """
    part = path.with_name(f".{path.name}.next")
    try:
        write_flushed(part, content)
        os.replace(part, path)
        flush_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def replace_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """`replace_file` with a table."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    replace_file(path, text.getvalue())


def write_flushed(path: Path, content: str | bytes) -> None:
    """Writes a file and waits until the disk has it."""
    with path.open("wb") as file:
        file.write(shown(content).encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Makes what was made, renamed or removed in `folder` survive a power cut.

    Some shared folders cannot flush a folder; there it is left to them.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
