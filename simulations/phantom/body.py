"""The phantom's patient: what varies, the outline of the body, skin, fat and large muscles.

Frame: mm, LPS (x to the left, y to the back, z up), origin between the ears; the brainstem's
centre lies near (0, 13, -5). Positions follow the mean places of organs in planning CT: parotids
57 mm to the side of and 44 mm below the brainstem, mandible 67 mm before and 54 mm below it, larynx
122 mm and oesophagus 182 mm below it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.phantom.shapes import (
    Box,
    Canvas,
    Field,
    Point,
    Shape,
    around,
    blend,
    column,
    ellipsoid,
    lookup,
    sheet,
    tube,
    union,
)

AIR, FAT, MUSCLE, BRAIN, FLUID = -1000.0, -90.0, 52.0, 37.0, 4.0
SIDES = (("L", 1.0), ("R", -1.0))


@dataclass(frozen=True)
class Patient:
    """What differs between patients besides pose and smooth deformation.

    Attributes:
        fat_mm: thickness of the fat below the skin.
        girth: width of the neck and shoulders against the mean.
        jaw: length of the mandible's body against the mean.
        open_mm: how far the chin is lowered.
        gland: size (length, not volume) of parotids and submandibular glands in the
            order Parotid_L, Parotid_R, Glnd_Submand_L, Glnd_Submand_R.
        parotid_hu, submandibular_hu: density of the glands.
        nerve: thickness of optic nerves and chiasm against the mean.
        larynx_mm: how far the larynx is shifted down.
        constrictor_mm: thickness of the pharyngeal constrictors.
        contrast_hu: enhancement of vessels; glands take up a third of it.
        metal: teeth with fillings, as places along the arch (-1 to 1).
    """

    fat_mm: float = 7.0
    girth: float = 1.0
    jaw: float = 1.0
    open_mm: float = 0.0
    gland: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    parotid_hu: float = -8.0
    submandibular_hu: float = 42.0
    nerve: float = 1.0
    larynx_mm: float = 0.0
    constrictor_mm: float = 3.3
    contrast_hu: float = 0.0
    metal: tuple[float, ...] = ()


@dataclass(frozen=True)
class Part:
    """One thing to paint: shape, density, and the organ (TG-263) whose mask it is, if any."""

    shape: Shape
    hu: float
    organ: str = ""


# Rows bottom to top. Outline of the body: z, half-width, front, back.
_BODY = np.array(
    [
        (-330, 205, -92, 125),
        (-270, 205, -85, 122), (-240, 196, -78, 118), (-220, 172, -68, 112), (-200, 132, -60, 106),
        (-180, 86, -54, 98), (-160, 65, -49, 90), (-135, 60, -47, 82), (-115, 60, -58, 79),
        (-100, 62, -82, 79), (-88, 65, -104, 80), (-70, 69, -106, 83), (-50, 73, -102, 87),
        (-30, 76, -101, 93), (-10, 78, -100, 100), (10, 79, -99, 104), (30, 79, -98, 105),
        (60, 73, -88, 100), (85, 57, -66, 80), (100, 39, -42, 56), (109, 20, -18, 32),
        (114, 5, 0, 12),
    ],
    np.float64,
)  # fmt: skip
# Vertebral column: z, y of the bodies' centre, half-width, half-depth.
SPINE = np.array(
    [
        (-330, 72, 15, 12),
        (-270, 58, 14, 11), (-222, 45, 13, 9.5), (-187, 33, 12.5, 9), (-150, 22, 12, 8.5),
        (-125, 16, 11, 8), (-100, 12, 10, 8), (-75, 8, 9.5, 7.5), (-50, 6, 8, 7), (-37, 6, 6, 5.5),
    ],
    np.float64,
)  # fmt: skip


def spine_y(z: float) -> float:
    """Where the middle of the vertebral bodies lies (y) at a height z, mm."""
    return float(np.interp(z, SPINE[:, 0], SPINE[:, 1]))


def at(sign: float, *points: Point) -> list[Point]:
    """The points, or their mirror images on the right where `sign` is -1."""
    return [(sign * x, y, z) for x, y, z in points]


def body(patient: Patient) -> Shape:
    """The outline of the patient: head with nose and ears, neck, shoulders."""
    z, half, front, back = _BODY.T
    low = np.clip((-100.0 - z) / 60.0, 0.0, 1.0)
    half = half * (1 + (patient.girth - 1) * low)
    chin = np.exp(-(((z + 85.0) / 20.0) ** 2)) * (106.0 * (1.0 - patient.jaw))
    table = np.column_stack([z, (front + chin + back) / 2, half, (back - front - chin) / 2])
    ears = [ellipsoid((sign * 80, 14, -4), (7, 14, 27)) for sign in (1.0, -1.0)]
    return union(column(table, 2.3), ellipsoid((0, -104, -20), (12, 14, 16), 20.0), *ears)


def paint_body(canvas: Canvas, patient: Patient) -> Field:
    """Paints skin, fat and the muscles that fill the back of the neck and the trunk.

    Returns:
        Distance of each voxel from the skin, mm, negative inside (Z, Y, X).
    """
    outline = body(patient)
    skin = np.full(canvas.image.shape, 99.0, np.float32)
    near = outline.distance(*canvas.coarse) < 8.0 + canvas.reach_mm
    for first in range(0, near.shape[0], 2):
        slab = np.zeros_like(near)
        slab[first : first + 2] = near[first : first + 2]
        box = around(canvas, slab)
        if box is not None:
            skin[box] = outline.distance(canvas.x[box], canvas.y[box], canvas.z[box])
            _paint_slab(canvas, patient, box, skin[box])
    return skin


def _paint_slab(canvas: Canvas, patient: Patient, box: Box, skin: Field) -> None:
    blend(canvas, box, skin, 10.0)
    blend(canvas, box, skin + np.float32(2.5), FAT - 5)
    x, y, z = np.abs(canvas.x[box]), canvas.y[box], canvas.z[box]
    inner = skin + np.float32(patient.fat_mm)
    (front,) = lookup(SPINE[:, :2] + (0.0, 1.0))(z)
    back = np.maximum(inner, front - y + np.float32(0.4) * np.maximum(x - 12, 0))
    blend(canvas, box, np.maximum(back, z + 28 + np.float32(0.3) * (y - 60)), MUSCLE)
    slope = z + 178 + np.float32(0.35) * np.maximum(60 - x, 0)
    slope += np.float32(0.3) * np.minimum(20 - y, 60)
    blend(canvas, box, np.maximum(inner + 3, slope * np.float32(0.7)), MUSCLE - 4)


def soft_tissue(patient: Patient) -> list[Part]:
    """Single muscles of neck and face, the fat between them, the tongue and the palate."""
    parts: list[Part] = []
    for half, depth in ((24, 20), (37, 29)):
        rows = [(z, spine_y(z) + 19, half, depth) for z in (-200, -150, -100, -60, -42)]
        parts.append(Part(sheet(np.array(rows, np.float64), 1.5, -0.1), FAT / 2))
    for _, sign in SIDES:
        m = at(sign, (60, 24, -30), (50, 4, -90), (36, -16, -140), (18, -32, -192))
        parts.append(Part(tube(m, (7, 8, 8, 6), (1.0, 1.5, 1.0)), MUSCLE + 6))
        parts.append(Part(ellipsoid((sign * 57, -34, -52), (7, 15, 27), -8), MUSCLE + 4))
        parts.append(Part(ellipsoid((sign * 35, -30, -48), (8, 13, 20), -8), MUSCLE))
        parts.append(Part(ellipsoid((sign * 70, -25, 12), (5, 25, 25)), MUSCLE))
        parts.append(Part(ellipsoid((sign * 24, 2, -50), (6, 7, 26)), FAT))
        longus = [(sign * 8, spine_y(z) - 11, z) for z in (-45, -90, -140, -200)]
        parts.append(Part(tube(longus, (2.5, 3.5, 4, 4), (1.9, 1, 1)), MUSCLE))
    tongue_z = -68 - patient.open_mm / 2
    parts.append(Part(ellipsoid((0, -60, tongue_z), (25, 31, 21)), MUSCLE + 5))
    parts.append(Part(ellipsoid((0, -46, -86), (19, 17, 14)), MUSCLE + 3))
    parts.append(Part(ellipsoid((0, -66, -88 - patient.open_mm / 2), (24, 24, 6)), MUSCLE))
    parts.append(Part(ellipsoid((0, -66, tongue_z + 22), (18, 24, 2.2)), -700.0))
    parts.append(Part(ellipsoid((0, -36, -48), (14, 14, 4), 25), MUSCLE))
    return parts
