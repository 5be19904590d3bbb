"""Shapes of the phantom as signed distances, and a canvas that paints them.

Coordinates are millimetres in the patient's frame (LPS: x to the left, y to the back, z up). A
distance is negative inside. Distances of stretched shapes are approximate, right at the surface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
Point = tuple[float, float, float]
Distance = Callable[[Field, Field, Field], Field]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Shape:
    """A solid: its bounding box in mm and its signed distance.

    Attributes:
        low, high: corners (x, y, z) of the bounding box.
        distance: maps coordinates (x, y, z) to mm, negative inside.
    """

    low: Point
    high: Point
    distance: Distance


@dataclass(frozen=True)
class Canvas:
    """A voxel grid that knows the patient's coordinates of every voxel.

    Attributes:
        x, y, z: coordinates of each voxel in the patient's frame, mm, (Z, Y, X).
        image: HU, painted in place.
        places: indices of coarse samples along each axis (z, y, x), first and last voxel included.
        coarse: the three coordinates at the coarse samples, to find bounding boxes.
        reach_mm: largest difference of a coordinate between a voxel and its nearest sample.
        blur_mm: width over which an edge goes from inside to outside (partial volume).
    """

    x: Field
    y: Field
    z: Field
    image: Field
    places: tuple[npt.NDArray[np.int64], ...]
    coarse: tuple[Field, Field, Field]
    reach_mm: float
    blur_mm: float


def make_canvas(x: Field, y: Field, z: Field, spacing_mm: Sequence[float]) -> Canvas:
    """Makes a canvas of air (-1000 HU).

    Args:
        x: patient coordinate of each voxel (Z, Y, X), mm; so for y and z.
        y: see x.
        z: see x.
        spacing_mm: voxel size (z, y, x).
    """
    places, widest = [], 0.0
    for count, spacing in zip(x.shape, spacing_mm, strict=True):
        step = max(1, round(8.0 / spacing))
        places.append(np.unique(np.append(np.arange(0, count, step), count - 1)))
        widest = max(widest, step * spacing)
    cx, cy, cz = (v[np.ix_(*places)] for v in (x, y, z))
    image = np.full(x.shape, -1000.0, np.float32)
    blur = float(np.mean(spacing_mm)) * 0.8
    return Canvas(x, y, z, image, tuple(places), (cx, cy, cz), 0.75 * widest, blur)


def box_of(canvas: Canvas, shape: Shape, pad_mm: float) -> Box | None:
    """Returns the voxels that may lie within `pad_mm` of a shape; None where there are none."""
    inside: npt.NDArray[np.bool_] | None = None
    for field, low, high in zip(canvas.coarse, shape.low, shape.high, strict=True):
        pad = pad_mm + canvas.reach_mm
        part = (field > low - pad) & (field < high + pad)
        inside = part if inside is None else inside & part
    assert inside is not None
    return around(canvas, inside)


def around(canvas: Canvas, inside: npt.NDArray[np.bool_]) -> Box | None:
    """Returns the box of all voxels that are nearest to the marked coarse samples."""
    slices: list[slice] = []
    for axis, places in enumerate(canvas.places):
        hit = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        if hit.size == 0:
            return None
        first, last = int(hit[0]), int(hit[-1])
        low = (places[max(first - 1, 0)] + places[first]) // 2
        high = (places[last] + places[min(last + 1, places.size - 1)] + 1) // 2
        slices.append(slice(int(low), int(high) + 1))
    return slices[0], slices[1], slices[2]


def measure(canvas: Canvas, shape: Shape, box: Box) -> Field:
    """Evaluates a shape's distance in a box of voxels, mm."""
    return shape.distance(canvas.x[box], canvas.y[box], canvas.z[box])


def paint(canvas: Canvas, shape: Shape, hu: float) -> tuple[Box, Field] | None:
    """Paints a shape with soft edges; returns where, and the distances, for a mask."""
    box = box_of(canvas, shape, 3.0)
    if box is None:
        return None
    distance = measure(canvas, shape, box)
    blend(canvas, box, distance, hu)
    return box, distance


def blend(canvas: Canvas, box: Box, distance: Field, hu: float) -> None:
    """Paints where a distance is negative, with soft edges."""
    alpha = np.clip(0.5 - distance * np.float32(1 / canvas.blur_mm), 0.0, 1.0)
    part = canvas.image[box]
    part += alpha * (np.float32(hu) - part)


def ellipsoid(centre: Point, radii: Point, tilt_deg: float = 0.0) -> Shape:
    """An ellipsoid; `tilt_deg` turns it about the x axis (top to the back)."""
    c, s = float(np.cos(np.deg2rad(tilt_deg))), float(np.sin(np.deg2rad(tilt_deg)))
    ry, rz = (
        float(np.hypot(radii[1] * c, radii[2] * s)),
        float(np.hypot(radii[1] * s, radii[2] * c)),
    )
    half = (radii[0], ry, rz)

    def distance(x: Field, y: Field, z: Field) -> Field:
        px, py, pz = x - centre[0], y - centre[1], z - centre[2]
        if tilt_deg:
            py, pz = c * py - s * pz, s * py + c * pz
        qx, qy, qz = px / radii[0], py / radii[1], pz / radii[2]
        k0 = np.sqrt(qx * qx + qy * qy + qz * qz)
        qx, qy, qz = qx / radii[0], qy / radii[1], qz / radii[2]
        k1 = np.sqrt(qx * qx + qy * qy + qz * qz) + np.float32(1e-6)
        return np.asarray(k0 * (k0 - 1.0) / k1, np.float32)

    low = (centre[0] - half[0], centre[1] - half[1], centre[2] - half[2])
    high = (centre[0] + half[0], centre[1] + half[1], centre[2] + half[2])
    return Shape(low, high, distance)


def tube(
    points: Sequence[Point], radii: Sequence[float], stretch: Point = (1.0, 1.0, 1.0)
) -> Shape:
    """A chain of tapered capsules, its cross-section widened by `stretch` along x, y, z."""
    p = np.asarray(points, np.float64)
    s, r = np.asarray(stretch), np.asarray(radii, np.float64)
    q = p / s

    def distance(x: Field, y: Field, z: Field) -> Field:
        best: Field | None = None
        xs, ys, zs = x / np.float32(s[0]), y / np.float32(s[1]), z / np.float32(s[2])
        for a, b, ra, rb in zip(q[:-1], q[1:], r[:-1], r[1:], strict=True):
            ab = b - a
            length = float(ab @ ab) or 1.0
            ab32, a32 = ab.astype(np.float32), a.astype(np.float32)
            px, py, pz = xs - a32[0], ys - a32[1], zs - a32[2]
            t = np.clip((px * ab32[0] + py * ab32[1] + pz * ab32[2]) / np.float32(length), 0.0, 1.0)
            px, py, pz = px - t * ab32[0], py - t * ab32[1], pz - t * ab32[2]
            d = np.sqrt(px * px + py * py + pz * pz) - np.float32(ra) - t * np.float32(rb - ra)
            best = d if best is None else np.minimum(best, d)
        assert best is not None
        return np.asarray(best, np.float32)

    reach = r[:, None] * s[None, :]
    low, high = (p - reach).min(0), (p + reach).max(0)
    return Shape(
        (float(low[0]), float(low[1]), float(low[2])),
        (float(high[0]), float(high[1]), float(high[2])),
        distance,
    )


def lookup(table: npt.NDArray[np.float64]) -> Callable[[Field], tuple[Field, ...]]:
    """Makes a fast interpolation of a table's columns 1.. over column 0, in steps of 0.5 mm."""
    zs = table[:, 0]
    grid = np.arange(zs[0], zs[-1] + 0.5, 0.5)
    columns = [
        np.interp(grid, zs, table[:, i]).astype(np.float32) for i in range(1, table.shape[1])
    ]

    def at(z: Field) -> tuple[Field, ...]:
        place = np.rint((z - np.float32(zs[0])) * 2).astype(np.int32)
        return tuple(np.take(c, place, mode="clip") for c in columns)

    return at


def column(table: npt.NDArray[np.float64], power: float = 2.0, centre_x: float = 0.0) -> Shape:
    """A solid of elliptical slices; `table` is (z, y of the centre, half-width x, half-depth y).

    Rows go from bottom to top; the solid ends flat at the first and the last row.
    """
    zs, at = table[:, 0], lookup(table)

    def distance(x: Field, y: Field, z: Field) -> Field:
        yc, a, b = at(z)
        u, v = np.abs(x - centre_x) / a, np.abs(y - yc) / b
        rho = np.hypot(u, v) if power == 2.0 else (u**power + v**power) ** (1.0 / power)
        side = (rho - 1.0) * np.minimum(a, b)
        return np.asarray(
            np.maximum(side, np.maximum(z - float(zs[-1]), float(zs[0]) - z)), np.float32
        )

    a, b = float(table[:, 2].max()), table[:, 3]
    low = (centre_x - a, float((table[:, 1] - b).min()), float(zs[0]))
    return Shape(low, (centre_x + a, float((table[:, 1] + b).max()), float(zs[-1])), distance)


def sheet(table: npt.NDArray[np.float64], thickness: float, front: float) -> Shape:
    """A curved sheet round the back of a column's surface, from inside to `thickness` mm outside.

    Args:
        table: rows (z, y of the centre, half-width x, half-depth y), bottom to top.
        thickness: mm.
        front: how far forward the sheet comes, as a share of the half-depth (0: widest place).
    """
    zs, at = table[:, 0], lookup(table)

    def distance(x: Field, y: Field, z: Field) -> Field:
        yc, a, b = at(z)
        u, v = x / a, (y - yc) / b
        rho = np.sqrt(u * u + v * v) + np.float32(1e-6)
        slope = np.sqrt((u / a) ** 2 + (v / b) ** 2) / rho + np.float32(1e-6)
        middle = np.abs((rho - 1.0) / slope - thickness / 2) - thickness / 2
        ends = np.maximum(np.maximum(z - float(zs[-1]), float(zs[0]) - z), (-front - v) * b)
        return np.asarray(np.maximum(middle, ends), np.float32)

    a, b = float(table[:, 2].max()) + thickness, table[:, 3] + thickness
    low = (-a, float((table[:, 1] - b).min()), float(zs[0]))
    return Shape(low, (a, float((table[:, 1] + b).max()), float(zs[-1])), distance)


def union(*shapes: Shape) -> Shape:
    """The solid that covers all the given ones."""

    def distance(x: Field, y: Field, z: Field) -> Field:
        best = shapes[0].distance(x, y, z)
        for shape in shapes[1:]:
            best = np.minimum(best, shape.distance(x, y, z))
        return best

    low, high = np.min([s.low for s in shapes], 0), np.max([s.high for s in shapes], 0)
    return Shape(
        (float(low[0]), float(low[1]), float(low[2])),
        (float(high[0]), float(high[1]), float(high[2])),
        distance,
    )


def without(shape: Shape, hole: Shape, gap_mm: float = 0.0) -> Shape:
    """A solid less another one that is widened by `gap_mm`."""

    def distance(x: Field, y: Field, z: Field) -> Field:
        inner = hole.distance(x, y, z) - np.float32(gap_mm)
        return np.asarray(np.maximum(shape.distance(x, y, z), -inner), np.float32)

    return Shape(shape.low, shape.high, distance)


def grown(shape: Shape, by_mm: float) -> Shape:
    """A solid moved outwards by `by_mm` (inwards where negative)."""
    low = (shape.low[0] - by_mm, shape.low[1] - by_mm, shape.low[2] - by_mm)
    high = (shape.high[0] + by_mm, shape.high[1] + by_mm, shape.high[2] + by_mm)
    return Shape(low, high, lambda x, y, z: shape.distance(x, y, z) - np.float32(by_mm))


def cut(shape: Shape, keep: Distance) -> Shape:
    """The part of a solid where the function `keep` is negative."""
    return Shape(
        shape.low,
        shape.high,
        lambda x, y, z: np.asarray(np.maximum(shape.distance(x, y, z), keep(x, y, z)), np.float32),
    )
