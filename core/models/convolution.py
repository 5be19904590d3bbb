"""A 3-D convolution that gets a fast kernel on a CPU. Tensors are (B, C, Z, Y, X)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

SMALL = 20_480  # of B x C x Z x Y: up to here torch takes a slow kernel for a batch of one


class Convolution(nn.Conv3d):
    """`nn.Conv3d` without dilation and groups, the same up to rounding.

    For a batch of one torch leaves oneDNN's kernels where B x C x Z x Y is small, and for 1x1x1
    kernels where it has one thread (`use_mkldnn` in ATen/native/Convolution.cpp). What it takes
    instead is up to nine times slower in the lower half of a network. So a small volume is cut into
    two slabs, which make a batch of two, and a 1x1x1 convolution is a matrix product.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert is_plain(self), "nn.Conv3d computes this one"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, Z, Y, X) -> (B, C_out, Z', Y', X')."""
        if x.device.type != "cpu" or len(x) != 1 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        in_order = x.is_contiguous(memory_format=torch.channels_last_3d)
        if in_order and math.prod(self.kernel_size) == 1 and self.padding == (0, 0, 0):
            z, y, x_ = self.stride
            voxels = x[:, :, ::z, ::y, ::x_].movedim(1, -1)
            return F.linear(voxels, self.weight.flatten(1), self.bias).movedim(-1, 1)
        if math.prod(x.shape[1:4]) <= SMALL:
            return self._as_slabs(x)
        return super().forward(x)

    def _as_slabs(self, x: torch.Tensor) -> torch.Tensor:
        """The lower and the upper half of the output's slices as a batch of two."""
        size, step, pad = self.kernel_size[0], self.stride[0], int(self.padding[0])
        slices = (x.shape[2] + 2 * pad - size) // step + 1
        half = (slices + 1) // 2
        length = (half - 1) * step + size
        above = half * step + length - x.shape[2] - pad
        x = F.pad(x, (0, 0, 0, 0, pad, above))
        both = torch.cat((x[:, :, :length], x[:, :, half * step :]))
        padding = (0, *map(int, self.padding[1:]))
        y = F.conv3d(both, self.weight, self.bias, self.stride, padding)
        return torch.cat((y[:1], y[1:]), dim=2)[:, :, :slices]


def is_plain(layer: nn.Conv3d) -> bool:
    """Whether `Convolution` computes the same: zeros around, in numbers, no dilation, no groups."""
    whole = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
    return whole and not isinstance(layer.padding, str)
