"""Borders of masks and the distances between them, in mm.

A border voxel is a mask voxel with one of its 6 neighbours outside the mask; beyond the volume
counts as outside. Voxels are sorted flat indices into the (Z, Y, X) volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Indices = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]

LEAF = 32  # points of a tree's leaf: the fastest of 4 to 64 on borders of nine organs


def foreground(volume: npt.NDArray[Any]) -> Indices:
    """Returns the sorted flat indices of the non-zero voxels of a bool or uint8 volume."""
    bytes_ = np.ascontiguousarray(volume).view(np.uint8)
    used = np.flatnonzero(bytes_.reshape(len(bytes_), -1).max(axis=1))
    if not used.size:
        return np.empty(0, dtype=np.intp)
    # Most of a CT is empty: look only in the box of what is there, in rows along x that hold some.
    deep = slice(int(used[0]), int(used[-1]) + 1)
    plane = bytes_[deep].max(axis=0)
    high, wide = (np.flatnonzero(plane.max(axis=axis)) for axis in (1, 0))
    box = bytes_[deep, high[0] : high[-1] + 1, wide[0] : wide[-1] + 1]
    z, y = np.nonzero(box.max(axis=2))
    row, x = np.nonzero(box[z, y] != 0)
    lines = (z + deep.start) * bytes_.shape[1] + y + high[0]
    found: Indices = lines[row] * bytes_.shape[2] + x + wide[0]
    return found


def border(volume: npt.NDArray[Any], voxels: Indices) -> Indices:
    """Keeps those of the flat indices with a 6-neighbour of another value or beyond the volume."""
    flat = np.ascontiguousarray(volume).reshape(-1)
    value = flat[voxels]
    edge = np.zeros(voxels.size, dtype=np.bool_)
    step = 1
    for size in reversed(volume.shape):
        place = voxels // step % size
        for shift, at_end in ((-step, place == 0), (step, place == size - 1)):
            edge |= at_end
            edge |= flat[np.where(at_end, voxels, voxels + shift)] != value
        step *= size
    return voxels[edge]


def distances_mm(
    here: Indices, there: Indices, shape: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[Floats, Floats]:
    """Distance of each voxel of one border to the nearest of the other, both ways.

    Args:
        here: sorted flat indices of one border, not empty.
        there: of the other, not empty.
        shape: of the volume (z, y, x).
        spacing_mm: (z, y, x).

    Returns:
        Distances of `here` to `there`, and of `there` to `here`.
    """
    a, b = _points_mm(here, shape, spacing_mm), _points_mm(there, shape, spacing_mm)
    return _directed_mm(a, b, _among(here, there)), _directed_mm(b, a, _among(there, here))


def _among(values: Indices, others: Indices) -> npt.NDArray[np.bool_]:
    """Tells which of the sorted `values` are among the sorted `others` (not empty)."""
    place = np.searchsorted(others, values).clip(max=len(others) - 1)
    shared: npt.NDArray[np.bool_] = others[place] == values
    return shared


def _directed_mm(start: Floats, goal: Floats, shared: npt.NDArray[np.bool_]) -> Floats:
    distances = np.zeros(len(start))
    apart = ~shared
    if apart.any():  # shared voxels are 0 mm away without a search
        tree = cKDTree(goal, LEAF, balanced_tree=False, compact_nodes=False)
        distances[apart] = tree.query(start[apart])[0]
    return distances


def _points_mm(voxels: Indices, shape: Sequence[int], spacing_mm: Sequence[float]) -> Floats:
    grid = np.unravel_index(voxels, tuple(shape))
    return np.stack([axis * step for axis, step in zip(grid, spacing_mm, strict=True)], axis=1)
