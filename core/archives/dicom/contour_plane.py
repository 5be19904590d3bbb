"""Contours of one slice to pixels: each filled by the even-odd rule, then joined by a stated rule.

Polygons are (N, 2) arrays of x, y in pixels; a pixel belongs to one where its centre lies inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
# A contour of which less than this share lies outside another one is nested in it: what a planning
# system rounds at a shared border makes no crossing.
NESTED_SHARE = 0.02
# Two outlines that run closer together than this, in pixels, are one that is there twice.
DOUBLED_PIXELS = 0.1


@dataclass(frozen=True)
class Plane:
    """What the contours of one slice make.

    Attributes:
        mask: bool (Y, X).
        doubled: contours that repeat another one; drawn once, they would cancel out.
        crossing: pairs of contours that overlap without one lying in the other.
    """

    mask: Mask
    doubled: int = 0
    crossing: int = 0


def combined(polygons: Sequence[Points], size: tuple[int, int], *, xor: bool = False) -> Plane:
    """Joins the contours of one slice.

    A contour inside another one is a hole in it, one inside a hole an island, and so on; contours
    that overlap otherwise are joined (DICOM PS3.3 C.8.8.6.3). With `xor` every contour flips what
    lies inside it, whatever lies there (CLOSEDPLANAR_XOR).

    Args:
        polygons: closed, x and y in pixels.
        size: of the slice (Y, X).
        xor: join by exclusive disjunction.
    """
    mask = np.zeros(size, dtype=np.bool_)
    doubled = crossing = 0
    for group in _overlapping(polygons):
        members = [polygons[i] for i in group]
        if xor or len(members) == 1:
            fill(members, mask)
            continue
        once = _once(members)
        doubled += len(members) - len(once)
        crossing += _join(once, mask)
    return Plane(mask, doubled, crossing)


def fill(polygons: Sequence[Points], mask: Mask) -> None:
    """Flips what lies inside an odd number of polygons, in place.

    Args:
        polygons: (N, 2) each, x then y in pixels.
        mask: bool (Y, X).
    """
    start = np.concatenate(polygons)
    end = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    height, width = mask.shape
    left, top = np.clip(np.ceil(start.min(axis=0)), 0, (width, height)).astype(np.int64)
    right, bottom = np.clip(np.floor(start.max(axis=0)) + 1, 0, (width, height)).astype(np.int64)
    if right <= left or bottom <= top:
        return
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(low), top, bottom).astype(np.int64)
    last = np.clip(np.ceil(high), top, bottom).astype(np.int64)
    rows_of = np.maximum(last - first, 0)
    edge = np.repeat(np.arange(len(start)), rows_of)
    before = np.cumsum(rows_of) - rows_of
    row = np.arange(len(edge)) - before[edge] + first[edge]
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    crossing = x0 + (row - y0) * (x1 - x0) / (y1 - y0)
    column = np.clip(np.ceil(crossing), left, right).astype(np.int64)
    rows, columns = int(bottom - top), int(right - left) + 1
    place = (row - top) * columns + (column - left)
    flips = np.bincount(place, minlength=rows * columns).reshape(rows, columns)
    mask[top:bottom, left:right] ^= np.cumsum(flips, axis=1)[:, :-1] % 2 == 1


def _overlapping(polygons: Sequence[Points]) -> list[list[int]]:
    """Groups of polygons whose bounding boxes meet; those of other groups cannot touch them."""
    low = np.array([polygon.min(axis=0) for polygon in polygons])
    high = np.array([polygon.max(axis=0) for polygon in polygons])
    left = set(range(len(polygons)))
    groups: list[list[int]] = []
    while left:
        group, new = set[int](), [left.pop()]
        while new:
            i = new.pop()
            group.add(i)
            meets = ((low <= high[i]) & (high >= low[i])).all(axis=1)
            near = left & set(np.flatnonzero(meets).tolist())
            left -= near
            new += near
        groups.append(sorted(group))
    return groups


def _once(polygons: Sequence[Points]) -> list[Points]:
    """The polygons without those that repeat an earlier one, whatever their points are."""
    kept: list[Points] = []
    for polygon in polygons:
        if not any(_same(polygon, other) for other in kept):
            kept.append(polygon)
    return kept


def _same(one: Points, other: Points) -> bool:
    """Whether two outlines run everywhere within `DOUBLED_PIXELS` of each other."""
    for a, b in ((one, other), (other, one)):
        if np.abs(a.min(axis=0) - b.min(axis=0)).max() > DOUBLED_PIXELS:
            return False
        if np.abs(a.max(axis=0) - b.max(axis=0)).max() > DOUBLED_PIXELS:
            return False
    return _within(one, other) and _within(other, one)


def _within(points: Points, outline: Points) -> bool:
    """Whether each point lies within `DOUBLED_PIXELS` of a closed outline."""
    begin = outline
    along = np.roll(outline, -1, axis=0) - outline
    length = np.maximum((along**2).sum(axis=1), 1e-12)
    for some in np.array_split(points, -(-len(points) * len(outline) // 1_000_000)):
        offset = some[:, None] - begin
        part = np.clip((offset * along).sum(axis=2) / length, 0.0, 1.0)
        nearest = ((offset - part[..., None] * along) ** 2).sum(axis=2).min(axis=1)
        if nearest.max() > DOUBLED_PIXELS**2:
            return False
    return True


def _join(polygons: Sequence[Points], mask: Mask) -> int:
    """Draws polygons that may overlap, in place; returns how many pairs cross."""
    height, width = mask.shape
    points = np.concatenate(polygons)
    left, top = np.clip(np.floor(points.min(axis=0)), 0, (width, height)).astype(np.int64)
    right, bottom = np.clip(np.ceil(points.max(axis=0)) + 1, 0, (width, height)).astype(np.int64)
    if right <= left or bottom <= top:
        return 0
    shapes = []
    for polygon in polygons:
        shape = np.zeros((bottom - top, right - left), dtype=np.bool_)
        fill([polygon - np.array([left, top])], shape)
        if shape.any():
            shapes.append(shape)
    shapes.sort(key=lambda shape: -int(shape.sum()))
    areas = [int(shape.sum()) for shape in shapes]
    depth = [0] * len(shapes)
    inside: list[list[int]] = [[] for _ in shapes]  # by shape, those that it lies in
    crossing = 0
    for i, shape in enumerate(shapes):
        for j in range(i):
            common = int((shape & shapes[j]).sum())
            if areas[i] - common <= NESTED_SHARE * areas[i]:
                inside[i].append(j)
                depth[i] = max(depth[i], depth[j] + 1)
            crossing += 0 < common < areas[i]
    window = mask[top:bottom, left:right]
    for i, shape in enumerate(shapes):
        if depth[i] % 2 == 0:
            whole = shape.copy()
            for k in range(i + 1, len(shapes)):
                if depth[k] == depth[i] + 1 and i in inside[k]:
                    whole &= ~shapes[k]
            window |= whole
    return crossing
