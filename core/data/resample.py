"""Interpolation between grids: an image onto the crop, probabilities back onto the CT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from core.data.geometry import Geometry
from core.data.grid import Box, Floats, covering_box, index_transform

ANTI_ALIAS_ABOVE = 1.5
SLAB_VALUES = 2**23
Bounds = Sequence[tuple[float, float]]  # an axis of the crop each


@dataclass(frozen=True)
class Part:
    """Where labels are computed on a CT, and how its voxels lie on the crop.

    Attributes:
        box: of the CT's voxels.
        bounds: of indices of the crop, lowest and highest.
        to_crop, start: index of a voxel of the CT -> index on the crop (`index_transform`).
    """

    box: Box
    bounds: Bounds
    to_crop: Floats
    start: Floats


def resample(
    array: npt.NDArray[np.float32], geometry: Geometry, target: Geometry, outside: float
) -> npt.NDArray[np.float32]:
    """Interpolates `array`, which lies on `geometry`, linearly on the grid `target`.

    Returns:
        (Z, Y, X) of `target`; `outside` where `array` has no voxel.
    """
    import SimpleITK as sitk  # training reads prepared cases and needs none

    # SimpleITK's signature calls `size` an int: options by name, unchecked.
    options: dict[str, Any] = {
        "size": [int(n) for n in target.size[::-1]],
        "interpolator": sitk.sitkLinear,
        "outputOrigin": [float(v) for v in target.origin_mm],
        "outputSpacing": [float(v) for v in target.spacing_mm[::-1]],
        "outputDirection": [float(v) for v in target.direction],
        "defaultPixelValue": outside,
    }
    moved = sitk.Resample(geometry.to_sitk(array), **options)
    return np.asarray(sitk.GetArrayFromImage(moved), dtype=np.float32)


def restore(
    probabilities: npt.NDArray[np.float32] | torch.Tensor,
    crop_geometry: Geometry,
    source_geometry: Geometry,
) -> npt.NDArray[np.uint8]:
    """Brings class probabilities back onto the CT's own grid: what preparing did, undone.

    The probabilities are interpolated, linearly, and the label is the class with the largest. Only
    the box around what may be an organ is computed, a few slices at a time; all else is background.

    Args:
        probabilities: (C, Z, Y, X) on the crop, class 0 = background; on any device.
        crop_geometry: grid of the crop.
        source_geometry: grid of the CT, in any orientation.

    Returns:
        Labels (Z, Y, X) on the CT's grid; 0 outside the crop.
    """
    values = torch.as_tensor(probabilities)
    assert tuple(values.shape[1:]) == tuple(crop_geometry.size), "probabilities are not on the crop"
    labels = np.zeros(source_geometry.size, dtype=np.uint8)
    box = covering_box(source_geometry, crop_geometry, margin=[1, 1, 1])
    if box is None:
        return labels
    with torch.inference_mode():
        bounds = foreground_bounds(values)
        if bounds is None:
            return labels
        part = Part(box, bounds, *index_transform(source_geometry, crop_geometry))
        if np.all(np.count_nonzero(part.to_crop, axis=0) == 1):
            restore_aligned(labels, values, part)
        else:
            restore_oblique(labels, values, part)
    return labels


def foreground_bounds(values: torch.Tensor) -> Bounds | None:
    """Where an interpolated point may be other than background, and lies in the crop.

    A point all of whose neighbours have class 0 above each other class has it too.

    Args:
        values: (C, Z, Y, X).

    Returns:
        Lowest and highest index along each axis of the crop, inclusive; None where there is
        background alone.
    """
    possible = (values[1:] >= values[:1]).any(0)
    bounds = []
    for axis, size in enumerate(possible.shape):
        rest = [a for a in range(possible.ndim) if a != axis]
        found = torch.nonzero(possible.amax(rest)).flatten()
        if not len(found):
            return None
        bounds.append((max(int(found[0]) - 1, -0.5), min(int(found[-1]) + 1, size - 0.5)))
    return bounds


def largest_class(values: torch.Tensor) -> torch.Tensor:
    """The first class with the largest value: `values.argmax(0)` as uint8.

    On a CPU a pass over each class takes a third of the time of torch's `argmax` along a first
    axis, or less.

    Args:
        values: (C, ...), at most 256 classes; where all are NaN, class 0.
    """
    values = values.detach()
    best = values[0].clone()
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for i in range(1, len(values)):
        labels.masked_fill_(values[i] > best, i)
        torch.maximum(best, values[i], out=best)
    return labels


def anti_alias_sigma(geometry: Geometry, crop: Geometry) -> Floats:
    """Returns the smoothing for each axis of the CT in voxels; 0 where none is needed."""
    matrix, _ = index_transform(crop, geometry)
    ratio = np.sqrt((matrix**2).sum(axis=1))
    variance = np.maximum(ratio**2 - 1, 0) / (8 * np.log(2))
    return np.where(ratio > ANTI_ALIAS_ABOVE, np.sqrt(variance), 0.0)


def restore_aligned(labels: npt.NDArray[np.uint8], values: torch.Tensor, part: Part) -> None:
    """Fills a part of `labels` where axes of CT and crop run along each other.

    Linear interpolation is then separable: one small matrix an axis.
    """
    box, to_crop = part.box, part.to_crop
    axes = [int(np.flatnonzero(to_crop[:, a])[0]) for a in range(3)]
    values = values.permute(0, *(1 + a for a in axes))
    matrices, ranges = [], []
    for a in range(3):
        index = part.start[axes[a]] + to_crop[axes[a], a] * np.arange(box[a].start, box[a].stop)
        size = values.shape[1 + a]
        lowest, highest = part.bounds[axes[a]]
        inside = np.flatnonzero((index >= lowest) & (index <= highest))
        if inside.size == 0:
            return
        first, last = int(inside[0]), int(inside[-1]) + 1
        ranges.append(slice(box[a].start + first, box[a].start + last))
        matrices.append(linear_weights(index[first:last], size))
    weights_y, weights_x = (m.to(values) for m in matrices[1:])
    plane = values.shape[0] * weights_y.shape[0] * weights_x.shape[0]
    step = max(1, SLAB_VALUES // plane)
    moved = torch.empty(0)
    for first in range(0, matrices[0].shape[0], step):
        rows = matrices[0][first : first + step]
        used = torch.nonzero(rows.sum(0)).flatten()
        low, high = int(used[0]), int(used[-1]) + 1
        moved = torch.tensordot(rows[:, low:high].to(values), values[:, low:high], ([1], [1]))
        moved = torch.matmul(weights_y, torch.matmul(moved, weights_x.T))
        z = slice(ranges[0].start + first, ranges[0].start + first + len(rows))
        labels[z, ranges[1], ranges[2]] = largest_class(moved.movedim(1, 0)).cpu().numpy()


def linear_weights(index: Floats, size: int) -> torch.Tensor:
    """Returns (len(index), size): row i interpolates at `index[i]`, clamped to the ends."""
    position = np.clip(index, 0, size - 1)
    # A whole number that is missed by a rounding error only must give exactly one weight.
    position = np.where(abs(position - np.rint(position)) < 1e-6, np.rint(position), position)
    low = np.minimum(np.floor(position).astype(np.int64), max(size - 2, 0))
    weights = np.zeros((len(index), size))
    rows = np.arange(len(index))
    weights[rows, low] = 1 - (position - low)
    if size > 1:
        weights[rows, low + 1] = position - low
    return torch.from_numpy(weights)


def restore_oblique(labels: npt.NDArray[np.uint8], values: torch.Tensor, part: Part) -> None:
    """Fills a part of `labels` where the CT's axes are tilted against the patient's."""
    box = part.box
    lowest, highest = torch.tensor(part.bounds, device=values.device, dtype=torch.float64).T
    size = torch.tensor(values.shape[1:], device=values.device, dtype=torch.float64)
    matrix = torch.as_tensor(part.to_crop, device=values.device)
    y, x = (torch.arange(b.start, b.stop, device=values.device).double() for b in box[1:])
    plane = y[:, None, None] * matrix[:, 1] + x[None, :, None] * matrix[:, 2]
    plane = plane + torch.as_tensor(part.start, device=values.device)
    for z in range(box[0].start, box[0].stop):
        index = plane + z * matrix[:, 0]
        inside = ((index >= lowest) & (index <= highest)).all(-1)
        if not bool(inside.any()):
            continue
        grid = (2 * index.flip(-1) + 1) / size.flip(-1) - 1
        moved = functional.grid_sample(
            values[None],
            grid[None, None].to(values.dtype),
            padding_mode="border",
            align_corners=False,
        )
        labels[z, box[1], box[2]] = (largest_class(moved[0, :, 0]) * inside).cpu().numpy()
