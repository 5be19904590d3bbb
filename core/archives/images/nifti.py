"""NIfTI files, read without SimpleITK, which hides what is wrong with them.

It fills what is missing with zeros, makes 0 of every NaN, calls a sheared sform damage, takes the
voxel size from one place and the directions from another, and lays a file without orientation
flat. Versions 1 and 2, either byte order, packed or not (whatever the name says); fields as in
nifti1.h and nifti2.h. The header is read and checked before anything is unpacked, and no more is
unpacked than it tells.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from core.archives.images.header import too_large

LONGEST_EXTENSIONS = 1_000_000
MAGIC = (b"n+1\0", b"n+2\0")
KINDS = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8",
}  # fmt: skip
# Axes may be so far from perpendicular by rounding; sform and qform may differ by so much.
SKEW_DEGREES, SAME_MM, SAME_SIZE = 0.3, 0.1, 0.01
EXACT = 1e-7


@dataclass(frozen=True)
class Header:
    """What is needed of a NIfTI header.

    Attributes:
        sizes: voxels along x, y, z (and further axes longer than one).
        kind: number type of the voxels, as numpy's.
        offset: bytes before the voxels.
        scale: slope and intercept; (1, 0) where the file has none.
        steps: voxel size along x, y, z as pixdim has it.
        sform: 3 x 4 (RAS, mm), or None where the file has none.
        qform: likewise, from the quaternion.
        unit_mm: length of the file's unit of space.
    """

    sizes: tuple[int, ...]
    kind: str
    offset: int
    scale: tuple[float, float]
    steps: tuple[float, float, float]
    sform: npt.NDArray[np.float64] | None
    qform: npt.NDArray[np.float64] | None
    unit_mm: float

    @property
    def affine(self) -> npt.NDArray[np.float64] | None:
        """Index to mm (RAS): the sform where there is one, else the qform."""
        return self.qform if self.sform is None else self.sform


def is_packed(path: Path) -> bool:
    """Whether a file is compressed, by its first bytes: names are not always right."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def read_header(path: Path) -> tuple[Header | None, str]:
    """Reads and checks the header of a ``.nii`` or ``.nii.gz`` file.

    Args:
        path: an existing file.

    Returns:
        The header and "", or None and what is wrong with it.
    """
    try:
        with _opened(path) as file:
            raw = file.read(540)
        header = _parsed(raw)
    except (EOFError, OSError, zlib.error, struct.error, ValueError) as error:
        return None, f"no NIfTI header: {error}"
    if problem := too_large(header.sizes, np.dtype(header.kind).itemsize):
        return None, problem
    return header, ""


def read_voxels(path: Path, header: Header) -> tuple[npt.NDArray[Any], str]:
    """Reads the voxels.

    Args:
        path: an existing file.
        header: of it.

    Returns:
        (Z, Y, X), as stored or, where the file scales them, float32, NaN as they stand there; and
        what is missing of the file, "" where nothing is.
    """
    kind = np.dtype(header.kind)
    needed = math.prod(header.sizes) * kind.itemsize
    empty = np.zeros(0, dtype=kind)
    try:
        with _opened(path) as file:
            file.seek(header.offset)
            raw = file.read(needed)
    except (EOFError, OSError, zlib.error) as error:
        return empty, f"file ends early: {error}"
    if len(raw) < needed:
        return empty, f"file ends early: {len(raw)} bytes of voxels, its header tells of {needed}"
    stored = np.frombuffer(raw, dtype=kind).reshape(header.sizes[::-1])
    if header.scale == (1.0, 0.0):
        return stored.astype(kind.newbyteorder("="), copy=False), ""
    slope, intercept = header.scale
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32), ""


def extensions(path: Path) -> list[bytes]:
    """What stands between header and voxels, such as names of labels; [] where nothing does."""
    header, _ = read_header(path)
    if header is None:
        return []
    found = []
    with _opened(path) as file:
        raw = file.read(min(int(header.offset), LONGEST_EXTENSIONS))
    order = "<" if struct.unpack_from("<i", raw)[0] in (348, 540) else ">"
    place = struct.unpack_from(order + "i", raw)[0] + 4
    while place + 8 <= len(raw) and raw[place - 4 : place] != bytes(4):
        size = struct.unpack_from(order + "i", raw, place)[0]
        if size < 8 or place + size > len(raw):
            break
        found.append(raw[place + 8 : place + size])
        place += size
    return found


def placement(header: Header) -> tuple[npt.NDArray[np.float64], str]:
    """The affine, index (x, y, z) to mm (LPS), its axes exactly perpendicular.

    The sform counts where there is one, else the qform.

    Args:
        header: of the file.

    Returns:
        (4, 4), and what is wrong with it; "" where nothing is.
    """
    identity, given = np.eye(4), header.affine
    if given is None:
        return identity, "it has neither sform nor qform: how the patient lies is not known"
    lengths = np.linalg.norm(given[:, :3], axis=0)
    if not np.isfinite(given).all() or lengths.min() <= 0:
        return identity, "its affine holds values that are no numbers, or an axis of no length"
    which = "qform" if header.sform is None else "sform"
    axes = given[:, :3] / lengths
    dots = np.abs((axes.T @ axes)[[0, 0, 1], [1, 2, 2]])
    skew = math.degrees(math.asin(min(1.0, float(dots.max()))))
    if skew > SKEW_DEGREES:
        return identity, f"its {which} is sheared: axes {skew:.2f} degrees from perpendicular"
    if (np.abs(np.abs(header.steps) / lengths - 1) > SAME_SIZE).any():
        sizes = " x ".join(f"{v:.4g}" for v in lengths)
        steps = " x ".join(f"{v:.4g}" for v in header.steps)
        return identity, f"its {which} tells of voxels of {sizes}, its pixdim of {steps}"
    if header.sform is not None and header.qform is not None:
        far = _farthest(header.sform, header.qform, header.sizes[:3]) * header.unit_mm
        if far > SAME_MM + 2 * math.radians(skew) * float(np.max(lengths * header.sizes[:3])):
            return identity, f"its sform and qform place voxels up to {far:.1f} mm apart"
    start = given[:, 3]
    if dots.max() > EXACT:
        left, _, right = np.linalg.svd(axes)
        axes = left @ right
        middle = (np.array(header.sizes[:3]) - 1) / 2  # stays where it is: the least is moved
        start = given[:, :3] @ middle + start - (axes * lengths) @ middle
    identity[:3, :3] = axes * lengths * header.unit_mm
    identity[:3, 3] = start * header.unit_mm
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ identity + 0.0, ""


def _farthest(
    one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], sizes: tuple[int, ...]
) -> float:
    """How far apart two affines place a corner of the grid."""
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(sizes)[:, None] - 1)
    points = np.vstack([corners, np.ones(8)])
    return float(np.linalg.norm((one - other) @ points, axis=0).max())


def _opened(path: Path) -> IO[bytes]:
    opened: Any = gzip.open if is_packed(path) else Path.open
    file: IO[bytes] = opened(path, "rb")
    return file


def _parsed(raw: bytes) -> Header:
    order = "<" if struct.unpack_from("<i", raw)[0] in (348, 540) else ">"
    length = struct.unpack_from(order + "i", raw)[0]
    if length == 540:
        fields = _fields(raw, order, SECOND)
    elif length == 348:
        fields = _fields(raw, order, FIRST)
    else:
        raise ValueError("neither NIfTI-1 nor NIfTI-2")
    if fields.pop("magic") not in MAGIC:
        raise ValueError("not of one file (magic n+1 or n+2)")
    kind = fields["kind"]
    if kind not in KINDS:
        raise ValueError(f"number type {kind} is not one value a voxel")
    return Header(**{**fields, "kind": order + KINDS[kind]})


@dataclass(frozen=True)
class _Layout:
    """Where the fields of a version stand, in bytes, and of which types its numbers are."""

    dims: str
    real: str
    dim: int
    kind: int
    pixdim: int
    offset: int
    forms: int
    units: int


FIRST = _Layout("8h", "f", dim=40, kind=70, pixdim=76, offset=108, forms=252, units=123)
SECOND = _Layout("8q", "d", dim=16, kind=12, pixdim=104, offset=168, forms=344, units=500)


def _fields(raw: bytes, order: str, at: _Layout) -> dict[str, Any]:
    """The fields of a header of that layout."""
    dimension, *sizes = (int(n) for n in struct.unpack_from(order + at.dims, raw, at.dim))
    if not 1 <= dimension <= 7 or min(sizes[:dimension]) < 1:
        raise ValueError(f"sizes {sizes} in {dimension} dimensions")
    real, wide = at.real, at is SECOND
    real_bytes, codes = (8, "2i") if wide else (4, "2h")
    qcode, scode = struct.unpack_from(order + codes, raw, at.forms)
    numbers = at.forms + struct.calcsize(order + codes)
    quatern = struct.unpack_from(order + f"6{real}", raw, numbers)
    rows = struct.unpack_from(order + f"12{real}", raw, numbers + 6 * real_bytes)
    steps = struct.unpack_from(order + f"4{real}", raw, at.pixdim)
    slope, intercept = struct.unpack_from(order + f"2{real}", raw, at.offset + (8 if wide else 4))
    unit = struct.unpack_from(order + "i", raw, at.units)[0] if wide else raw[at.units]
    begin = struct.unpack_from(order + ("q" if wide else "f"), raw, at.offset)[0]
    return {
        "magic": raw[4:8] if wide else raw[344:348],
        "sizes": _significant(sizes[:dimension]),
        "kind": struct.unpack_from(order + "h", raw, at.kind)[0],
        "scale": _scale(slope, intercept),
        "steps": (steps[1], steps[2], steps[3]),
        # Some writers leave the offset open; the voxels follow the header.
        "offset": int(begin) if math.isfinite(begin) and begin >= 348 else 352,
        "sform": np.array(rows, dtype=np.float64).reshape(3, 4) if scode > 0 else None,
        "qform": _of_quaternion(quatern, steps) if qcode > 0 else None,
        "unit_mm": {1: 1000.0, 3: 0.001}.get(unit & 7, 1.0),
    }


def _scale(slope: float, intercept: float) -> tuple[float, float]:
    """A slope of 0, or one that is no number, means that nothing is scaled."""
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        return 1.0, 0.0
    return float(slope), float(intercept)


def _significant(sizes: list[int]) -> tuple[int, ...]:
    """Sizes without further axes of length one."""
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    return tuple(sizes)


def _of_quaternion(given: tuple[float, ...], steps: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """The affine (3, 4) of a qform: b, c, d, the offsets, and pixdim 0 to 3."""
    b, c, d, *start = given
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < 1e-7:  # a half turn, a little too long by rounding
        b, c, d = (v / math.sqrt(b * b + c * c + d * d) for v in (b, c, d))
        rest = 0.0
    a = math.sqrt(rest)
    turn = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
    ])  # fmt: skip
    factor = -1.0 if steps[0] < 0 else 1.0
    scale = np.array([steps[1], steps[2], steps[3] * factor])
    return np.column_stack([turn * scale, np.array(start)])
