"""NIfTI files that were cut short: SimpleITK fills what is missing with zeros and says nothing."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO


def cut_short(path: Path) -> str:
    """Says what is missing of a ``.nii`` or ``.nii.gz`` file; "" where it is whole.

    The header (NIfTI-1 or 2, either byte order) tells how long the file must be. A compressed file
    is unpacked once for that, in small pieces.

    Args:
        path: an existing file.
    """
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path) as packed:
                return _compare(packed)
        with path.open("rb") as plain:
            return _compare(plain)
    except (EOFError, OSError, zlib.error, struct.error) as error:
        return f"file ends early: {error}"


def _compare(file: IO[bytes] | gzip.GzipFile) -> str:
    header = file.read(348)
    length = len(header)
    needed = _length(header)
    while piece := file.read(1 << 20):
        length += len(piece)
    return f"{length} bytes where the header tells of {needed}" if length < needed else ""


def _length(header: bytes) -> int:
    """Bytes of a whole file, from its header (fields as in nifti1.h and nifti2.h)."""
    order = "<" if struct.unpack_from("<i", header)[0] in (348, 540) else ">"
    if struct.unpack_from(order + "i", header)[0] == 540:
        dim = struct.unpack_from(order + "8q", header, 16)
        bits = struct.unpack_from(order + "h", header, 14)[0]
        offset = struct.unpack_from(order + "q", header, 168)[0]
    else:
        dim = struct.unpack_from(order + "8h", header, 40)
        bits = struct.unpack_from(order + "h", header, 72)[0]
        offset = struct.unpack_from(order + "f", header, 108)[0]
    voxels = math.prod(int(n) for n in dim[1 : 1 + min(max(dim[0], 0), 7)])
    if not math.isfinite(offset):  # some writers leave it so; the voxels follow the header
        offset = 352
    return int(offset) + voxels * int(bits) // 8
