"""How the patient lies in a CT, and how large it makes the head: from the image alone.

A file may claim another orientation or spacing than its voxels have: an affine that was replaced
by the identity, an axis whose sign was lost. Three things tell, on a 4 mm grid along the patient's
axes as the file claims them:

* the air inside head and neck (sinuses, mouth, pharynx, trachea) lies towards the face;
* the cavity that bone encloses, the skull's, lies above the middle of the scan, shoulders below;
* no scan of head and neck has a largest cross-section of less than 90 mm across.

What an image does not show (no air, no skull, no shoulders) is not judged. Measured on 117 CTs of
OpenKBP, none of which is doubted: the air lies 0.12 to 0.63 of the half depth in front of the
middle and at most 0.10 beside it, the cavity 11 to 149 mm above it. Left and right of a mirrored
image cannot be told from a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.archives.roi import COARSE_MM, HEAD_WIDTH_MM

BONE_HU, TEETH_HU, AIR_HU = 180.0, 450.0, -400.0
CAVITY_MM2, LEAST_AIR_VOXELS, LEAST_TEETH_VOXELS = 2500.0, 10, 30
LEAST_DIAMETER_MM = 90.0
LEAST_FORWARD, TEETH_TURNED = 0.05, 0.2
UPSIDE_DOWN_MM, NARROWER_MM = -5.0, -60.0

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Posture:
    """What an image shows of the patient; None for what it does not show.

    Attributes:
        diameter_mm: of a circle as large as the body's largest cross-section.
        skull_mm: how far the cavity of the skull lies above the middle of the scan.
        broader_mm: how much wider the body's lowest third is than its uppermost.
        face: where the air inside head and neck lies from the middle, in parts of the half depth
            (y, to posterior) and half width (x, to the left).
        teeth: the same of dense bone below the skull, along y; used where there is no air.
    """

    diameter_mm: float
    skull_mm: float | None
    broader_mm: float
    face: tuple[float, float] | None
    teeth: float | None


def posture_of(image: npt.NDArray[np.floating], body: Mask) -> Posture | None:
    """Measures an image (Z, Y, X) in HU on the grid of `core.archives.preprocess.coarse_lps`.

    Args:
        image: the CT.
        body: of it, from `core.archives.roi.body_mask`.

    Returns:
        None where there is no body.
    """
    levels = np.flatnonzero(body.any(axis=(1, 2)))
    if levels.size == 0:
        return None
    image, body = image[levels], body[levels]
    solid = np.array([ndimage.binary_fill_holes(level) for level in body])
    area = solid.sum(axis=(1, 2)) * COARSE_MM**2
    width = np.array([_extent(level, axis=0) for level in solid])
    cavity = np.array([_cavity_mm2(one, inside) for one, inside in zip(image, body, strict=True)])
    skull = np.flatnonzero(cavity > CAVITY_MM2)
    height = np.arange(len(levels)) * COARSE_MM
    third = max(1, len(levels) // 3)
    above = None
    if skull.size:
        centre = float((cavity * height).sum() / cavity.sum())
        above = centre - float(height.mean())
    neck = np.ones(len(levels), dtype=np.bool_)
    neck[skull] = False
    neck &= width <= HEAD_WIDTH_MM + 10.0
    jaw = neck & (np.arange(len(levels)) < (skull.min() if skull.size else len(levels)))
    air = [(im < AIR_HU) & ndimage.binary_erosion(s, iterations=2)
           for im, s in zip(image, solid, strict=True)]  # fmt: skip
    dense = [(im > TEETH_HU) & s for im, s in zip(image, solid, strict=True)]
    face = _from_middle(air, solid, neck, LEAST_AIR_VOXELS)
    teeth = _from_middle(dense, solid, jaw, LEAST_TEETH_VOXELS)
    return Posture(
        diameter_mm=2.0 * math.sqrt(float(area.max()) / math.pi),
        skull_mm=above,
        broader_mm=float(np.median(width[:third]) - np.median(width[-third:])),
        face=face,
        teeth=teeth[0] if teeth is not None and face is None else None,
    )


def doubts_of(posture: Posture) -> list[str]:
    """What is wrong with how the patient lies or how large it is, in words; [] where nothing is."""
    found = []
    if posture.diameter_mm < LEAST_DIAMETER_MM:
        found.append(
            f"the body is at most {posture.diameter_mm:.0f} mm across, a head and neck at least "
            f"{LEAST_DIAMETER_MM:.0f} mm: the voxels' size is wrong"
        )
    upside_down = posture.broader_mm < NARROWER_MM
    if posture.skull_mm is not None:
        upside_down = posture.skull_mm < UPSIDE_DOWN_MM
    if upside_down:
        found.append("the head is at the lower end: the image is upside down")
    if posture.face is not None:
        y, x = posture.face
        if y > -LEAST_FORWARD and abs(x) > max(abs(y), LEAST_FORWARD / 2):
            side = "left" if x > 0 else "right"
            found.append(f"the face points to the {side}: the image is turned, or axes exchanged")
        elif y > -LEAST_FORWARD:
            found.append(_BACKWARDS)
    elif posture.teeth is not None and posture.teeth > TEETH_TURNED:
        found.append(_BACKWARDS)
    return found


_BACKWARDS = "the face points backwards: the image is turned, or mirrored front to back"


def _extent(level: Mask, axis: int) -> float:
    filled = np.flatnonzero(level.any(axis=axis))
    return float(np.ptp(filled) + 1) * COARSE_MM if filled.size else 0.0


def _cavity_mm2(level: npt.NDArray[np.floating], body: Mask) -> float:
    """The largest area of a slice that bone encloses, gaps of a voxel closed."""
    bone = ndimage.binary_dilation((level > BONE_HU) & body)
    enclosed = np.asarray(ndimage.binary_fill_holes(bone)) & ~bone
    labels, pieces = ndimage.label(enclosed)
    return float(np.bincount(labels.ravel())[1:].max()) * COARSE_MM**2 if pieces else 0.0


def _from_middle(
    masks: list[Mask], solid: Mask, chosen: Mask, least: int
) -> tuple[float, float] | None:
    """Mean place (y, x) of voxels from the middle of the body in their slice, in half extents."""
    places: list[Floats] = []
    for k in np.flatnonzero(chosen):
        index = np.argwhere(masks[k])
        if len(index):
            box = np.argwhere(solid[k])
            low, high = box.min(axis=0), box.max(axis=0)
            places.append((index - (low + high) / 2.0) / (high - low + 1) * 2.0)
    if sum(map(len, places)) < least:
        return None
    y, x = np.concatenate(places).mean(axis=0)
    return float(y), float(x)
