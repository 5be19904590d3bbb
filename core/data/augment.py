"""Random deformation and intensity, in torch.

Affine map and elastic deformation are one cubic B-spline on a coarse control grid: B-splines
reproduce affine maps exactly, so the affine map is applied to the control points and every voxel is
interpolated once: the image as sharply as by a cubic B-spline, shares of organs linearly. The
displacement of a control point stays below 0.4 of the control spacing, which keeps a cubic B-spline
deformation in 3-D free of folds (Choi and Lee, Injectivity conditions of 2D and 3D uniform cubic
B-spline functions, Graphical Models 62, 2000). Left and right are exchanged elsewhere
(`core.data.dataset.mirror`): organs have sides.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from core.data.grid import bounding_box
from core.plan.schema import Augment

CPU = torch.device("cpu")
FOLDING_BOUND = 0.4
# Standard deviation of a control point over that of the displacement it makes: (151/315)^(-3/2),
# from the integral of the squared cubic B-spline.
CONTROL_GAIN = (151.0 / 315.0) ** -1.5
NEGLIGIBLE = 1e-12  # of a voxel's weight; float32 resolves 1e-7
COARSE = 4  # every so many voxels are looked at to find where an organ comes to lie


def augment(
    image: Tensor, label: Tensor, settings: Augment, spacing_mm: Sequence[float], seed: int
) -> tuple[Tensor, Tensor]:
    """Deforms image and label alike, then changes the image's intensity.

    The first happens with `settings.probability`, the second with `intensity_probability`. What a
    deformation brings in from outside is air (-1) and background.

    Args:
        image: float32 (1, Z, Y, X) in [-1, 1], on any device; not changed.
        label: uint8 (C, Z, Y, X), shares in 255ths, on the same device; not changed.
        settings: strengths; see `deformation` and `intensity`.
        spacing_mm: voxel size (z, y, x).
        seed: decides everything random: numbers are drawn on the CPU, whatever the device.

    Returns:
        New image and label, shapes and types as given.
    """
    if not settings.enabled:
        return image, label
    generator = torch.Generator().manual_seed(seed)
    deform, change = torch.rand(2, generator=generator).tolist()
    if deform < settings.probability:
        grid = deformation(image.shape[1:], settings, spacing_mm, generator, image.device)
        image, label = warp(image, label, grid)
    if change < settings.intensity_probability:
        image = intensity(image, settings, generator)
    return image, label


def deformation(
    shape: Sequence[int],
    settings: Augment,
    spacing_mm: Sequence[float],
    generator: torch.Generator,
    device: torch.device = CPU,
) -> Tensor:
    """Draws a deformation about the centre of the volume.

    Rotation is uniform in +-`rotate_deg` about each of (z, y, x), scaling in 1 +- `scale` along
    each, translation in +-`translate_mm`; `elastic_mm` is the root mean square elastic displacement
    along each axis, on control points `elastic_spacing_mm` apart (0.13 of which is the most there
    can be without folds). Drawn on the CPU, interpolated on `device`.

    Returns:
        Sampling grid (Z, Y, X, 3) for `torch.nn.functional.grid_sample` with `align_corners=True`.
    """
    spacing = torch.tensor(list(spacing_mm), dtype=torch.float64)
    half_mm = (torch.tensor(list(shape), dtype=torch.float64) - 1) / 2 * spacing
    bases = [
        _basis(n, float(s), settings.elastic_spacing_mm)
        for n, s in zip(shape, spacing, strict=True)
    ]
    axes = [positions for _, positions in bases]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    bound = FOLDING_BOUND * settings.elastic_spacing_mm
    # Uniform numbers in +-k, cut at +-1, have the variance k^2 / 3, or 1 - 2 / (3 k) where k > 1.
    variance = min((settings.elastic_mm * CONTROL_GAIN / bound) ** 2, 0.999)
    k = math.sqrt(3 * variance) if variance < 1 / 3 else 2 / 3 / (1 - variance)
    draws = torch.rand(points.shape, generator=generator, dtype=torch.float64) * 2 - 1
    matrix, translation = _affine(settings, generator)
    control = (points + bound * (k * draws).clamp(-1, 1)) @ matrix.T + translation
    # A GPU may round products of float32 to 10 bits: a tenth of a voxel.
    kind = torch.float32 if device.type == "cpu" else torch.float64
    control = (control / half_mm.clamp_min(1e-6)).flip(-1).to(device, kind)
    weights_z, weights_y, weights_x = (weights.to(device, kind) for weights, _ in bases)
    field = torch.einsum("xi,zyic->zyxc", weights_x, control)
    counts = field.shape
    field = torch.matmul(weights_y, field.reshape(counts[0], counts[1], -1))
    field = torch.matmul(weights_z, field.reshape(counts[0], -1))
    return field.reshape(*shape, 3).float()


def warp(image: Tensor, label: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Samples the image from twice as fine a grid, and each organ's shares linearly.

    Between voxels a linear interpolation of the image would lose much of its detail, which a
    network never misses in validation. On the finer grid it loses what a cubic B-spline does.
    """
    # A GPU may round products of float32 to 10 bits. grid_sample puts 0 outside; here 0 is air.
    fine = (image[0] + 1).to(torch.float32 if image.device.type == "cpu" else torch.float64)
    for _ in range(3):
        fine = _finer(fine)
    moved = functional.grid_sample(fine[None, None].float(), grid[None], align_corners=True)[0] - 1
    shares, coarse = torch.zeros_like(label), grid[::COARSE, ::COARSE, ::COARSE]
    # How far neighbours of these may lie apart; what is between them is nearer.
    steps = [coarse.diff(dim=d).abs() for d in range(3) if coarse.shape[d] > 1]
    apart = sum((step.amax((0, 1, 2)) for step in steps), torch.zeros_like(grid[0, 0, 0]))
    for before, after in zip(label, shares, strict=True):
        block = _reached(before, coarse, apart)
        if block is not None:
            values, where = before[None, None].float(), grid[block][None]
            # Rounded down, so that no voxel's shares add up to more than 255.
            after[block] = functional.grid_sample(values, where, align_corners=True)[0, 0] + 1e-3
    return moved.clamp_(-1, 1), shares


def _finer(volume: Tensor) -> Tensor:
    """Twice as fine along the last axis, which becomes the first: (A, B, C) -> (2C - 1, A, B)."""
    matrix = _refinement(volume.shape[-1]).to(volume)
    return (matrix @ volume.reshape(-1, volume.shape[-1]).T).reshape(-1, *volume.shape[:-1])


@functools.lru_cache(8)
def _refinement(size: int) -> Tensor:
    """From voxels to those of half the spacing, (2 size - 1, size): a cubic spline through them.

    It is then raised where linear interpolation between the finer voxels lowers it on average (the
    quasi-interpolation of Condat, Blu and Unser, Beyond interpolation, ICIP 2005).
    """
    fine = 2 * size - 1
    spline = ndimage.zoom(np.eye(size), (fine / size, 1), order=3, mode="mirror")
    lowered = ndimage.correlate1d(np.eye(fine), [1 / 12, 10 / 12, 1 / 12], axis=0, mode="mirror")
    matrix = np.linalg.solve(lowered, spline)
    # In float32 they would become subnormal numbers, by which a CPU multiplies very slowly.
    matrix[np.abs(matrix) < NEGLIGIBLE] = 0
    return torch.from_numpy(matrix)


def _reached(shares: Tensor, coarse: Tensor, apart: Tensor) -> tuple[slice, ...] | None:
    """A block outside of which no voxel comes from an organ; on a GPU all, without a look."""
    if shares.device.type != "cpu":
        return (slice(None),) * 3
    inside = torch.ones(coarse.shape[:3], dtype=torch.bool)
    for axis, found in enumerate(bounding_box(shares.numpy()) or ()):
        half = max((shares.shape[axis] - 1) / 2, 1e-6)
        low, high = (found.start - 1) / half - 1, found.stop / half - 1
        at, margin = coarse[..., 2 - axis], apart[2 - axis]
        inside &= (at > low - margin) & (at < high + margin)
    hits = inside.nonzero()
    if not len(hits) or not shares.any():
        return None
    ends = zip((hits.amin(0) * COARSE).tolist(), (hits.amax(0) * COARSE).tolist(), strict=True)
    return tuple(slice(max(0, first - COARSE), last + COARSE) for first, last in ends)


def intensity(image: Tensor, settings: Augment, generator: torch.Generator) -> Tensor:
    """Changes gamma, contrast and brightness, adds Gaussian noise, and clips to [-1, 1].

    The gamma exponent is exp(+-`gamma`), contrast 1 +- `contrast` about the mean, brightness
    +-`brightness` and the noise's standard deviation up to `noise`, the last two in units of the
    scaled image (the window is 2 wide).
    """
    gamma, contrast, brightness, noise = _uniform(4, generator).tolist()
    image = ((image + 1) / 2).clamp_(0, 1).pow_(math.exp(gamma * settings.gamma)).mul_(2).sub_(1)
    mean = image.mean()
    image = image.sub_(mean).mul_(1 + contrast * settings.contrast).add_(mean)
    image = image.add_(brightness * settings.brightness)
    if settings.noise > 0:
        seed = int(torch.randint(2**62, (1,), generator=generator))
        source = torch.Generator().manual_seed(seed)
        values = torch.randn(image.shape, generator=source, dtype=image.dtype).to(image.device)
        image = image.add_(values, alpha=(noise + 1) / 2 * settings.noise)
    return image.clamp_(-1, 1)


def _basis(size: int, spacing_mm: float, control_mm: float) -> tuple[Tensor, Tensor]:
    """Cubic B-spline along one axis.

    Returns:
        Weights (size, controls), and the positions of the control points in mm from the centre.
    """
    half = (size - 1) / 2 * spacing_mm
    count = max(1, math.ceil(2 * half / control_mm)) + 3
    positions = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * control_mm
    voxels = torch.arange(size, dtype=torch.float64) * spacing_mm - half
    distance = ((voxels[:, None] - positions[None]) / control_mm).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far), positions


def _affine(settings: Augment, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws rotation times scaling, (3, 3), and a translation in mm, (3,); axes (z, y, x)."""
    angles = _uniform(3, generator) * torch.deg2rad(
        torch.tensor(settings.rotate_deg, dtype=torch.float64)
    )
    rotation = torch.eye(3, dtype=torch.float64)
    for axis in range(3):
        first, second = (a for a in range(3) if a != axis)
        turn = torch.eye(3, dtype=torch.float64)
        turn[first, first] = turn[second, second] = angles[axis].cos()
        turn[first, second] = -angles[axis].sin()
        turn[second, first] = angles[axis].sin()
        rotation = turn @ rotation
    scale = 1 + _uniform(3, generator) * settings.scale
    translation = _uniform(3, generator) * torch.tensor(settings.translate_mm, dtype=torch.float64)
    return rotation * scale, translation


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1
