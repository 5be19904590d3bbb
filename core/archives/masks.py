"""Masks of a case on the grid of its crop, one bit an organ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from core.data.geometry import Geometry
from core.data.grid import bounding_box, covering_box, grow, part_of
from core.data.preprocess import HALF
from core.data.resample import resample
from core.errors import UserError
from core.plan.validate import MAX_ORGANS


def prepare_masks(
    masks: Mapping[str, npt.NDArray[np.bool_]],
    geometry: Geometry,
    crop_geometry: Geometry,
    organs: Sequence[str],
) -> npt.NDArray[np.uint32]:
    """Resamples masks onto the crop, linearly, inside where the value is at least one half.

    Args:
        masks: organ -> (Z, Y, X) on the CT's grid; may overlap. Others than `organs` are left out.
        geometry: grid of the masks.
        crop_geometry: grid of the crop, from `prepare_image`.
        organs: order of the bits.

    Returns:
        (Z, Y, X) of the crop; bit i is set inside `organs[i]`.
    """
    if len(organs) > MAX_ORGANS:
        raise UserError(
            "organs", len(organs), f"use at most {MAX_ORGANS} organs in all phases of one plan"
        )
    bits = np.zeros(crop_geometry.size, dtype=np.uint32)
    for index, organ in enumerate(organs):
        if organ not in masks:
            continue
        source_box = bounding_box(masks[organ])
        if source_box is None:
            continue
        padded = grow(source_box, 1, geometry.size)
        part_geometry = part_of(geometry, padded)
        crop_box = covering_box(crop_geometry, part_geometry, margin=[1, 1, 1])
        if crop_box is None:
            continue
        part = resample(
            masks[organ][padded].astype(np.float32),
            part_geometry,
            part_of(crop_geometry, crop_box),
            outside=0.0,
        )
        bits[crop_box] |= (part >= HALF).astype(np.uint32) << np.uint32(index)
    return bits
