"""Paths that SimpleITK can take: it ends the whole process on one that is not UTF-8.

Names of files are bytes; those that an old archive unpacked (Latin-1, say) are no text. Python
keeps such bytes as lone surrogates, which no library outside of Python accepts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_text(path: Path | str) -> bool:
    """Whether a name is UTF-8, so that any library can be given it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def plain(path: Path, suffix: str = "") -> Iterator[Path]:
    """A path that leads to `path` and is UTF-8: itself, or a link in a temporary folder.

    Args:
        path: an existing file or folder.
        suffix: of the link, where the library goes by it; by default that of `path`. A file whose
            suffix is another is linked too.
    """
    if is_text(path) and (not suffix or path.name.endswith(suffix)):
        yield path
        return
    ending = suffix or (path.suffix if is_text(path.suffix) else "")
    with tempfile.TemporaryDirectory(prefix="hnfed-link-") as folder:
        link = Path(folder) / f"file{ending}"
        link.symlink_to(path.absolute())
        yield link
