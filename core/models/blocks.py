"""Building parts of the shipped networks. Tensors are (B, C, Z, Y, X)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.convolution import Convolution, is_plain

GROUP_CHANNELS = 8
SLOPE = 0.01
BLOCK = 65536  # numbers that are added up at a time, small enough for a core's cache


def norm_layer(kind: str, channels: int) -> nn.Module:
    """Returns a normalisation layer with learned scale and shift.

    Args:
        kind: ``instance`` or ``group`` (groups of 8 channels, smaller where 8 does not divide).
        channels: number of channels C of its input (B, C, Z, Y, X).
    """
    if kind == "instance":
        return InstanceNorm(channels, channels)
    assert kind == "group", kind
    return nn.GroupNorm(channels // math.gcd(channels, GROUP_CHANNELS), channels)


class InstanceNorm(nn.GroupNorm):
    """A group norm of one channel a group, in the fastest kernel that the batch allows.

    A batch of one is its own batch statistics: batch norm's channels-last kernel then computes the
    same, its backward pass 3 to 7 times faster than group norm's on CPUs (see docs/models.md). That
    kernel adds up a whole volume in one float32 each, so on a CPU we hand it mean and variance.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> (B, C, Z, Y, X), each case and channel normalised over its voxels."""
        if x.shape[0] > 1:
            return self.by_case(x) if x.is_cuda else super().forward(x)
        several = x.numel() > x.shape[1]  # of one voxel there is no variance: torch refuses it
        # Its kernel wants statistics and weights of one type.
        wide = self.weight is None or self.weight.dtype == _wide(x)
        last = x.is_contiguous(memory_format=torch.channels_last_3d)
        if several and wide and last and x.is_cpu:
            return _normalised(x, self.weight, self.bias, self.eps)
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)

    def by_case(self, x: Tensor) -> Tensor:
        """The same one case after the other: CUDA's group norm runs in fp32 only, and slower."""
        return torch.cat([self.forward(case) for case in torch.split(x, 1)])


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    out: Tensor = _Normalised.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    return out


class _Normalised(torch.autograd.Function):
    """`F.batch_norm` of one case (1, C, Z, Y, X) in channels-last, by mean and variance of our own.

    Its backward pass is torch's: sums in one float32 each are good enough for a gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        """The normalised case, in the type and order of x."""
        mean, variance = mean_and_variance(x)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of x, weight and bias; none for what is frozen."""
        x, weight, mean, scale = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        wanted = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, scale, True, ctx.eps, wanted
        )
        return *(part if asked else None for part, asked in zip(found, wanted, strict=True)), None


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel, added up in blocks and those in float64.

    Sums of distances from the mean of some voxels, so that little cancels (Chan, Golub and LeVeque,
    Algorithms for computing the sample variance, 1983).

    Args:
        x: (1, C, Z, Y, X), channels-last.

    Returns:
        Two of (C,), float32 or what is wider.
    """
    voxels = x.movedim(1, -1).reshape(-1, x.shape[1])
    # An odd step: sizes are even, so an even one may meet a single plane of the volume.
    rough = voxels[:: len(voxels) // 1024 | 1].to(_wide(x)).mean(0)
    sums, squares = [], []
    for block in torch.split(voxels, max(BLOCK // x.shape[1], 1)):
        distance = block - rough
        sums.append(distance.sum(0))
        squares.append(distance.square_().sum(0))
    offset = torch.stack(sums).double().sum(0) / len(voxels)
    variance = torch.stack(squares).double().sum(0) / len(voxels) - offset.square()
    return (rough + offset).to(rough), variance.clamp_(min=0).to(rough)


def with_fast_layers(model: nn.Module) -> nn.Module:
    """The same network, in place, with our layers for torch's: weights and names stay theirs.

    Up to rounding.

    torch's instance norm brings its input into channels-first, and has as many blocks of work as
    channels there; its convolutions leave the fast kernels at small volumes.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.InstanceNorm3d and not child.track_running_stats:
                channels = child.num_features
                norm = InstanceNorm(channels, channels, child.eps, child.affine)
                norm.weight, norm.bias = child.weight, child.bias
                setattr(module, name, norm)
            elif type(child) is nn.Conv3d and is_plain(child):
                child.__class__ = Convolution
    return model


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with a shortcut; the first one may stride.

    ``act(norm(conv(act(norm(conv(x))))) + shortcut(x))``; the shortcut is a normalised 1x1x1
    convolution where the shape changes, else the identity (He et al., CVPR 2016).
    """

    def __init__(
        self, channels_in: int, channels_out: int, norm: str, stride: Sequence[int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        step = (stride[0], stride[1], stride[2])
        self.conv1 = Convolution(channels_in, channels_out, 3, step, padding=1, bias=False)
        self.norm1 = norm_layer(norm, channels_out)
        self.conv2 = Convolution(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, channels_out)
        self.act = nn.LeakyReLU(SLOPE, inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out or math.prod(step) != 1:
            self.shortcut = nn.Sequential(
                Convolution(channels_in, channels_out, 1, step, bias=False),
                norm_layer(norm, channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, Z, Y, X) -> (B, C_out, Z/sz, Y/sy, X/sx)."""
        y: Tensor = self.act(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        out: Tensor = self.act(y + self.shortcut(x))
        return out


class UpBlock(nn.Module):
    """Transposed convolution to the skip's grid, concatenation, residual block."""

    def __init__(
        self, channels_in: int, channels_out: int, norm: str, stride: Sequence[int]
    ) -> None:
        super().__init__()
        step = (stride[0], stride[1], stride[2])
        self.up = nn.ConvTranspose3d(channels_in, channels_out, step, step, bias=False)
        self.block = ResidualBlock(2 * channels_out, channels_out, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, C_in, z, y, x) and skip (B, C_out, Z, Y, X) -> (B, C_out, Z, Y, X)."""
        out: Tensor = self.block(torch.cat((self.up(x), skip), dim=1))
        return out
