"""Grids in space: which voxel of one lies where in another, and boxes of voxels.

Indices are (z, y, x) and may be fractions; positions are (x, y, z) in mm, LPS.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from core.data.geometry import Geometry

Box = tuple[slice, slice, slice]
Floats = npt.NDArray[np.float64]


def bounding_box(mask: npt.NDArray[np.bool_ | np.uint8]) -> Box | None:
    """Returns the smallest box that holds every voxel above 0 of a (Z, Y, X) mask, or None."""
    rows: npt.NDArray[np.bool_] = np.logical_or.reduce(mask, axis=2)
    ends = []
    for line in (rows.any(axis=1), rows.any(axis=0), mask.any(axis=(0, 1))):
        hits = np.flatnonzero(line)
        if hits.size == 0:
            return None
        ends.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return ends[0], ends[1], ends[2]


def affine(geometry: Geometry) -> tuple[Floats, Floats]:
    """Returns matrix and shift from an index (z, y, x) to a position in mm (x, y, z)."""
    direction = np.asarray(geometry.direction, dtype=float).reshape(3, 3)
    spacing_xyz = np.asarray(geometry.spacing_mm, dtype=float)[::-1]
    return (direction * spacing_xyz)[:, ::-1], np.asarray(geometry.origin_mm, dtype=float)


def index_transform(source: Geometry, target: Geometry) -> tuple[Floats, Floats]:
    """Returns matrix and shift from an index of `source` to one of `target`, both (z, y, x)."""
    source_matrix, source_origin = affine(source)
    target_matrix, target_origin = affine(target)
    inverse = np.linalg.inv(target_matrix)
    matrix = inverse @ source_matrix
    matrix[abs(matrix) < 1e-6 * abs(matrix).max()] = 0.0
    return matrix, inverse @ (source_origin - target_origin)


def snap(position_mm: Floats, geometry: Geometry) -> Floats:
    """Returns the corner of a voxel, on the grid continued beyond its ends, that is nearest."""
    matrix, origin = affine(geometry)
    # The shift decides ties in the patient's frame, so that the storage order does not.
    index = np.linalg.solve(matrix, position_mm + 1e-4 - origin)
    return np.asarray(matrix @ (np.rint(index + 0.5) - 0.5) + origin)


def outer_corners(geometry: Geometry) -> Floats:
    """Returns the 8 outer corners of a grid, (8, 3) indices in the order (z, y, x)."""
    ends = [(-0.5, size - 0.5) for size in geometry.size]
    return np.array(list(itertools.product(*ends)))


def covering_box(source: Geometry, crop: Geometry, margin: Sequence[int]) -> Box | None:
    """Returns the box of `source` that covers `crop` plus a margin in voxels, or None if apart."""
    matrix, start = index_transform(crop, source)
    points = outer_corners(crop) @ matrix.T + start
    low = np.floor(points.min(0)).astype(int) - margin
    high = np.ceil(points.max(0)).astype(int) + 1 + margin
    low, high = np.maximum(low, 0), np.minimum(high, source.size)
    if (low >= high).any():
        return None
    box = [slice(int(a), int(b)) for a, b in zip(low, high, strict=True)]
    return box[0], box[1], box[2]


def grow(box: Box, margin: int, size: Sequence[int]) -> Box:
    """Returns the box with `margin` voxels more on each side, cut at the grid's ends."""
    grown = [
        slice(max(0, b.start - margin), min(n, b.stop + margin))
        for b, n in zip(box, size, strict=True)
    ]
    return grown[0], grown[1], grown[2]


def part_of(geometry: Geometry, box: Box) -> Geometry:
    """Returns the grid of `array[box]`."""
    matrix, origin = affine(geometry)
    first = matrix @ np.array([b.start for b in box], dtype=float) + origin
    size = tuple(b.stop - b.start for b in box)
    return Geometry(
        size=(size[0], size[1], size[2]),
        spacing_mm=geometry.spacing_mm,
        origin_mm=(float(first[0]), float(first[1]), float(first[2])),
        direction=geometry.direction,
    )


def patient_axes(geometry: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Array axes that run along z, y, x of the patient, and which of them run backwards."""
    direction = np.array(geometry.direction).reshape(3, 3)[::-1, ::-1]
    order: list[int] = []
    for row in np.abs(direction):
        order.append(next(int(i) for i in np.argsort(-row) if i not in order))
    flips = [bool(direction[i, axis] < 0) for i, axis in enumerate(order)]
    return (order[0], order[1], order[2]), (flips[0], flips[1], flips[2])


def turned(array: npt.NDArray[Any], geometry: Geometry) -> npt.NDArray[Any]:
    """A view of an array on this grid with axes to superior, posterior and the patient's left."""
    order, flips = patient_axes(geometry)
    return np.transpose(array, order)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
