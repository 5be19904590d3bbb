"""Masks of a case on the grid of its crop: of each voxel the share that an organ has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.data.geometry import Geometry
from core.data.grid import Box, Floats, bounding_box, covering_box, grow, index_transform, part_of
from core.data.resample import anti_alias_sigma, resample
from core.errors import UserError
from core.plan.validate import MAX_ORGANS

WHOLE = 255  # an organ's share of a voxel that is all its own
FITS = 2  # corrections by what the way back to the CT's grid misses
HALVINGS = 8  # of the interval in which the volume's correction is sought
EXACT = 0.002  # of a volume
INSIDE = 0.5 + 1e-6  # interpolated shares above it are the organ's, a tie is background's
Shares = tuple[Box, npt.NDArray[np.uint8]]


def prepare_masks(
    masks: Mapping[str, npt.NDArray[np.bool_]],
    geometry: Geometry,
    crop_geometry: Geometry,
    organs: Sequence[str],
) -> dict[str, Shares]:
    """Brings masks onto the crop as shares of voxels that give the masks back.

    The way back is that of `core.data.resample.restore`: linear interpolation on the CT's grid,
    and the organ is where its share is above one half. Linear interpolation onto the crop alone
    loses volume on that way, at every curved border; so what the way back misses is added, twice,
    and then as much at the border as the volume asks for.

    Args:
        masks: organ -> (Z, Y, X) on the CT's grid; may overlap. Others than `organs` are left out.
        geometry: grid of the masks.
        crop_geometry: grid of the crop, from `prepare_image`.
        organs: of the plan.

    Returns:
        organ -> a box of the crop and the shares in it, in 255ths; without organs that have less
        than half a voxel in the crop. Shares of organs that overlap may exceed a whole together.
    """
    if len(organs) > MAX_ORGANS:
        raise UserError(
            "organs", len(organs), f"use at most {MAX_ORGANS} organs in all phases of one plan"
        )
    found = {}
    for organ in organs:
        shares = _shares(masks[organ], geometry, crop_geometry) if organ in masks else None
        if shares is not None and voxels_of(shares):
            found[organ] = shares
    return found


def voxels_of(shares: Shares) -> int:
    """The volume of an organ in voxels of the crop."""
    return round(int(shares[1].sum(dtype=np.int64)) / WHOLE)


@dataclass(frozen=True)
class _Way:
    """Between a part of the CT's grid and a part of the crop's, both round one organ."""

    source: Geometry
    crop: Geometry
    sigma: Floats

    def there(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Onto the crop, as the image goes."""
        for axis in np.flatnonzero(self.sigma):
            values = ndimage.gaussian_filter1d(
                values, self.sigma[axis], axis=int(axis), mode="nearest"
            )
        return resample(values, self.source, self.crop, outside=0.0)

    def back(self, shares: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Onto the CT's grid; -1 outside of the crop."""
        return resample(shares, self.crop, self.source, outside=-1.0)


def _shares(mask: npt.NDArray[np.bool_], geometry: Geometry, crop: Geometry) -> Shares | None:
    """Of one organ; None where it lies outside of the crop."""
    organ_box = bounding_box(mask)
    if organ_box is None:
        return None
    box = covering_box(crop, part_of(geometry, grow(organ_box, 1, geometry.size)), [1, 1, 1])
    if box is None:
        return None
    sigma = anti_alias_sigma(geometry, crop)
    margin = [int(np.ceil(4 * s)) + 1 for s in sigma]
    source_box = covering_box(geometry, part_of(crop, box), margin)
    if source_box is None:
        return None
    way = _Way(part_of(geometry, source_box), part_of(crop, box), sigma)
    wanted = mask[source_box].astype(np.float32)
    shares = way.there(wanted)
    for _ in range(FITS):
        back = way.back(shares)
        missed = np.where(back < 0, 0, wanted - back).astype(np.float32)
        shares = np.clip(shares + way.there(missed), 0, 1)
    shares = _of_volume(shares, wanted, way)
    return box, np.rint(shares * WHOLE).astype(np.uint8)


def _of_volume(
    shares: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32], way: _Way
) -> npt.NDArray[np.float32]:
    """Moves shares between 0 and 1 alike, until the way back gives the volume that is wanted."""
    inside = way.back(shares) >= 0
    volume = int(np.count_nonzero(wanted[inside]))
    low, high, best, off = -1.0, 1.0, shares, np.inf
    move = 0.0
    for _ in range(HALVINGS):
        moved = shares + np.float32(move) * shares * (1 - shares)
        more = int(np.count_nonzero(way.back(moved)[inside] > INSIDE)) - volume
        if abs(more) < off:
            best, off = moved, abs(more)
        if abs(more) <= EXACT * volume:
            break
        low, high = (low, move) if more > 0 else (move, high)
        move = (low + high) / 2
    return best


def inside_fraction(mask: npt.NDArray[np.bool_], geometry: Geometry, crop: Geometry) -> float:
    """Returns the fraction of a mask's voxels whose centres lie inside the crop."""
    box = bounding_box(mask)
    if box is None:
        return 1.0
    points = np.argwhere(mask[box]) + [part.start for part in box]
    matrix, start = index_transform(geometry, crop)
    index = points @ matrix.T + start
    size = np.asarray(crop.size)
    inside = ((index >= -0.5) & (index <= size - 0.5)).all(axis=1)
    return float(inside.mean())
