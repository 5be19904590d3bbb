"""From a CT's own grid to the network's crop in one linear resampling.

The crop is aligned with the patient (LPS: x to the left, y to posterior, z to superior), whatever
the CT's own orientation. Its outer corner is a corner of a voxel of the CT: at equal spacing
nothing is interpolated, and at twice the spacing each voxel is the mean of eight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.archives.roi import COARSE_MM, find_roi
from core.data.geometry import Geometry
from core.data.grid import (
    Floats,
    affine,
    covering_box,
    outer_corners,
    part_of,
    snap,
)
from core.data.resample import anti_alias_sigma, resample
from core.plan.schema import Preprocess

AIR_HU = -1024.0
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def prepare_image(
    image: npt.NDArray[Any], geometry: Geometry, settings: Preprocess
) -> tuple[npt.NDArray[np.int16], Geometry]:
    """Finds the crop in a CT and resamples the CT onto it, once and linearly.

    Args:
        image: (Z, Y, X), HU, on the CT's own grid, in any orientation.
        geometry: grid of `image`.
        settings: spacing, size of the crop and window.

    Returns:
        The crop (Z, Y, X) in HU clipped to the window (outside the CT: the window's lower end),
        and its geometry.
    """
    crop = place_crop(image, geometry, settings)
    return resample_image(image, geometry, crop, settings), crop


def place_crop(image: npt.NDArray[Any], geometry: Geometry, settings: Preprocess) -> Geometry:
    """Returns the grid of the crop, found from the image alone (see `core.archives.roi`)."""
    coarse, origin_xyz = coarse_lps(image, geometry)
    roi = find_roi(coarse, (COARSE_MM,) * 3)
    spacing = np.asarray(settings.spacing_mm, dtype=float)[::-1]
    extent = np.asarray(settings.crop)[::-1] * spacing
    anchor = np.array([roi.centre_x_mm, roi.centre_y_mm, roi.top_mm + spacing[2] / 2])
    corner = snap(origin_xyz + anchor - extent * [0.5, 0.5, 1.0], geometry)
    first = corner + spacing / 2
    return Geometry(
        size=(int(settings.crop[0]), int(settings.crop[1]), int(settings.crop[2])),
        spacing_mm=(float(spacing[2]), float(spacing[1]), float(spacing[0])),
        origin_mm=(float(first[0]), float(first[1]), float(first[2])),
        direction=IDENTITY,
    )


def resample_image(
    image: npt.NDArray[Any], geometry: Geometry, crop: Geometry, settings: Preprocess
) -> npt.NDArray[np.int16]:
    """Resamples a CT onto the grid `crop`: linear, clipped to the window, int16 HU.

    Along axes on which the crop is more than 1.5 times coarser than the CT, the CT is smoothed
    first by a Gaussian of variance (f^2 - 1) / (8 ln 2) in voxels, f the ratio of the spacings
    (Cardoso et al., Scale factor point spread function matching, MICCAI 2015).
    """
    low, high = settings.window_hu
    sigma = anti_alias_sigma(geometry, crop)
    box = covering_box(geometry, crop, margin=[int(np.ceil(4 * s)) + 1 for s in sigma])
    if box is None:
        return np.full(crop.size, round(low), dtype=np.int16)
    part = image[box].astype(np.float32)
    for axis in np.flatnonzero(sigma):
        part = ndimage.gaussian_filter1d(part, sigma[axis], axis=int(axis), mode="nearest")
    moved = resample(part, part_of(geometry, box), crop, outside=float(low))
    return np.rint(np.clip(moved, low, high)).astype(np.int16)


def coarse_lps(
    image: npt.NDArray[Any], geometry: Geometry
) -> tuple[npt.NDArray[np.float32], Floats]:
    """Returns the CT (Z, Y, X) on a 4 mm grid along the patient's axes; its origin (x, y, z)."""
    steps = [max(1, int(COARSE_MM / 2 / s)) for s in geometry.spacing_mm]
    thin = np.ascontiguousarray(image[:: steps[0], :: steps[1], :: steps[2]], dtype=np.float32)
    spacing = [s * n for s, n in zip(geometry.spacing_mm, steps, strict=True)]
    thin_geometry = Geometry(
        size=(thin.shape[0], thin.shape[1], thin.shape[2]),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        origin_mm=geometry.origin_mm,
        direction=geometry.direction,
    )
    matrix, origin = affine(thin_geometry)
    points = outer_corners(thin_geometry) @ matrix.T + origin
    low, high = points.min(0) + COARSE_MM / 2, points.max(0)
    size = np.maximum(1, np.floor((high - low) / COARSE_MM + 1)).astype(int)[::-1]
    grid = Geometry(
        size=(int(size[0]), int(size[1]), int(size[2])),
        spacing_mm=(COARSE_MM, COARSE_MM, COARSE_MM),
        origin_mm=(float(low[0]), float(low[1]), float(low[2])),
        direction=IDENTITY,
    )
    return resample(thin, thin_geometry, grid, outside=AIR_HU), low
