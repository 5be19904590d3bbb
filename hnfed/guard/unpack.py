"""What is in a app bundle, read with bounds; and a fresh folder of an approved one.

Flower's own installer is not asked: the folder's name is the bundle's SHA-256, never a name that
the server chose, and what lies in it is compared with the bundle each time before it is used.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import zipfile
import zlib
from pathlib import Path

MOST_FILES, MOST_FILE_BYTES, MOST_BYTES = 2000, 4 * 2**20, 64 * 2**20
NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*")
INFO = ".info/"  # Flower's own list of what is in a bundle


class BundleError(ValueError):
    """A bundle that is no bundle of ours: a name, a number or a size out of bounds."""


def members(content: bytes) -> dict[str, bytes]:
    """The files of a bundle, by their relative names.

    Args:
        content: of a ZIP file, from anywhere.

    Raises:
        BundleError: it is no ZIP file, a name leads elsewhere or comes twice, or it is too large.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            listed = [i for i in bundle.infolist() if not i.filename.startswith(INFO)]
            if len(listed) > MOST_FILES:
                raise BundleError(f"{len(listed)} files")
            found: dict[str, bytes] = {}
            left = MOST_BYTES
            for info in listed:
                name = info.filename
                if not NAME.fullmatch(name) or len(name) > 200 or name in found:
                    raise BundleError(f"a file called {name[:80]!r}")
                with bundle.open(info) as file:
                    found[name] = file.read(MOST_FILE_BYTES + 1)
                left -= len(found[name])
                if len(found[name]) > MOST_FILE_BYTES or left < 0:
                    raise BundleError(f"{name} is too large")
            return found
    except BundleError:
        raise
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError,
            OSError, ValueError, OverflowError) as error:  # fmt: skip
        raise BundleError(f"no ZIP file ({type(error).__name__})") from error


def fresh_folder(content: bytes, root: Path) -> Path:
    """Unpacks a bundle into ``ROOT/SHA-256``, after removing whatever lay there.

    Args:
        content: of an approved bundle.
        root: a folder of this site's own.

    Raises:
        BundleError: see `members`; or a file where another needs a folder.
    """
    folder = root / hashlib.sha256(content).hexdigest()
    files = members(content)
    shutil.rmtree(root, ignore_errors=True)  # of one bundle at a time
    folder.mkdir(parents=True, mode=0o700)
    for name, text in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with path.open("xb") as file:
                file.write(text)
        except (FileExistsError, NotADirectoryError) as error:
            raise BundleError(f"a file called {name!r}, and another in its place") from error
    return folder


def is_intact(content: bytes, folder: Path) -> bool:
    """Whether a folder holds the files of a bundle, and no others."""
    if folder.name != hashlib.sha256(content).hexdigest() or not folder.is_dir():
        return False
    there = {p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}
    files = {folder / name: text for name, text in members(content).items()}
    plain = all(p.is_file() and not p.is_symlink() for p in there)
    return plain and there == files.keys() and all(p.read_bytes() == files[p] for p in there)
