"""Contours to voxels and back: pixel centres, even-odd, slices by position.

Contours are (N, 3) arrays of points in patient mm (x, y, z; LPS), as in an RTSTRUCT. Masks are
bool (Z, Y, X). A voxel belongs to a structure where its centre lies inside an odd number of the
slice's contours: holes drawn as inner contours, islands and keyholes follow from the one rule.
A mask that is traced and rasterised again is the same mask.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.data.volume import Geometry

Points = npt.NDArray[np.float64]
FLAT_SLICES = 0.25


@dataclass(frozen=True)
class Raster:
    """A rasterised structure, and what of its contours was not drawn.

    Attributes:
        mask: bool (Z, Y, X).
        points: contours of fewer than three points; they hold no area.
        tilted: contours that do not lie in one slice of the grid.
        outside: contours further than half a slice above or below the grid.
        between: contours passed over because another plane lies nearer to their slice.
        doubled: contours that repeat another one of their slice; drawn once, they would cancel out.
    """

    mask: npt.NDArray[np.bool_]
    points: int = 0
    tilted: int = 0
    outside: int = 0
    between: int = 0
    doubled: int = 0


def rasterise(contours: Iterable[Points], geometry: Geometry) -> Raster:
    """Draws closed planar contours on a grid.

    A contour goes to the slice nearest to its plane. Where contours of several planes have the same
    nearest slice, those of the plane nearest to it are drawn. No slice is filled by interpolation.

    Args:
        contours: (N, 3) in patient mm each.
        geometry: the grid.
    """
    depth = geometry.size[0]
    planes: dict[int, list[tuple[float, Points]]] = defaultdict(list)
    points = tilted = outside = between = doubled = 0
    for contour in contours:
        if len(contour) < 3:
            points += 1
            continue
        index = _to_index(contour, geometry)
        level = float(index[:, 2].mean())
        if np.ptp(index[:, 2]) > FLAT_SLICES:
            tilted += 1
        elif not -0.5 <= level <= depth - 0.5:
            outside += 1
        else:
            # Halfway between two slices it goes up, always: no slice is skipped.
            place = min(max(math.floor(level + 0.5 + 1e-4), 0), depth - 1)
            planes[place].append((level, index[:, :2]))
    mask = np.zeros(geometry.size, dtype=np.bool_)
    for place, drawn in planes.items():
        nearest = min(abs(level - place) for level, _ in drawn)
        side = min(level for level, _ in drawn if abs(level - place) <= nearest + 1e-6)
        kept = [polygon for level, polygon in drawn if abs(level - side) <= 0.01]
        between += len(drawn) - len(kept)
        once = list({_signature(polygon): polygon for polygon in kept}.values())
        doubled += len(kept) - len(once)
        _fill(once, mask[place])
    return Raster(mask, points, tilted, outside, between, doubled)


def trace(mask: npt.NDArray[np.bool_], geometry: Geometry) -> list[Points]:
    """Outlines of a mask along the edges of its pixels, slice by slice.

    Outer borders and holes are contours of their own; pixels that touch at a corner only are
    apart. Areas are those of the pixels.

    Args:
        mask: bool (Z, Y, X).
        geometry: its grid.

    Returns:
        Contours (N, 3) in patient mm, N >= 4, from the first slice to the last.
    """
    assert mask.shape == geometry.size, (mask.shape, geometry.size)
    found: list[Points] = []
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        for polygon in _outlines(mask[z]):
            index = np.column_stack([polygon, np.full(len(polygon), float(z))])
            found.append(_to_mm(index, geometry))
    return found


def _signature(polygon: Points) -> bytes:
    """The same for the same points, wherever a contour begins and whichever way it runs."""
    points = np.round(polygon, 3)
    return bytes(points[np.lexsort(points.T)].tobytes())


def _matrix(geometry: Geometry) -> Points:
    spacing = np.array(geometry.spacing_mm[::-1])
    matrix: Points = np.array(geometry.direction).reshape(3, 3) * spacing
    return matrix


def _to_index(points: Points, geometry: Geometry) -> Points:
    """Patient mm (N, 3) to continuous index (N, 3) as x, y, z."""
    offset = (np.asarray(points, dtype=np.float64) - np.array(geometry.origin_mm)).T
    index: Points = np.linalg.solve(_matrix(geometry), offset).T
    return index


def _to_mm(index: Points, geometry: Geometry) -> Points:
    points: Points = index @ _matrix(geometry).T + np.array(geometry.origin_mm)
    return points


def _fill(polygons: Sequence[Points], mask: npt.NDArray[np.bool_]) -> None:
    """Even-odd fill of polygons (N, 2), x then y in pixels, at the pixel centres of mask (Y, X)."""
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
    mask[top:bottom, left:right] = np.cumsum(flips, axis=1)[:, :-1] % 2


def _outlines(mask: npt.NDArray[np.bool_]) -> list[Points]:
    """Closed outlines (N, 2) of a mask (Y, X) as x, y in pixels; the inside lies on the right."""
    padded = np.pad(mask, 1).astype(np.int8)
    down, right = np.diff(padded, axis=0), np.diff(padded, axis=1)
    ahead: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for sign in (1, -1):
        for y, x in np.argwhere(down == sign):
            ahead[(x - 1, y) if sign > 0 else (x, y)].append((sign, 0))
        for y, x in np.argwhere(right == sign):
            ahead[(x, y) if sign > 0 else (x, y - 1)].append((0, -sign))
    found: list[Points] = []
    while ahead:
        corner = begin = next(iter(ahead))
        step = ahead[begin][0]
        corners: list[tuple[int, int]] = []
        wanted = step
        while True:
            choices = ahead[corner]
            turn = (-step[1], step[0])
            follow = turn if turn in choices else choices[0]
            if corner == begin and not corners:
                follow = wanted
            choices.remove(follow)
            if not choices:
                del ahead[corner]
            if not corners or follow != step:
                corners.append(corner)
            step = follow
            corner = (corner[0] + step[0], corner[1] + step[1])
            if corner == begin and (corner not in ahead or _closes(step, ahead[corner], wanted)):
                break
        if step == wanted:
            corners = corners[1:]
        found.append(np.array(corners, dtype=np.float64) - 0.5)
    return found


def _closes(
    step: tuple[int, int], choices: Sequence[tuple[int, int]], wanted: tuple[int, int]
) -> bool:
    """At a corner that two outlines share: the loop is closed where its turn is its first step."""
    turn = (-step[1], step[0])
    return turn == wanted or turn not in choices
