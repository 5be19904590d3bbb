"""Random deformation and intensity, in torch.

Affine map and elastic deformation are one cubic B-spline on a coarse control grid: B-splines
reproduce affine maps exactly, so the affine map is applied to the control points and every voxel is
interpolated once. The displacement of a control point stays below 0.4 of the control spacing, which
keeps a cubic B-spline deformation in 3-D free of folds (Choi and Lee, Injectivity conditions of 2D
and 3D uniform cubic B-spline functions, Graphical Models 62, 2000). Left and right are exchanged
elsewhere (`core.data.dataset.mirror`): organs have sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from core.plan.schema import Augment

CPU = torch.device("cpu")
FOLDING_BOUND = 0.4
# Standard deviation of a control point over that of the displacement it makes: (151/315)^(-3/2),
# from the integral of the squared cubic B-spline.
CONTROL_GAIN = (151.0 / 315.0) ** -1.5


def augment(
    image: Tensor, label: Tensor, settings: Augment, spacing_mm: Sequence[float], seed: int
) -> tuple[Tensor, Tensor]:
    """Deforms image and label alike, then changes the image's intensity.

    Each of the two parts happens with `settings.probability`. What a deformation brings in from
    outside is air (-1) and background.

    Args:
        image: float32 (1, Z, Y, X) in [-1, 1], on any device; not changed.
        label: uint8 (Z, Y, X), on the same device; not changed.
        settings: strengths; see `deformation` and `intensity`.
        spacing_mm: voxel size (z, y, x).
        seed: decides everything random: numbers are drawn on the CPU, whatever the device.

    Returns:
        New image and label, shapes and types as given.
    """
    if not settings.enabled:
        return image, label
    generator = torch.Generator().manual_seed(seed)
    deform, change = (torch.rand(2, generator=generator) < settings.probability).tolist()
    if deform:
        shape = tuple(label.shape)
        grid = deformation(shape, settings, spacing_mm, generator, image.device)
        image, label = warp(image, label, grid)
    if change:
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
    along each axis, on control points `elastic_spacing_mm` apart. Drawn on the CPU, interpolated on
    `device`.

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
    sigma = settings.elastic_mm * CONTROL_GAIN
    bound = FOLDING_BOUND * settings.elastic_spacing_mm
    shift = torch.randn(points.shape, generator=generator, dtype=torch.float64) * sigma
    matrix, translation = _affine(settings, generator)
    control = (points + shift.clamp(-bound, bound)) @ matrix.T + translation
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
    """Samples the image linearly and the label at the nearest voxel."""
    # grid_sample puts 0 outside; shifted by one, 0 is air.
    moved = functional.grid_sample((image + 1)[None], grid[None], align_corners=True)[0] - 1
    labels = functional.grid_sample(
        label[None, None].to(image.dtype), grid[None], mode="nearest", align_corners=True
    )
    return moved, labels[0, 0].to(label.dtype)


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
