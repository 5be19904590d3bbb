"""Where the head is in a CT, found from the image alone: no labels, no learning.

The anchor of the crop is simple, so that a reader can predict it:

* Top: 8 mm above the level at which the cross-section of the skull cap, from the vertex downwards,
  has grown to 85 % of the head's largest; some 4 to 5 cm above the brainstem. Where the CT starts
  too low for that, the first slice of the body.
* Centre in the plane: the median over the head's slices of the body's centroid, moved 36 mm to
  anterior, since the organs lie between the brainstem and the chin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.errors import CaseError

BODY_HU = -300.0
COARSE_MM = 4.0
CAP_FRACTION = 0.85
MARGIN_MM = 8.0
# No skull cap is higher than this above the level of CAP_FRACTION.
CAP_MM = 80.0
# From slice to slice a cap may shrink by this much: noise.
SHRINK = 0.97
# What is wider is shoulders (heads reach about 190 mm, a mask or headrest included).
HEAD_WIDTH_MM = 220.0
# Length of the head below the top of the body, for its largest cross-section and its centre.
HEAD_MM = 120.0
ANTERIOR_MM = 36.0

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Roi:
    """Anchor of the crop, in mm from the centre of voxel (0, 0, 0) of the image searched.

    Attributes:
        top_mm: level of the crop's top slice along z (superior is positive).
        centre_y_mm: centre of the crop along y (posterior is positive).
        centre_x_mm: centre of the crop along x (left is positive).
    """

    top_mm: float
    centre_y_mm: float
    centre_x_mm: float


def find_roi(image: npt.NDArray[Any], spacing_mm: tuple[float, float, float]) -> Roi:
    """Finds the head in a CT from its image alone.

    Args:
        image: (Z, Y, X) in HU; z grows to superior, y to posterior, x to the left.
        spacing_mm: voxel size (z, y, x).

    Returns:
        Top and centre of the crop.

    Raises:
        CaseError: ``E_NO_BODY``, nothing in the image is denser than air.
    """
    steps = [max(1, round(COARSE_MM / s)) for s in spacing_mm]
    coarse = image[:: steps[0], :: steps[1], :: steps[2]]
    step_mm = [s * n for s, n in zip(spacing_mm, steps, strict=True)]
    body = body_mask(coarse)
    levels = np.flatnonzero(body.any(axis=(1, 2)))
    if levels.size == 0:
        remedy = "export the CT in HU"
        problem = "no body found in the CT"
        raise CaseError("E_NO_BODY", "image", f"maximum {image.max()}", remedy, problem=problem)
    top = int(levels[-1])
    # From the top slice downwards.
    slab = body[: top + 1][::-1][: max(1, round(HEAD_MM / step_mm[0]))]
    head = head_slices(slab, step_mm[2])
    head = head if head.any() else np.asarray(slab.any(axis=(1, 2)))
    centres = np.array([ndimage.center_of_mass(level) for level in slab[head]])
    y, x = np.median(centres, axis=0)
    highest = (top + 1) * step_mm[0]
    level = top * step_mm[0] - _cap_mm(slab, head, step_mm[0])
    return Roi(
        top_mm=float(min(highest, level + MARGIN_MM)),
        centre_y_mm=float(y * step_mm[1] - ANTERIOR_MM),
        centre_x_mm=float(x * step_mm[2]),
    )


def body_mask(image: npt.NDArray[Any]) -> Mask:
    """Returns the largest connected piece above -300 HU after an opening, (Z, Y, X).

    The opening parts the body from couch, mask frames and other thin things that touch it.
    """
    mask = np.asarray(image > BODY_HU)
    opened = np.asarray(ndimage.binary_opening(mask))
    mask = opened if opened.any() else mask
    labels, pieces = ndimage.label(mask)
    if pieces <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def head_slices(slab: Mask, step_x_mm: float) -> Mask:
    """Returns which slices of a body mask (Z, Y, X) are no wider than a head."""
    width = np.array(
        [np.ptp(np.flatnonzero(level.any(axis=0))) if level.any() else 0 for level in slab]
    )
    filled = np.asarray(slab.any(axis=(1, 2)))
    return np.asarray(filled & (width * step_x_mm <= HEAD_WIDTH_MM))


def _cap_mm(slab: Mask, head: Mask, step_z_mm: float) -> float:
    """Returns the height of the skull cap in mm, or 0 where the CT starts below it.

    Below it, the cross-section shrinks from some slice to the next, or shoulders are near.
    """
    area = slab.sum(axis=(1, 2))
    count = int(np.argmax(area >= CAP_FRACTION * area[head].max()))
    cap = area[: count + 1]
    is_cap = head.all() and (cap[1:] >= SHRINK * cap[:-1]).all()
    return count * step_z_mm if is_cap and count * step_z_mm <= CAP_MM else 0.0
