"""Files of a kit or of a site's state: somebody else may have made them, or put others there.

A pipe, a device, a folder, a link out of the folder and a file of another size than hnfed writes
are told as such: none of them counts as a file that is missing, and none is waited for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from core.errors import UserError
from core.files import UnfitError, read_bounded

MOST_BYTES: Final = 64_000_000
DAMAGED: Final = "it is damaged"
MISSING: Final = "no such file"
ABSENT = (FileNotFoundError, NotADirectoryError)


def kept_bytes(path: Path, most: int = MOST_BYTES) -> bytes | None:
    """The content of a file; None where nothing of that name is there.

    Args:
        path: of the file; its folder may lie behind a link, the file itself may not.
        most: bytes that such a file has at most.

    Raises:
        OSError: it cannot be read.
        UserError: it is none of ours, see above.
    """
    try:
        require_inside(path)
        return read_bounded(path, most)
    except ABSENT:
        return None
    except UnfitError as error:
        raise _unfit(path, str(error)) from None


def kept_text(path: Path, most: int = MOST_BYTES) -> str | None:
    """`kept_bytes` as text in UTF-8."""
    content = kept_bytes(path, most)
    try:
        return None if content is None else content.decode("utf-8")
    except UnicodeDecodeError:
        raise _unfit(path, "not text in UTF-8") from None


def kept_json(path: Path, most: int = MOST_BYTES) -> Any:
    """`kept_text` as a value of JSON.

    Raises:
        UserError: it is none, too; ``null`` is none of ours.
    """
    text = kept_text(path, most)
    if text is None:
        return None
    try:
        value = json.loads(text)
        if value is not None:
            return value
    except (ValueError, RecursionError):
        pass
    raise _unfit(path, DAMAGED)


def needed_json(path: Path, most: int = MOST_BYTES) -> Any:
    """`kept_json` of a file that must be there.

    Raises:
        UserError: it is not, too.
    """
    value = kept_json(path, most)
    if value is None:
        raise _unfit(path, MISSING)
    return value


def needed_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """`kept_bytes` of a file that must be there.

    Raises:
        UserError: it is not, too.
    """
    content = kept_bytes(path, most)
    if content is None:
        raise _unfit(path, MISSING)
    return content


def require_plain_file(path: Path) -> bool:
    """Whether a file is there that is read, or written on, in parts.

    Raises:
        UserError: what is there is no plain file, or a link out of the folder.
    """
    try:
        require_inside(path)
    except UnfitError as error:
        raise _unfit(path, str(error)) from None
    if path.exists() and not path.is_file():
        raise _unfit(path, "no plain file")
    return path.is_file()


def require_inside(path: Path) -> None:
    """Requires that no link in the place of a file leads out of its folder.

    Raises:
        UnfitError: one does, or in a circle.
    """
    if not path.is_symlink():
        return
    try:
        inside = path.resolve().is_relative_to(path.parent.resolve())
    except (OSError, RuntimeError):
        inside = False
    if not inside:
        raise UnfitError("a link out of its folder")


def damage(error: Exception) -> str:
    """What is wrong with a file, in words that hold nothing of it."""
    if isinstance(error, OSError):
        return f"it cannot be read: {str(error.strerror).lower()}"
    return error.problem if isinstance(error, UserError) else DAMAGED


def _unfit(path: Path, problem: str) -> UserError:
    remedy = "put the file back that hnfed wrote there, or begin with a new folder"
    return UserError(path.name, path, remedy, problem=problem)
