"""Contours to voxels and back: pixel centres, slices by position.

Contours are (N, 3) arrays of points in patient mm (x, y, z; LPS), as in an RTSTRUCT. Masks are bool
(Z, Y, X). A voxel belongs to a structure where its centre lies inside; what the contours of one
slice make together, `core.archives.dicom.contour_plane` says. A mask that is traced and rasterised
again is the same mask.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.archives.dicom.contour_plane import combined
from core.data.geometry import Geometry

Points = npt.NDArray[np.float64]
FLAT_SLICES = 0.25
# Outlines are written this much inside the edges of their pixels: readers that round coordinates to
# whole pixels round half a pixel outwards, and would make every structure larger.
INSET_PIXELS = 0.02


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
        crossing: pairs of contours of a slice that overlap without one lying in the other.
        tilted_ml: what the tilted contours enclose, one slice thick each.
        outside_ml: what those above or below the grid enclose.
    """

    mask: npt.NDArray[np.bool_]
    points: int = 0
    tilted: int = 0
    outside: int = 0
    between: int = 0
    doubled: int = 0
    crossing: int = 0
    tilted_ml: float = 0.0
    outside_ml: float = 0.0


def rasterise(contours: Iterable[Points], geometry: Geometry, *, xor: bool = False) -> Raster:
    """Draws closed planar contours on a grid.

    A contour goes to the slice nearest to its plane. Where contours of several planes have the same
    nearest slice, those of the plane nearest to it are drawn. No slice is filled by interpolation.

    Args:
        contours: (N, 3) in patient mm each.
        geometry: the grid.
        xor: the contours of a slice are joined by exclusive disjunction.
    """
    depth, thick = geometry.size[0], geometry.spacing_mm[0] / 1000.0
    planes: dict[int, list[tuple[float, Points]]] = defaultdict(list)
    points = between = doubled = crossing = 0
    tilted, outside = list[float](), list[float]()
    for contour in contours:
        if len(contour) < 3:
            points += 1
            continue
        index = _to_index(contour, geometry)
        level = float(index[:, 2].mean())
        if np.ptp(index[:, 2]) > FLAT_SLICES:
            tilted.append(_area_mm2(contour) * thick)
        elif not -0.5 <= level <= depth - 0.5:
            outside.append(_area_mm2(contour) * thick)
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
        plane = combined(kept, geometry.size[1:], xor=xor)
        mask[place] = plane.mask
        doubled += plane.doubled
        crossing += plane.crossing
    return Raster(
        mask, points, len(tilted), len(outside), between, doubled, crossing,
        sum(tilted), sum(outside),
    )  # fmt: skip


def trace(mask: npt.NDArray[np.bool_], geometry: Geometry) -> list[Points]:
    """Outlines of a mask, `INSET_PIXELS` inside the edges of its pixels, slice by slice.

    Outer borders and holes are contours of their own; pixels that touch at a corner only are
    apart.

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
            inset = _inset(polygon)
            index = np.column_stack([inset, np.full(len(inset), float(z))])
            found.append(index @ _matrix(geometry).T + np.array(geometry.origin_mm))
    return found


def _area_mm2(contour: Points) -> float:
    """What a closed contour (N, 3) in mm encloses, in whatever plane it lies."""
    from_first = contour - contour[0]
    vector = np.cross(from_first[:-1], from_first[1:]).sum(axis=0)
    return float(np.linalg.norm(vector) / 2.0)


def _inset(polygon: Points) -> Points:
    """An outline along the axes, its inside on the right, moved inwards by `INSET_PIXELS`."""
    step = np.sign(np.roll(polygon, -1, axis=0) - polygon)
    before = np.roll(step, 1, axis=0)
    inwards = np.column_stack([-step[:, 1] - before[:, 1], step[:, 0] + before[:, 0]])
    moved: Points = polygon + INSET_PIXELS * inwards
    return moved


def _matrix(geometry: Geometry) -> Points:
    spacing = np.array(geometry.spacing_mm[::-1])
    matrix: Points = np.array(geometry.direction).reshape(3, 3) * spacing
    return matrix


def _to_index(points: Points, geometry: Geometry) -> Points:
    """Patient mm (N, 3) to continuous index (N, 3) as x, y, z."""
    offset = (np.asarray(points, dtype=np.float64) - np.array(geometry.origin_mm)).T
    index: Points = np.linalg.solve(_matrix(geometry), offset).T
    return index


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
