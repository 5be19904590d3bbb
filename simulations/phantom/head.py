"""Head of the phantom: skull, brain, orbits, optic nerves, chiasm, jaw, salivary glands."""

from __future__ import annotations

import numpy as np

from simulations.phantom.body import AIR, BRAIN, FAT, FLUID, MUSCLE, SIDES, Part, Patient, at
from simulations.phantom.shapes import (
    Distance,
    Field,
    Point,
    Shape,
    cut,
    ellipsoid,
    grown,
    lookup,
    tube,
    union,
    without,
)


def _base_height(y: Field) -> Field:
    """Height of the floor of the skull's cavity over the middle, z in mm for each y."""
    ys = [-90.0, -34.0, -22.0, -8.0, -3.0, 6.0, 22.0, 70.0]
    height = [27.0, 19.0, 10.0, 13.0, -3.0, -30.0, -40.0, -42.0]
    return lookup(np.column_stack([ys, height]))(y)[0]


def _above(drop_mm: float) -> Distance:
    def keep(x: Field, y: Field, z: Field) -> Field:
        middle = np.clip((np.abs(x) - 16.0) / 8.0, 0.0, 1.0)
        middle *= np.clip((26.0 + y) / 6.0, 0.0, 1.0) * np.clip((14.0 - y) / 6.0, 0.0, 1.0)
        floor = _base_height(y) * (1 - middle) - 10.0 * middle
        drop = drop_mm * (0.4 + 0.6 * np.clip((y + 40.0) / 20.0, 0.0, 1.0))
        return np.asarray((floor - drop - z) * np.float32(0.8), np.float32)

    return keep


def skull(patient: Patient) -> list[Part]:
    """Vault and base of the skull, brain, orbits' walls, sinuses, bones of the face."""
    vault = ellipsoid((0, 4, 28), (72.5, 92, 78))
    cavity = cut(ellipsoid((0, 4, 28), (66.5, 85.5, 72)), _above(0.0))
    parts = [Part(cut(vault, _above(8.0)), 950.0)]
    for _, sign in SIDES:
        parts.append(Part(ellipsoid((sign * 27, -62, 9), (19, 28, 19)), 650.0))
        parts.append(Part(ellipsoid((sign * 29, -62, -21), (17, 20, 20)), 480.0))
    parts.append(Part(ellipsoid((0, -48, -16), (15, 38, 28)), 120.0))
    parts.append(Part(cavity, BRAIN))
    for _, sign in SIDES:
        parts.append(Part(tube([(sign * 18, 2, -8), (sign * 58, 18, -12)], (8, 12)), 900.0))
        parts.append(Part(ellipsoid((sign * 60, 26, -22), (9, 10, 15)), 350.0))
        parts.append(Part(ellipsoid((sign * 59, 25, -14), (5, 6, 8)), -450.0))
        parts.append(Part(tube([(sign * 50, 8, -9), (sign * 82, 10, -10)], (3, 3.5)), AIR))
        parts.append(Part(ellipsoid((sign * 29, -62, -21), (14, 17, 16.5)), AIR))
        arch = at(sign, (44, -78, -14), (60, -60, -15), (68, -30, -14), (63, -4, -13))
        parts.append(Part(tube(arch, (5, 3.6, 3, 4)), 750.0))
        parts.append(Part(ellipsoid((sign * 8, -50, -18), (4.5, 38, 19)), -850.0))
        parts.append(Part(ellipsoid((sign * 16, 14, 42), (6, 30, 12)), FLUID))
        parts.append(Part(ellipsoid((sign * 26, 46, -18), (26, 28, 21)), BRAIN + 4))
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
        tube(
            [(0, 4, 23), (0, 7, 8), (0, 12, -8), (0, 19, -22), (0, 23, -34)],
            (9.3, 10.0, 10.0, 8.2, 6.5),
            (1.32, 1, 1),
        ),
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
    for side, sign in SIDES:
        parts.append(Part(ellipsoid((sign * 27, -63, 9), (16.5, 27, 16.5)), FAT - 10))
        for dx, dz in ((12, 0), (-10, 0), (0, 12), (0, -11)):
            ends = (
                (sign * (31 + dx), -68, 10 + dz),
                (sign * (17 + dx / 4), -36, 12 + dz / 4),
            )
            parts.append(Part(tube(ends, (2.2, 2.0)), MUSCLE))
        parts.append(Part(ellipsoid((sign * 31, -77, 10), (12.5, 12.5, 12.5)), 60.0))
        parts.append(Part(ellipsoid((sign * 31, -77, 10), (11, 11, 11)), 14.0))
        parts.append(Part(ellipsoid((sign * 31, -87, 10), (4.5, 2.5, 4.5)), 95.0))
        path = at(sign, (30, -65, 10), (25, -52, 9.5), (16, -37, 13), (7, -24, 18.5))
        parts.append(Part(tube(path, [1.98 * k] * 4), 44.0, f"OpticNrv_{side}"))
    arms = [
        tube([(sign * 8, -25, 18.2), (0, -17, 19.5), (sign * 11, -8, 21.5)], [1.65 * k] * 3)
        for _, sign in SIDES
    ]
    middle = ellipsoid((0, -17, 19.5), (6.5 * k, 4.2 * k, 2.6 * k))
    parts.append(Part(union(middle, *arms), 48.0, "OpticChiasm"))
    return parts


def glands_and_jaw(patient: Patient) -> list[Part]:
    """Mandible with teeth, parotids behind it, submandibular glands below it in fat."""
    bone = mandible(patient)
    boost = patient.contrast_hu / 3
    parts: list[Part] = []
    for index, (side, sign) in enumerate(SIDES):
        k, m = patient.gland[index], patient.gland[2 + index]
        gland = union(
            ellipsoid((sign * 61, -11, -50), (8.4 * k, 20.4 * k, 24.3 * k), -10),
            ellipsoid((sign * 55, 3, -49), (11.2 * k, 11.7 * k, 20.5 * k), -10),
        )
        parts.append(Part(without(gland, bone, 0.5), patient.parotid_hu + boost, f"Parotid_{side}"))
        place = (sign * 31, -38, -94 - patient.open_mm / 4)
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
    return float(width), back - length * (1 - abs(t) ** 1.35), -80.0 + 13.0 * abs(t) - drop


def mandible(patient: Patient) -> Shape:
    """The mandible without teeth: body, angles, rami, condyles, coronoid processes."""
    ts = [-1.0, -0.75, -0.5, -0.25, -0.08, 0.08, 0.25, 0.5, 0.75, 1.0]
    shapes = [
        tube(
            [_arch(patient, t) for t in ts],
            [4.5, 4.9, 5.1, 5.3, 5.5, 5.5, 5.3, 5.1, 4.9, 4.5],
            (1, 1, 2.6),
        )
    ]
    for sign in (1.0, -1.0):
        angle = _arch(patient, sign)
        shapes += [
            tube(
                [(sign * 49, angle[1] + 1, -68), (sign * 50, -21, -41)], (4.4, 3.9), (1, 3.7, 1.5)
            ),
            tube([(sign * 50, -15, -42), (sign * 51, -9, -23)], (4.6, 5.8), (1.2, 1, 1)),
            tube([(sign * 49, -29, -42), (sign * 47, -33, -27)], (4.8, 3.4)),
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
