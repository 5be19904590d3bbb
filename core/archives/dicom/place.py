"""Where a slice lies: its position, orientation and pixel spacing, strictly from the tags.

What a library makes of a tag that is empty, malformed or not orthogonal is no measurement: some
read "3,2" as two numbers, others lay a plane flat whose directions are not perpendicular. Here
such a tag is refused by its name and its value. DICOM PS3.3 C.7.6.2, PS3.5 6.2 (decimal string).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.errors import CaseError

Vector = npt.NDArray[np.float64]
TAGS = {
    "ImagePositionPatient": ("0020,0032", 3),
    "ImageOrientationPatient": ("0020,0037", 6),
    "PixelSpacing": ("0028,0030", 2),
}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
# Row and column may be so far from perpendicular, and from length one, by rounding.
SKEW_DEGREES, LENGTH = 0.3, 0.01
# Nearer than this to a rotation, the directions are used as they stand.
EXACT = 1e-5
REMEDY = "export the series again"


@dataclass(frozen=True)
class Place:
    """Where one slice lies.

    Attributes:
        shape: rows and columns.
        spacing_mm: distance of pixel centres along (y, x).
        direction: 3 x 3 rotation; its columns point along the row, down the column, and on.
        origin_mm: centre of the first pixel, (x, y, z) in LPS.
        rounding: how far (radians) the true normal may be from that of `direction`, where the
            tag's values are visibly rounded; else 0.
    """

    shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    direction: Vector
    origin_mm: Vector
    rounding: float = 0.0


def place_of(tags: Mapping[str, str | None], shape: tuple[int, int], file: str) -> Place:
    """Reads the three tags of a slice.

    Args:
        tags: text of each tag of `TAGS`, values divided by backslashes; None where it is missing.
        shape: rows and columns.
        file: the slice's file, for the message.

    Raises:
        CaseError: ``E_IMAGE_GEOMETRY``: a tag is missing, empty or malformed, a spacing is not
            above 0, or row and column are not perpendicular directions.
    """
    numbers = {name: _numbers(name, tags.get(name), file) for name in TAGS}
    y, x = numbers["PixelSpacing"]
    if min(y, x) <= 0:
        raise _refused("PixelSpacing", tags["PixelSpacing"], file, "a spacing must be above 0")
    direction, rounding = _rotation(numbers["ImageOrientationPatient"], tags, file)
    origin = np.array(numbers["ImagePositionPatient"])
    return Place(shape, (y, x), direction, origin, rounding)


def turned(direction: Vector, normal: Vector) -> Vector:
    """The rotation next to `direction` whose third column is `normal` (a unit vector)."""
    row = direction[:, 0] - normal * float(direction[:, 0] @ normal)
    row /= np.linalg.norm(row)
    return np.column_stack([row, np.cross(normal, row), normal])


def _numbers(name: str, text: str | None, file: str) -> list[float]:
    """The values of a decimal string, as many as the tag has."""
    if text is None:
        raise _refused(name, None, file, "where the slice lies is not known")
    values = [value.strip(" \0") for value in text.split("\\")]
    if not any(values):
        raise _refused(name, text, file, "it is empty: where the slice lies is not known")
    if "," in text:
        raise _refused(name, text, file, "a decimal comma; DICOM has points", comma=True)
    wanted = TAGS[name][1]
    if len(values) != wanted or not all(_NUMBER.fullmatch(value) for value in values):
        raise _refused(name, text, file, f"not {wanted} numbers")
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise _refused(name, text, file, f"not {wanted} numbers")
    return numbers


def _rotation(
    numbers: list[float], tags: Mapping[str, str | None], file: str
) -> tuple[Vector, float]:
    """The rotation that the direction cosines mean, and how far rounding may have turned it."""
    name = "ImageOrientationPatient"
    row, column = np.array(numbers[:3]), np.array(numbers[3:])
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if np.abs(lengths - 1).max() > LENGTH:
        shown = " and ".join(f"{length:.3g}" for length in lengths)
        raise _refused(name, tags[name], file, f"directions of length {shown}, not 1")
    skew = math.degrees(math.asin(min(1.0, abs(float(row @ column)) / float(lengths.prod()))))
    if skew > SKEW_DEGREES:
        problem = f"row and column are {skew:.2f} degrees from perpendicular"
        raise _refused(name, tags[name], file, problem)
    given = np.column_stack([row, column, np.cross(row, column)])
    if max(np.abs(lengths - 1).max(), abs(float(row @ column))) <= EXACT:
        return given, 0.0
    # The two nearest perpendicular unit vectors; a third column of length one beside them.
    left, _, right = np.linalg.svd(given[:, :2], full_matrices=False)
    plane = left @ right
    exact = np.column_stack([plane, np.cross(plane[:, 0], plane[:, 1])])
    return exact, math.sqrt(3) * 0.5 * 10.0 ** -_decimals(tags[name] or "")


def _decimals(text: str) -> int:
    """Decimal places of the value that has most."""
    parts = (value.strip(" \0").lower().split("e") for value in text.split("\\"))
    counts = []
    for mantissa, *exponent in parts:
        places = len(mantissa.partition(".")[2])
        counts.append(places - (int(exponent[0]) if exponent else 0))
    return max(counts)


def _refused(
    name: str, text: str | None, file: str, problem: str, *, comma: bool = False
) -> CaseError:
    tag = TAGS[name][0]
    value = "is missing" if text is None else f"reads {_shown(text.strip(chr(0))[:80])}"
    remedy = f"correct {name} ({tag}), or {REMEDY}"
    if comma:
        remedy = f"write {name} ({tag}) with points, or {REMEDY} from a PC set to decimal points"
    return CaseError(
        "E_IMAGE_GEOMETRY", "slice", file, remedy, problem=f"{name} ({tag}) {value}: {problem}"
    )


def _shown(text: str) -> str:
    """Numbers as they stand; anything else between quotes, so that it can be hidden."""
    return f"[{text}]" if re.fullmatch(r"[0-9eE+\-.,\\ ]*", text) else f"'{text}'"
