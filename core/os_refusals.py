"""The operating system's no, in words: which path, why, and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from core.errors import UserError

_ROOM = "make room there, or choose a folder on another disk"
_RIGHT = "choose a folder that this account may write, or have its permissions changed"
_AGAIN = "see to the disk or the share that holds it, and run the command again"
# errno -> what is wrong, what to do
_WORDS: Final = {
    errno.EACCES: ("no permission", _RIGHT),
    errno.EPERM: ("not permitted", _RIGHT),
    errno.EROFS: ("it lies on a disk that can only be read", _RIGHT),
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("this account's quota of the disk is used up", _ROOM),
    errno.EFBIG: (
        "the file would be larger than is allowed here",
        "raise the limit (ulimit -f), or choose a folder on another disk",
    ),
    errno.ENOTDIR: ("a file stands where a folder is needed", "choose another folder"),
    errno.EEXIST: ("a file stands where a folder is needed", "choose another folder"),
    errno.EISDIR: ("a folder stands where a file is needed", "choose another name"),
    errno.ENOENT: ("it is not there (any more)", "give the path of something that is there"),
    errno.ENAMETOOLONG: ("the name is too long for this disk", "choose a shorter one"),
    errno.ELOOP: ("its links lead in a circle", "choose another path"),
    errno.ENOTEMPTY: ("the folder is not empty", "choose another folder"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("too many files are open on this machine", "end other programs"),
    errno.ENOMEM: ("memory is short", "end other programs, or use a machine with more memory"),
    errno.EIO: ("the disk cannot be read or written", _AGAIN),
    errno.ESTALE: ("the share that holds it was lost", _AGAIN),
}


def in_words(error: OSError) -> UserError | None:
    """An error of the operating system about a path, as one that a user can act on.

    Args:
        error: with `errno`, and mostly with the path.

    Returns:
        None for what is not of that kind (connections, other numbers).
    """
    if error.errno not in _WORDS:
        return None
    problem, remedy = _WORDS[error.errno]
    path = error.filename2 if error.filename2 is not None else error.filename
    shown = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else "(not told)"
    return UserError("file", shown, remedy, problem=problem)


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Gives the path to an error of a file that is open: the operating system leaves it out."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise
