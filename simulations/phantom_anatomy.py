"""Anatomy of the phantom: what lies where in a head and neck, and how dense it is.

Frame: mm, LPS (x to the left, y to the back, z up), origin between the ears; the brainstem's centre lies near
(0, 13, -5). Positions follow the mean places of organs in planning CT: parotids 57 mm to the side and 44 mm below
the brainstem, mandible 67 mm before and 54 mm below it, larynx 122 mm and oesophagus 182 mm below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from simulations.phantom_shapes import (
    Canvas,
    Distance,
    Field,
    Point,
    Shape,
    blend,
    column,
    cut,
    ellipsoid,
    grown,
    lookup,
    measure,
    sheet,
    tube,
    union,
    without,
)

AIR, FAT, MUSCLE, BRAIN, FLUID = -1000.0, -90.0, 52.0, 37.0, 4.0
Side = Literal["L", "R"]


@dataclass(frozen=True)
class Patient:
    """What differs between patients besides pose and smooth deformation.

    Attributes:
        fat_mm: thickness of the fat below the skin.
        girth: width of the neck and shoulders against the mean.
        jaw: length of the mandible's body against the mean.
        open_mm: how far the chin is lowered.
        gland: size (length, not volume) of parotids and submandibular glands per side, "Parotid_L" ...
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
        (-270, 205, -85, 122), (-240, 196, -78, 118), (-220, 172, -68, 112), (-200, 132, -60, 106),
        (-180, 86, -54, 98), (-160, 65, -49, 90), (-135, 60, -47, 82), (-115, 60, -58, 79),
        (-100, 62, -82, 79), (-88, 65, -104, 80), (-70, 69, -106, 83), (-50, 73, -102, 87),
        (-30, 76, -101, 93), (-10, 78, -100, 100), (10, 79, -99, 104), (30, 79, -98, 105),
        (60, 73, -88, 100), (85, 57, -66, 80), (100, 39, -42, 56), (109, 20, -18, 32), (114, 5, 0, 12),
    ],
    np.float64,
)  # fmt: skip
# Vertebral column: z, y of the bodies' centre, half-width, half-depth.
_SPINE = np.array(
    [
        (-270, 58, 14, 11), (-222, 45, 13, 9.5), (-187, 33, 12.5, 9), (-150, 22, 12, 8.5),
        (-125, 16, 11, 8), (-100, 12, 10, 8), (-75, 8, 9.5, 7.5), (-50, 6, 8, 7), (-37, 6, 6, 5.5),
    ],
    np.float64,
)  # fmt: skip
# Airway: z, y of the centre, half-width, half-depth.
_AIRWAY = np.array(
    [
        (-270, 22, 9.5, 8.5), (-222, 4, 9.5, 8.5), (-187, -9, 9.5, 8.5), (-160, -17, 9.5, 9),
        (-145, -21, 8.5, 8.5), (-131, -25, 4.5, 9), (-116, -24, 11, 6), (-100, -24, 15, 6.5),
        (-80, -24, 13, 6.5), (-60, -25, 11, 6), (-45, -26, 10, 5.5), (-30, -28, 12, 8), (-18, -30, 8, 6),
    ],
    np.float64,
)  # fmt: skip
# Inner face of the pharyngeal wall: z, y of the centre, half-width, half-depth.
_WALL = np.array(
    [
        (-146, -20, 17, 11), (-131, -23, 18, 11.5), (-116, -24, 17.5, 10), (-100, -24, 18, 9.5),
        (-80, -24, 17, 9.5), (-60, -25, 16, 9.5), (-40, -26, 16, 9.5),
    ],
    np.float64,
)  # fmt: skip


def _spine(z: float) -> float:
    return float(np.interp(z, _SPINE[:, 0], _SPINE[:, 1]))


def _mirror(point: Point, side: Side) -> Point:
    return point if side == "L" else (-point[0], point[1], point[2])


def body(patient: Patient) -> Shape:
    """The outline of the patient: head with nose and ears, neck, shoulders."""
    z, half, front, back = _BODY.T
    low = np.clip((-100.0 - z) / 60.0, 0.0, 1.0)
    half = half * (1 + (patient.girth - 1) * low)
    chin = np.exp(-(((z + 85.0) / 20.0) ** 2)) * (106.0 * (1.0 - patient.jaw))
    table = np.column_stack([z, (front + chin + back) / 2, half, (back - front - chin) / 2])
    ears = [ellipsoid(_mirror((80, 14, -4), s), (7, 14, 27)) for s in ("L", "R")]
    return union(column(table, 2.3), ellipsoid((0, -104, -20), (12, 14, 16), 20.0), *ears)


def _base_height(y: Field) -> Field:
    """Height of the floor of the skull's cavity over the middle, z in mm for each y."""
    at = [-90.0, -34.0, -22.0, -8.0, -3.0, 6.0, 22.0, 70.0]
    height = [27.0, 19.0, 10.0, 13.0, -3.0, -30.0, -40.0, -42.0]
    return lookup(np.column_stack([at, height]))(y)[0]


def _above(drop_mm: float) -> Distance:
    def keep(x: Field, y: Field, z: Field) -> Field:
        middle = np.clip((np.abs(x) - 16.0) / 8.0, 0.0, 1.0)
        middle *= np.clip((26.0 + y) / 6.0, 0.0, 1.0) * np.clip((14.0 - y) / 6.0, 0.0, 1.0)
        floor = _base_height(y) * (1 - middle) - 10.0 * middle
        drop = drop_mm * (0.4 + 0.6 * np.clip((y + 40.0) / 20.0, 0.0, 1.0))
        return np.asarray((floor - drop - z) * np.float32(0.8), np.float32)

    return keep


def paint_body(canvas: Canvas, patient: Patient) -> Field:
    """Paints skin, fat and the muscles that fill the back of the neck and the trunk.

    Returns:
        Distance of each voxel from the skin, mm, negative inside (Z, Y, X).
    """
    whole = (slice(None), slice(None), slice(None))
    skin = measure(canvas, body(patient), whole)
    blend(canvas, whole, skin, 10.0)
    blend(canvas, whole, skin + np.float32(2.5), FAT - 5)
    x, y, z = np.abs(canvas.x), canvas.y, canvas.z
    inner = skin + np.float32(patient.fat_mm)
    (front,) = lookup(_SPINE[:, :2] + (0.0, 1.0))(z)
    back = np.maximum(inner, front - y + np.float32(0.4) * np.maximum(x - 12, 0))
    blend(canvas, whole, np.maximum(back, z + 28 + np.float32(0.3) * (y - 60)), MUSCLE)
    slope = z + 178 + np.float32(0.35) * np.maximum(60 - x, 0) + np.float32(0.3) * np.minimum(20 - y, 60)
    blend(canvas, whole, np.maximum(inner + 3, slope * np.float32(0.7)), MUSCLE - 4)
    return skin


def soft_tissue(patient: Patient) -> list[Part]:
    """Single muscles of neck and face, the fat between them, the tongue and the palate."""
    parts: list[Part] = []
    for half, depth in ((24, 20), (37, 29)):
        rows = [(z, _spine(z) + 19, half, depth) for z in (-200, -150, -100, -60, -42)]
        parts.append(Part(sheet(np.array(rows, np.float64), 1.5, -0.1), FAT / 2))
    for side in ("L", "R"):
        m = [
            _mirror(p, side)
            for p in ((60, 24, -30), (50, 4, -90), (36, -16, -140), (18, -32, -192))
        ]
        parts.append(Part(tube(m, (7, 8, 8, 6), (1.0, 1.5, 1.0)), MUSCLE + 6))
        parts.append(Part(ellipsoid(_mirror((57, -34, -52), side), (7, 15, 27), -8), MUSCLE + 4))
        parts.append(Part(ellipsoid(_mirror((35, -30, -48), side), (8, 13, 20), -8), MUSCLE))
        parts.append(Part(ellipsoid(_mirror((70, -25, 12), side), (5, 25, 25)), MUSCLE))
        parts.append(Part(ellipsoid(_mirror((24, 2, -50), side), (6, 7, 26)), FAT))
        parts.append(
            Part(tube([_mirror((8, _spine(z) - 11, z), side) for z in (-45, -90, -140, -200)],
                      (2.5, 3.5, 4, 4), (1.9, 1, 1)), MUSCLE)
        )  # fmt: skip
    tongue_z = -68 - patient.open_mm / 2
    parts.append(Part(ellipsoid((0, -60, tongue_z), (25, 31, 21)), MUSCLE + 5))
    parts.append(Part(ellipsoid((0, -46, -86), (19, 17, 14)), MUSCLE + 3))
    parts.append(Part(ellipsoid((0, -66, -88 - patient.open_mm / 2), (24, 24, 6)), MUSCLE))
    parts.append(Part(ellipsoid((0, -66, tongue_z + 22), (18, 24, 2.2)), -700.0))
    parts.append(Part(ellipsoid((0, -36, -48), (14, 14, 4), 25), MUSCLE))
    return parts


def skull(patient: Patient) -> list[Part]:
    """Vault and base of the skull, brain with its fluid spaces, orbits' walls, sinuses, face bones."""
    vault = ellipsoid((0, 4, 28), (72.5, 92, 78))
    cavity = cut(ellipsoid((0, 4, 28), (66.5, 85.5, 72)), _above(0.0))
    parts = [Part(cut(vault, _above(8.0)), 950.0)]
    for side in ("L", "R"):
        parts.append(Part(ellipsoid(_mirror((27, -62, 9), side), (19, 28, 19)), 650.0))
        parts.append(Part(ellipsoid(_mirror((29, -62, -21), side), (17, 20, 20)), 480.0))
    parts.append(Part(ellipsoid((0, -48, -16), (15, 38, 28)), 120.0))
    parts.append(Part(cavity, BRAIN))
    for side in ("L", "R"):
        parts.append(Part(tube([_mirror((18, 2, -8), side), _mirror((58, 18, -12), side)], (8, 12)), 900.0))
        parts.append(Part(ellipsoid(_mirror((60, 26, -22), side), (9, 10, 15)), 350.0))
        parts.append(Part(ellipsoid(_mirror((59, 25, -14), side), (5, 6, 8)), -450.0))
        parts.append(Part(tube([_mirror((50, 8, -9), side), _mirror((82, 10, -10), side)], (3, 3.5)), AIR))
        parts.append(Part(ellipsoid(_mirror((29, -62, -21), side), (14, 17, 16.5)), AIR))
        arch = [_mirror(p, side) for p in ((44, -78, -14), (60, -60, -15), (68, -30, -14), (63, -4, -13))]
        parts.append(Part(tube(arch, (5, 3.6, 3, 4)), 750.0))
        parts.append(Part(ellipsoid(_mirror((8, -50, -18), side), (4.5, 38, 19)), -850.0))
        parts.append(Part(ellipsoid(_mirror((16, 14, 42), side), (6, 30, 12)), FLUID))
        parts.append(Part(ellipsoid(_mirror((26, 46, -18), side), (26, 28, 21)), BRAIN + 4))
    parts += [
        Part(ellipsoid((0, -62, 6), (8, 22, 13)), -600.0),
        Part(ellipsoid((0, -30, 0), (14, 13, 10)), 700.0),
        Part(ellipsoid((0, -31, 0), (12, 11, 8)), AIR),
        Part(ellipsoid((0, -68, -41), (27, 29, 2.6)), 600.0),
        Part(ellipsoid((0, -86, 36), (20, 6, 11)), -900.0),
    ]
    teeth = [(t * 32, -90 + 42 * t * t, -52.0) for t in np.linspace(-1, 1, 9)]
    parts.append(Part(tube(teeth, [4.0] * 9, (1, 1, 1.7)), 1300.0))
    return parts


def brainstem(patient: Patient) -> list[Part]:
    """Brainstem in its cisterns."""
    stem = union(
        tube([(0, 4, 23), (0, 7, 8), (0, 12, -8), (0, 19, -22), (0, 23, -34)], (9.3, 10.0, 10.0, 8.2, 6.5), (1.32, 1, 1)),
        ellipsoid((0, 6, -2), (15.6, 12.1, 13.7), 12),
    )
    return [
        Part(grown(stem, 4.5), FLUID),
        Part(ellipsoid((0, 26, -6), (8, 5, 12)), FLUID),
        Part(stem, BRAIN, "Brainstem"),
    ]


def optics(patient: Patient) -> list[Part]:
    """Orbits with eyes, optic nerves, and the chiasm in its cistern above the sella."""
    k = patient.nerve
    parts = [
        Part(ellipsoid((0, -17, 20), (17, 13, 10)), FLUID - 4),
        Part(ellipsoid((0, -16, 6), (7, 6, 5)), 50.0),
    ]
    for side in ("L", "R"):
        parts.append(Part(ellipsoid(_mirror((27, -63, 9), side), (16.5, 27, 16.5)), FAT - 10))
        for dx, dz in ((12, 0), (-10, 0), (0, 12), (0, -11)):
            ends = (_mirror((31 + dx, -68, 10 + dz), side), _mirror((17 + dx / 4, -36, 12 + dz / 4), side))
            parts.append(Part(tube(ends, (2.2, 2.0)), MUSCLE))
        parts.append(Part(ellipsoid(_mirror((31, -77, 10), side), (12.5, 12.5, 12.5)), 60.0))
        parts.append(Part(ellipsoid(_mirror((31, -77, 10), side), (11, 11, 11)), 14.0))
        parts.append(Part(ellipsoid(_mirror((31, -87, 10), side), (4.5, 2.5, 4.5)), 95.0))
        path = [_mirror(p, side) for p in ((30, -65, 10), (25, -52, 9.5), (16, -37, 13), (7, -24, 18.5))]
        parts.append(Part(tube(path, [1.98 * k] * 4), 44.0, f"OpticNrv_{side}"))
    arms = [
        tube([_mirror((8, -25, 18.2), side), (0, -17, 19.5), _mirror((11, -8, 21.5), side)], [1.65 * k] * 3)
        for side in ("L", "R")
    ]  # fmt: skip
    middle = ellipsoid((0, -17, 19.5), (6.5 * k, 4.2 * k, 2.6 * k))
    parts.append(Part(union(middle, *arms), 48.0, "OpticChiasm"))
    return parts


def spine(patient: Patient) -> list[Part]:
    """Vertebrae with discs, arches and processes, canal and cord."""
    offset = np.array([0.0, 18.5, 0.0, 0.0])
    arch = _SPINE + offset
    arch[:, 2:] = (15.5, 12.5)
    canal = _SPINE + offset
    canal[:, 2:] = (11.5, 8.5)
    cord_rows = _SPINE + offset
    cord_rows[:, 2:] = (7.4, 5.4)
    parts = [Part(column(_SPINE, 2.3), 420.0)]
    for z in range(-55, -268, -18):
        y = _spine(z)
        parts.append(Part(ellipsoid((0, y, z + 9), (12, 9, 2.6)), 95.0))
        spread = 24 + (8 if z < -170 else 0)
        for sign in (1, -1):
            ends = [(sign * 9.0, y + 10.0, float(z)), (sign * spread, y + 12.0, z + 1.0)]
            parts.append(Part(tube(ends, (6, 4.5)), 520.0))
        parts.append(Part(tube([(0, y + 30, z), (0, y + 46, z - 6)], (4, 3.5)), 560.0))
    arches = cut(column(arch), lambda x, y, z: np.asarray(6.0 - np.abs((z + 55.0) % 18.0 - 9.0) - 0.5, np.float32))
    parts += [Part(arches, 560.0), Part(column(canal), FLUID + 6), Part(column(cord_rows), 38.0, "SpinalCord")]
    return parts


def neck(patient: Patient) -> list[Part]:
    """Vessels, thyroid, airway, pharyngeal constrictors, larynx, oesophagus, hyoid, lungs, shoulders."""
    lower, boost = patient.larynx_mm, patient.contrast_hu
    parts: list[Part] = []
    for side in ("L", "R"):
        artery = [_mirror(p, side) for p in ((26, -2, -45), (27, -10, -100), (25, -10, -140), (20, 4, -215))]
        vein = [_mirror(p, side) for p in ((31, 5, -45), (34, -3, -100), (33, -4, -140), (26, 2, -215))]
        parts += [Part(tube(vein, (4.5, 5.5, 6, 6.5)), 45.0 + 0.8 * boost), Part(tube(artery, [3.6] * 4), 45.0 + boost)]
        parts.append(Part(ellipsoid(_mirror((18, -17, -160 - lower), side), (7, 9, 20)), 95.0 + 0.5 * boost))
        parts += [
            Part(tube([_mirror(p, side) for p in ((15, -52, -212), (80, -38, -205), (150, 0, -207))], (6, 5.5, 6)), 600.0),
            Part(ellipsoid(_mirror((165, 30, -232), side), (24, 24, 26)), 420.0),
            Part(tube([_mirror(p, side) for p in ((130, 55, -225), (80, 92, -260))], (6, 5), (2.5, 1, 1.5)), 450.0),
            Part(ellipsoid(_mirror((46, 38, -262), side), (36, 42, 48)), -820.0),
        ]  # fmt: skip
    parts += _pharynx(patient)
    return parts


def _lowered(table: npt.NDArray[np.float64], by_mm: float) -> npt.NDArray[np.float64]:
    """Moves rows down by `by_mm` below z = -100, by nothing above z = -60."""
    moved = table.copy()
    moved[:, 0] -= by_mm * np.clip((-60.0 - table[:, 0]) / 40.0, 0.0, 1.0)
    return moved


def _between(table: npt.NDArray[np.float64], bottom: float, top: float) -> npt.NDArray[np.float64]:
    """The rows from `bottom` to `top`, end rows interpolated."""
    keep = table[(table[:, 0] > bottom) & (table[:, 0] < top)]
    ends = [[z, *(np.interp(z, table[:, 0], table[:, i]) for i in (1, 2, 3))] for z in (bottom, top)]
    return np.vstack([ends[0], keep, ends[1]])


def _pharynx(patient: Patient) -> list[Part]:
    lower, thick = patient.larynx_mm, patient.constrictor_mm
    wall, airway = _lowered(_WALL, lower), _lowered(_AIRWAY, lower)
    top, s_m, m_i, bottom = -40.0, -80.0 - lower / 2, -100.0 - lower, -145.0 - lower
    lining = wall.copy()
    larynx = union(
        tube([(0, -26, -108 - lower), (0, -25, -124 - lower), (0, -22, -138 - lower)], (11.2, 13.2, 11.5), (1.12, 1, 1)),
        ellipsoid((0, -26, -120 - lower), (16, 14.8, 15.5)),
    )
    parts = [
        Part(sheet(wall, thick + 3.0, 0.4), FAT),
        Part(column(lining), 38.0),
        Part(sheet(_between(wall, s_m, top), thick, 0.25), MUSCLE + 10, "Musc_Constrict_S"),
        Part(sheet(_between(wall, m_i, s_m), thick, 0.25), MUSCLE + 10, "Musc_Constrict_M"),
        Part(sheet(_between(wall, bottom, m_i), thick + 0.2, 0.1), MUSCLE + 10, "Musc_Constrict_I"),
        Part(larynx, 22.0, "Larynx"),
    ]
    for sign in (1.0, -1.0):
        plate = [(0, -41.0, -119.0 - lower), (sign * 13, -27, -120 - lower), (sign * 16, -17, -121 - lower)]
        parts.append(Part(tube(plate, (2.0, 2.2, 2.2), (1, 1, 4.5)), 190.0))
        horn = [(0, -50.0, -101 - lower), (sign * 14, -45, -100 - lower), (sign * 20, -26, -96 - lower)]
        parts.append(Part(tube(horn, (4, 3.2, 2.4)), 520.0))
    ring = _between(airway, -146.0 - lower, -134.0 - lower)
    ring[:, 2:] += 4.5
    wind = _between(airway, -269.0, -146.0 - lower)
    wind[:, 2:] += 2.5
    gullet = [
        (2.5 if z < -170 else 1.0, y, z)
        for y, z in ((-3, -147 - lower), (1, -160 - lower), (9, -187), (25, -222), (42, -268))
    ]
    parts += [
        Part(column(ring), 170.0),
        Part(column(wind), 75.0),
        Part(column(airway), AIR),
        Part(tube(gullet, (5.5, 6.2, 6.5, 6.8, 7), (1.3, 1, 1)), 34.0, "Esophagus"),
    ]
    return parts


def glands_and_jaw(patient: Patient) -> list[Part]:
    """Mandible with teeth, parotids behind it, submandibular glands below it in fat."""
    bone = mandible(patient)
    boost = patient.contrast_hu / 3
    parts: list[Part] = []
    for index, side in enumerate(("L", "R")):
        k, m = patient.gland[index], patient.gland[2 + index]
        gland = union(
            ellipsoid(_mirror((61, -11, -50), side), (8.4 * k, 20.4 * k, 24.3 * k), -10),
            ellipsoid(_mirror((55, 3, -49), side), (11.2 * k, 11.7 * k, 20.5 * k), -10),
        )
        parts.append(Part(without(gland, bone, 0.5), patient.parotid_hu + boost, f"Parotid_{side}"))
        place = _mirror((31, -38, -94 - patient.open_mm / 4), side)
        parts.append(Part(ellipsoid(place, (14 * m, 20 * m, 16.5 * m)), FAT - 5))
        gland = ellipsoid(place, (10 * m, 15 * m, 12.8 * m), -15)
        parts.append(Part(gland, patient.submandibular_hu + boost, f"Glnd_Submand_{side}"))
    parts.append(Part(bone, 820.0, "Bone_Mandible"))
    marrow = grown(bone, -3.4)
    parts.append(Part(marrow, 420.0))
    parts.append(Part(_lower_teeth(patient), 1350.0))
    return parts


def _arch(patient: Patient, t: float) -> Point:
    """A point on the mandible's body; t = 0 at the chin, 1 at the angle."""
    back, length = -24.0, 70.0 * patient.jaw
    width = 49.0 * np.sqrt(min(abs(t), 1.0)) ** 1.25 * np.sign(t)
    drop = patient.open_mm * (1 - abs(t))
    return float(width), back - length * (1 - abs(t) ** 1.35), -83.0 + 11.0 * abs(t) - drop


def mandible(patient: Patient) -> Shape:
    """The mandible without teeth: body, angles, rami, condyles, coronoid processes."""
    ts = [-1.0, -0.75, -0.5, -0.25, -0.08, 0.08, 0.25, 0.5, 0.75, 1.0]
    shapes = [tube([_arch(patient, t) for t in ts], [4.5, 5.1, 5.4, 5.6, 5.8, 5.8, 5.6, 5.4, 5.1, 4.5], (1, 1, 2.6))]
    for sign in (1.0, -1.0):
        angle = _arch(patient, sign)
        shapes += [
            tube([(sign * 49, angle[1] + 2, -72), (sign * 50, -21, -42)], (4.0, 3.4), (1, 3.6, 1.5)),
            tube([(sign * 50, -15, -42), (sign * 51, -9, -24)], (4.2, 5.2), (1.2, 1, 1)),
            tube([(sign * 49, -29, -42), (sign * 47, -33, -29)], (4.2, 2.8)),
        ]
    return union(*shapes)


def _lower_teeth(patient: Patient) -> Shape:
    points = []
    for t in np.linspace(-0.62, 0.62, 9):
        x, y, z = _arch(patient, float(t))
        points.append((x * 0.93, y + 1.5, z + 17.0))
    return tube(points, [3.8] * 9, (1, 1, 1.6))


def metal_places(patient: Patient) -> list[Point]:
    """Where the fillings are, in the patient's frame."""
    return [(m * 30.0, -90.0 + 40.0 * m * m, -58.0) for m in patient.metal]


def anatomy(patient: Patient) -> list[Part]:
    """Everything in the order in which it is painted; later parts cover earlier ones."""
    return [
        *soft_tissue(patient),
        *skull(patient),
        *brainstem(patient),
        *optics(patient),
        *spine(patient),
        *neck(patient),
        *glands_and_jaw(patient),
    ]
