"""Shapes with known volumes, as contours on the slices of a grid and as voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.data.geometry import Geometry

Points = npt.NDArray[np.float64]
KINDS = ("sphere", "ring", "islands", "keyhole")
CORNERS = 360


@dataclass(frozen=True)
class Shape:
    """One shape on a grid.

    Attributes:
        kind: of `KINDS`.
        geometry: the grid.
        contours: (N, 3) in patient mm.
        voxels: bool (Z, Y, X): centres inside, by the formula.
        volume_mm3: of the stack of discs that the contours stand for.
        radius_px: in-plane radius in pixels.
        slices: slices with contours.
    """

    kind: str
    geometry: Geometry
    contours: Sequence[Points]
    voxels: npt.NDArray[np.bool_]
    volume_mm3: float
    radius_px: float
    slices: frozenset[int]


def make(kind: str, radius_mm: float, geometry: Geometry, centre: Sequence[float]) -> Shape:
    """Makes a shape.

    Args:
        kind: of `KINDS`; ``ring`` and ``keyhole`` have a hole of half the radius, ``islands`` are
            two spheres side by side.
        radius_mm: of the sphere.
        geometry: the grid; its slices carry the contours.
        centre: x, y, z in mm from the corner voxel along the grid's own axes.
    """
    dz, dy, dx = geometry.spacing_mm
    depth, rows, columns = geometry.size
    y, x = np.meshgrid(np.arange(rows) * dy, np.arange(columns) * dx, indexing="ij")
    voxels = np.zeros(geometry.size, dtype=np.bool_)
    contours: list[Points] = []
    area, slices = 0.0, set()
    shift = 1.5 * radius_mm if kind == "islands" else 0.0
    for level in range(depth):
        squared = radius_mm**2 - (level * dz - centre[2]) ** 2
        if squared <= 0:
            continue
        slices.add(level)
        outer = math.sqrt(squared)
        inner = outer / 2 if kind in ("ring", "keyhole") else 0.0
        discs = [_circle(centre[0] + s, centre[1], outer) for s in sorted({-shift, shift})]
        if kind == "ring":
            discs.append(_circle(centre[0], centre[1], inner)[::-1])
        elif kind == "keyhole":
            hole = _circle(centre[0], centre[1], inner)[::-1]
            outline = discs[0]
            discs = [np.concatenate([outline, outline[:1], hole[-1:], hole, outline[:1]])]
        area += len({-shift, shift}) * math.pi * outer**2 - math.pi * inner**2
        for s in sorted({-shift, shift}):
            far = (x - centre[0] - s) ** 2 + (y - centre[1]) ** 2
            voxels[level] |= (far < outer**2) & (far >= inner**2)
        contours += [_to_mm(disc, level, geometry) for disc in discs]
    return Shape(
        kind, geometry, contours, voxels, area * dz, radius_mm / max(dx, dy), frozenset(slices)
    )


def random_shape(rng: np.random.Generator, kind: str) -> Shape:
    """A shape of 2 to 30 mm on a grid of its own: spacing, rotation and order at random."""
    radius = float(rng.uniform(2, 30))
    pixel = float(rng.uniform(0.5, min(2.0, max(0.6, radius / 3))))
    step = float(rng.uniform(0.5, min(5.0, radius)))
    wide = 3.2 if kind == "islands" else 1.3
    columns, rows = (int(2 * radius * f / pixel) + 6 for f in (wide, 1.3))
    depth = int(2 * radius * 1.3 / step) + 4
    size_mm = ((columns - 1) * pixel, (rows - 1) * pixel, (depth - 1) * step)
    centre = [s / 2 + float(rng.uniform(-0.5, 0.5)) * pixel for s in size_mm]
    direction = np.eye(3)
    if rng.random() < 0.5:
        direction, _ = np.linalg.qr(np.eye(3) + 0.3 * rng.standard_normal((3, 3)))
    if rng.random() < 0.5:
        direction = direction * np.array([1.0, 1.0, -1.0])
    origin = tuple(float(v) for v in rng.uniform(-300, 300, 3))
    geometry = Geometry(
        (depth, rows, columns), (step, pixel, pixel), (origin[0], origin[1], origin[2]),
        tuple(direction.ravel().tolist()),
    )  # fmt: skip
    return make(kind, radius, geometry, centre)


def _circle(x: float, y: float, radius: float) -> Points:
    """A polygon of the circle's area."""
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    corner = radius * math.sqrt(2 * math.pi / (CORNERS * math.sin(2 * math.pi / CORNERS)))
    return np.column_stack([x + corner * np.cos(angles), y + corner * np.sin(angles)])


def _to_mm(polygon: Points, level: int, geometry: Geometry) -> Points:
    """Points (N, 2) in mm along the grid's own axes to patient mm (N, 3)."""
    along = np.column_stack([polygon, np.full(len(polygon), level * geometry.spacing_mm[0])])
    turned = along @ np.array(geometry.direction).reshape(3, 3).T
    points: Points = turned + np.array(geometry.origin_mm)
    return points
