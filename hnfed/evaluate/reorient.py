"""Images whose axes run in another order or sense than those of the CT."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from core.data.geometry import Geometry
from core.data.grid import affine, index_transform


def reoriented(
    array: npt.NDArray[Any], source: Geometry, target: Geometry, tolerance: float = 0.01
) -> npt.NDArray[Any] | None:
    """An image of the same voxels as `target`, with its axes in the order and sense of `target`.

    Args:
        array: (Z, Y, X) on `source`.
        source: its grid.
        target: a grid.
        tolerance: as for `Geometry.close_to`.

    Returns:
        (Z, Y, X) on `target`; None where the grids are not of the same voxels.
    """
    matrix, _ = index_transform(target, source)  # an index of `target` to one of `source`
    turn = np.rint(matrix).astype(int)
    one_each = (np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all()
    if not one_each or not np.allclose(matrix, turn, atol=0.02):
        return None
    order = [int(np.flatnonzero(turn[:, axis])[0]) for axis in range(3)]
    senses = [int(turn[axis_of, axis]) for axis, axis_of in enumerate(order)]
    turned = array.transpose(order)[tuple(slice(None, None, sense) for sense in senses)]
    step, origin = affine(source)
    first = np.zeros(3)
    for axis, axis_of in enumerate(order):
        if senses[axis] < 0:
            first[axis_of] = source.size[axis_of] - 1
    columns = np.stack([step[:, o] * sense for o, sense in zip(order, senses, strict=True)], axis=1)
    spacing = np.linalg.norm(columns, axis=0)
    corner = step @ first + origin
    placed = Geometry(
        (turned.shape[0], turned.shape[1], turned.shape[2]),
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        (float(corner[0]), float(corner[1]), float(corner[2])),
        tuple(float(v) for v in (columns / spacing)[:, ::-1].ravel()),
    )
    return np.ascontiguousarray(turned) if target.close_to(placed, tolerance) else None
