"""What headers of image files have in common: limits, and data that stand in a file of their own.

A header is read strictly before any library sees the file, and before anything is unpacked: a
megabyte may unpack to gigabytes, and a name in a header may lead to any file of the machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

# 512 x 512 x 2048 voxels; a head and neck CT has a tenth of it.
MOST_VOXELS, MOST_BYTES = 2**29, 2**31
# Deflate packs at most 1032 bytes into one.
RATIO = 1100


def too_large(sizes: Sequence[int], voxel_bytes: int) -> str:
    """Says that an image would take more memory than any CT does; "" where it would not.

    Args:
        sizes: voxels along each axis.
        voxel_bytes: bytes of one voxel.
    """
    count = math.prod(sizes)
    if count > MOST_VOXELS or count * voxel_bytes > MOST_BYTES:
        size = " x ".join(map(str, sizes))
        limit = f"{MOST_VOXELS} voxels and {MOST_BYTES >> 30} GB are read at most"
        return f"{size} voxels of {voxel_bytes} bytes: no CT is so large ({limit})"
    return ""


def beside(header: Path, name: str) -> tuple[Path | None, str]:
    """The file that a header names as its data.

    It must be a plain file in the header's own folder or below it, by a plain relative name: an
    archive's file must not lead elsewhere, by links neither.

    Args:
        header: path of the header.
        name: as it stands there.

    Returns:
        The file and "", or None and what is wrong with it.
    """
    clean = PurePosixPath(name)
    if clean.is_absolute() or ".." in clean.parts or "\\" in name or ":" in name or "\0" in name:
        return None, "the header names data outside its own folder"
    path, folder = header.parent / clean, os.path.realpath(header.parent)
    if os.path.commonpath([os.path.realpath(path), folder]) != folder:
        return None, "the header's data file is a link that leads outside its folder"
    try:
        found = path.is_file()
    except OSError as error:
        return None, f"the header's data file cannot be read: {error.strerror}"
    return (path, "") if found else (None, "the data file that the header names is missing")
