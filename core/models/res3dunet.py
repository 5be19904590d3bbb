"""Res3DUNet: a 3-D U-Net of residual blocks, the paper's network. Tensors are (B, C, Z, Y, X)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from core.errors import UserError
from core.models.blocks import ResidualBlock, UpBlock
from core.models.convolution import Convolution
from core.plan.schema import Model

# What is frozen as the paper's "first half" is the downward path, lowest level included (D13).
STAGES = {"encoder": ["down"], "decoder": ["up"], "head": ["head"]}


class Res3DUNet(nn.Module):
    """Residual encoder, residual decoder with skips, 1x1x1 head.

    Args:
        classes: output channels, background included.
        channels: channels per level, finest first.
        strides: step (z, y, x) from each level to the next: one fewer than `channels`.
        norm: ``instance`` or ``group``, both with learned scale and shift.
        checkpointing: recompute each block in the backward pass instead of storing it.
    """

    def __init__(
        self,
        classes: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        norm: str,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        inputs, steps = [1, *channels[:-1]], [(1, 1, 1), *strides]
        self.down = nn.ModuleList(
            ResidualBlock(i, o, norm, s) for i, o, s in zip(inputs, channels, steps, strict=True)
        )
        self.up = nn.ModuleList(
            UpBlock(channels[level + 1], channels[level], norm, strides[level])
            for level in reversed(range(len(channels) - 1))
        )
        self.head = Convolution(channels[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, Z, Y, X) image -> (B, classes, Z, Y, X) logits; total strides divide the axes."""
        skips: list[torch.Tensor] = []
        for block in self.down:
            x = self._run(block, x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = self._run(block, x, skips.pop())
        out: torch.Tensor = self.head(x)
        return out

    def _run(self, block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            out: torch.Tensor = checkpoint(
                block, *inputs, use_reentrant=False, preserve_rng_state=False
            )
        else:
            out = block(*inputs)
        return out


def res3dunet(settings: Model, classes: int, crop: Sequence[int]) -> Res3DUNet:
    """Builds the network for `crop` (z, y, x) voxels.

    Raises:
        UserError: unusable `model.channels`, `model.strides` or `model.args`, or strides that do
            not divide the crop.
    """
    channels = settings.channels
    if len(channels) < 2 or min(channels) < 1:
        raise UserError(
            "model.channels", channels, "give at least two positive channel counts, finest first"
        )
    if settings.args:
        raise UserError(
            "model.args",
            settings.args,
            "use model.channels, model.strides and model.norm; res3dunet takes no args",
        )
    strides = settings.strides or [[2, 2, 2]] * (len(channels) - 1)
    if len(strides) != len(channels) - 1 or any(len(s) != 3 or min(s) < 1 for s in strides):
        raise UserError(
            "model.strides",
            strides,
            f"give {len(channels) - 1} steps [z, y, x], one between two levels of model.channels",
        )
    for axis, name in enumerate("zyx"):
        total = math.prod(stride[axis] for stride in strides)
        if crop[axis] % total or crop[axis] // total < 2:
            raise UserError(
                "preprocess.crop",
                list(crop),
                f"make axis {name} a multiple of {total}, at least {2 * total}, or change "
                "model.strides",
                problem=f"the network's total stride along {name} is {total}",
            )
    return Res3DUNet(classes, channels, strides, settings.norm, settings.checkpointing)
