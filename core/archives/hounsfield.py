"""Are the values of a CT Hounsfield units? Told from the voxels alone, by air and soft tissue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import CaseError

AIRLESS_HU, TISSUE_HU, LARGEST_HU = 0.0, -100.0, 65535.0
SMALLEST_RANGE = 50.0
# What a lost or doubled rescale intercept moves the values by.
OFFSETS = (1024.0, 1000.0, -1024.0, -1000.0)
AIR, TISSUE = (-1150.0, -900.0), (-130.0, 120.0)
# A moved scale must explain the voxels this many times better than the scale as it stands.
CLEARLY = 4.0
INVERTED_BY = 300.0
# Metal and dense bone exceed this in every scan of a head; what ends below was cut by a window.
BONE_HU = 1000.0
SHARE_AT_TOP = 5e-4
SAMPLES = 2_000_000


def refuse(image: npt.NDArray[Any], path: Path) -> None:
    """Requires values that can be HU.

    Args:
        image: (Z, Y, X) as read.
        path: its file, for the message.

    Raises:
        CaseError: ``E_HU_OFFSET`` (moved by 1000 or 1024), ``E_HU_INVERTED`` (air is bright),
            ``E_IMAGE_HU`` (no air, no tissue, or no range that a CT has).
    """
    sample = thinned(image)
    low, high = float(image.min()), float(image.max())
    remedy = "export the CT in HU (rescale slope and intercept applied)"
    if _inverted(sample):
        code, problem = "E_HU_INVERTED", "air at the border is brighter than the body inside"
        remedy = "export the CT in HU, not inverted (a MONOCHROME1 picture is no CT)"
    elif offset := _offset(sample):
        way = "high" if offset > 0 else "low"
        code, problem = "E_HU_OFFSET", f"all values lie {abs(offset):.0f} too {way}"
        remedy = "apply the rescale intercept once: air is near -1000, soft tissue near 0"
    elif low >= AIRLESS_HU or high <= TISSUE_HU or max(-low, high) > LARGEST_HU:
        code = "E_IMAGE_HU"
        problem = f"values from {low:g} to {high:g}; a CT has air near -1000 and tissue above -100"
    elif high - low < SMALLEST_RANGE:
        code, problem = "E_IMAGE_HU", f"values from {low:g} to {high:g}: no picture"
    else:
        return
    raise CaseError(code, "image", path, remedy, problem=problem)


def clipped(image: npt.NDArray[Any]) -> float | None:
    """Returns the value at which a window cut off the bone, or None where nothing was cut."""
    high = float(image.max())
    at_top = float((thinned(image) == high).mean())
    return high if high < BONE_HU and at_top > SHARE_AT_TOP else None


def thinned(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every n-th voxel along each axis: at most about `SAMPLES` of them."""
    step = max(1, int(np.ceil((image.size / SAMPLES) ** (1 / 3))))
    return image[::step, ::step, ::step]


def _offset(image: npt.NDArray[Any]) -> float:
    """The offset under which the voxels hold both air and soft tissue clearly better; else 0."""

    def fits(offset: float) -> float:
        shares = [
            float(((image >= low + offset) & (image <= high + offset)).mean())
            for low, high in (AIR, TISSUE)
        ]
        return min(shares)

    best = max(OFFSETS, key=fits)
    found = fits(best)
    return best if found > 0.01 and found > CLEARLY * fits(0.0) else 0.0


def _inverted(image: npt.NDArray[Any]) -> bool:
    """Whether the frame of the slices is brighter than their middle."""
    _, rows, columns = image.shape
    y, x = max(1, rows // 16), max(1, columns // 16)
    border = np.concatenate(
        [part.ravel() for part in (image[:, :y], image[:, -y:], image[:, :, :x], image[:, :, -x:])]
    )
    middle = image[:, rows * 3 // 8 : rows * 5 // 8 + 1, columns * 3 // 8 : columns * 5 // 8 + 1]
    return float(np.median(border)) - float(np.median(middle)) > INVERTED_BY
