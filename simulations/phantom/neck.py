"""Neck of the phantom: spine, vessels, airway, constrictors, larynx, oesophagus, shoulders."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulations.phantom.body import (
    AIR,
    FAT,
    FLUID,
    MUSCLE,
    SIDES,
    SPINE,
    Part,
    Patient,
    at,
    spine_y,
)
from simulations.phantom.shapes import column, cut, ellipsoid, sheet, tube, union

# Airway: z, y of the centre, half-width, half-depth.
_AIRWAY = np.array(
    [
        (-330, 42, 9.5, 8.5),
        (-270, 22, 9.5, 8.5), (-222, 4, 9.5, 8.5), (-187, -9, 9.5, 8.5), (-160, -17, 9.5, 9),
        (-145, -21, 8.5, 8.5), (-131, -25, 4.5, 9), (-116, -24, 11, 6), (-100, -24, 15, 6.5),
        (-80, -24, 13, 6.5), (-60, -25, 11, 6), (-45, -26, 10, 5.5), (-30, -28, 12, 8),
        (-18, -30, 8, 6),
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


def spine(patient: Patient) -> list[Part]:
    """Vertebrae with discs, arches and processes, canal and cord."""
    offset = np.array([0.0, 18.5, 0.0, 0.0])
    arch = SPINE + offset
    arch[:, 2:] = (15.5, 12.5)
    canal = SPINE + offset
    canal[:, 2:] = (11.5, 8.5)
    cord_rows = SPINE + offset
    cord_rows[:, 2:] = (7.4, 5.4)
    parts = [Part(column(SPINE, 2.3), 420.0)]
    for z in range(-55, -325, -18):
        y = spine_y(z)
        parts.append(Part(ellipsoid((0, y, z + 9), (12, 9, 2.6)), 95.0))
        spread = 24 + (8 if z < -170 else 0)
        for sign in (1, -1):
            ends = [(sign * 9.0, y + 10.0, float(z)), (sign * spread, y + 12.0, z + 1.0)]
            parts.append(Part(tube(ends, (6, 4.5)), 520.0))
        parts.append(Part(tube([(0, y + 30, z), (0, y + 46, z - 6)], (4, 3.5)), 560.0))
    arches = cut(
        column(arch),
        lambda x, y, z: np.asarray(6.0 - np.abs((z + 55.0) % 18.0 - 9.0) - 0.5, np.float32),
    )
    parts += [
        Part(arches, 560.0),
        Part(column(canal), FLUID + 6),
        Part(column(cord_rows), 38.0, "SpinalCord"),
    ]
    return parts


def neck(patient: Patient) -> list[Part]:
    """Vessels, thyroid, shoulders, lungs, and the pharynx with what follows it."""
    lower, boost = patient.larynx_mm, patient.contrast_hu
    parts: list[Part] = []
    for _, sign in SIDES:
        clavicle = at(sign, (15, -52, -212), (80, -38, -205), (150, 0, -207))
        scapula = at(sign, (130, 55, -225), (80, 92, -260))
        artery = at(sign, (26, -2, -45), (27, -10, -100), (25, -10, -140), (20, 4, -215))
        vein = at(sign, (31, 5, -45), (34, -3, -100), (33, -4, -140), (26, 2, -215))
        parts += [
            Part(tube(vein, (4.5, 5.5, 6, 6.5)), 45.0 + 0.8 * boost),
            Part(tube(artery, [3.6] * 4), 45.0 + boost),
        ]
        parts.append(
            Part(ellipsoid((sign * 18, -17, -160 - lower), (7, 9, 20)), 95.0 + 0.5 * boost)
        )
        parts += [
            Part(tube(clavicle, (6, 5.5, 6)), 600.0),
            Part(ellipsoid((sign * 165, 30, -232), (24, 24, 26)), 420.0),
            Part(tube(scapula, (6, 5), (2.5, 1, 1.5)), 450.0),
            Part(ellipsoid((sign * 46, 38, -262), (36, 42, 48)), -820.0),
        ]
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
    ends = [
        [z, *(np.interp(z, table[:, 0], table[:, i]) for i in (1, 2, 3))] for z in (bottom, top)
    ]
    return np.vstack([ends[0], keep, ends[1]])


def _pharynx(patient: Patient) -> list[Part]:
    lower, thick = patient.larynx_mm, patient.constrictor_mm
    wall, airway = _lowered(_WALL, lower), _lowered(_AIRWAY, lower)
    top, s_m, m_i, bottom = -40.0, -80.0 - lower / 2, -100.0 - lower, -145.0 - lower
    lining = wall.copy()
    larynx = union(
        tube(
            [(0, -26, -108 - lower), (0, -25, -124 - lower), (0, -22, -138 - lower)],
            (11.2, 13.2, 11.5),
            (1.12, 1, 1),
        ),
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
        plate = [
            (0, -41.0, -119.0 - lower),
            (sign * 13, -27, -120 - lower),
            (sign * 16, -17, -121 - lower),
        ]
        parts.append(Part(tube(plate, (2.0, 2.2, 2.2), (1, 1, 4.5)), 190.0))
        horn = [
            (0, -50.0, -101 - lower),
            (sign * 14, -45, -100 - lower),
            (sign * 20, -26, -96 - lower),
        ]
        parts.append(Part(tube(horn, (4, 3.2, 2.4)), 520.0))
    ring = _between(airway, -146.0 - lower, -134.0 - lower)
    ring[:, 2:] += 4.5
    wind = _between(airway, -329.0, -146.0 - lower)
    wind[:, 2:] += 2.5
    gullet = [
        (2.5 if z < -170 else 1.0, y, z)
        for y, z in (
            (-3, -147 - lower),
            (1, -160 - lower),
            (9, -187),
            (25, -222),
            (42, -268),
            (62, -328),
        )
    ]
    parts += [
        Part(column(ring), 170.0),
        Part(column(wind), 75.0),
        Part(column(airway), AIR),
        Part(tube(gullet, (5.5, 6.2, 6.5, 6.8, 7, 7), (1.3, 1, 1)), 34.0, "Esophagus"),
    ]
    return parts
