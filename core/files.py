"""Files that are whole or not there, that survive a power cut, and that others cannot read."""

from __future__ import annotations

import csv
import errno
import io
import os
import shlex
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from core.errors import UserError, plain_text
from core.os_refusals import about

OTHERS: Final = 0o077  # what a mode gives to accounts other than the owner's

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class UnfitError(ValueError):
    """A file that none of its kind is like; the words name neither the file nor what it holds."""


def read_bounded(path: Path, most: int) -> bytes:
    """A file that may come from anywhere; pipes and devices are neither read nor waited for.

    Raises:
        OSError: it cannot be read.
        UnfitError: it is no plain file, or longer than `most` bytes.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise UnfitError("no plain file")
        if found.st_size > most:
            raise UnfitError(f"more than {most} bytes")
        with open(handle, "rb", closefd=False) as file:
            return file.read(found.st_size)
    finally:
        os.close(handle)


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes beside the file, flushes and renames: whoever reads finds the old or the new one.

    What a killed writer left beside the file is overwritten by the next; a file has one writer at a
    time.

    Args:
        path: file to make or to replace; its folder exists.
        content: bytes, or text to be written as UTF-8 as it stands (`core.errors.plain_text`).
    """
    part = path.with_name(f".{path.name}.next")
    try:
        write_flushed(part, content)
        os.replace(part, path)
        flush_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def replace_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """`replace_file` with a table.

    A text that a spreadsheet would take for a formula stands behind an apostrophe, which
    `plain_row` takes off again; numbers stay numbers.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([_inert(cell) for cell in header])
    writer.writerows([_inert(cell) for cell in row] for row in rows)
    replace_file(path, text.getvalue())


def plain_row(row: Mapping[str, str | None]) -> dict[str, str]:
    """A row of `csv.DictReader` as it was given to `replace_csv`; a missing cell is ""."""
    return {key: plain_cell(cell) for key, cell in row.items() if isinstance(cell, str | None)}


def plain_cell(cell: str | None) -> str:
    """A cell as it was given to `replace_csv`; "" for None."""
    text = cell or ""
    return text[1:] if text[:1] == "'" and _is_formula(text) else text


def _inert(cell: object) -> object:
    if not isinstance(cell, str) or not _is_formula(cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell if cell.isascii() and cell == cell.strip() else f"'{cell}"


def _is_formula(text: str) -> bool:
    """Begins, behind apostrophes, with a sign that a spreadsheet reads as a formula."""
    return text.lstrip("'")[:1] in FORMULA


def write_flushed(path: Path, content: str | bytes) -> None:
    """Writes a file and waits until the disk has it."""
    with about(path):
        path.unlink(missing_ok=True)  # a link, in a folder from elsewhere, would be followed
        with path.open("xb") as file:
            file.write(plain_text(content).encode() if isinstance(content, str) else content)
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


def keep_from_others() -> None:
    """What this process and its children make from now on, only this account can open.

    For commands that write what is of patients into folders of ours. What a user asked for by name
    (contours, a table of scores) is made as that user's umask says.
    """
    os.umask(OTHERS)


def private_folder(folder: Path) -> None:
    """Makes a folder that only this account can open, whatever the umask, and its parents.

    One that is there is left as it is: see `require_private`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def require_private(field: str, folder: Path) -> None:
    """Refuses a folder that another account of this machine can open.

    Args:
        field: what names the folder in the error.
        folder: is there.

    Raises:
        UserError: its mode lets others in, or it is another account's.
    """
    found = folder.stat()
    if os.geteuid() not in (0, found.st_uid):
        remedy = "give a folder of the account that runs hnfed"
        raise UserError(field, folder, remedy, problem="it belongs to another account")
    if found.st_mode & OTHERS:
        remedy = f"run: chmod 700 {shlex.quote(str(folder))}   "
        remedy += "(a share that keeps no modes is mounted with dir_mode=0700)"
        mode = f"its mode is {found.st_mode & 0o777:03o}"
        raise UserError(field, folder, remedy, problem=f"others can open it, {mode}")
