"""UNETR: MONAI's network (Hatamizadeh et al., WACV 2022), with learned norms and a stage table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from core.errors import UserError
from core.models.blocks import GROUP_CHANNELS
from core.plan.schema import Model

# The convolutions that turn the transformer's hidden states into skips belong to the encoder (D13).
STAGES = {
    "encoder": ["vit", "encoder1", "encoder2", "encoder3", "encoder4"],
    "decoder": ["decoder2", "decoder3", "decoder4", "decoder5"],
    "head": ["out"],
}
PATCH = 16


def norm_argument(kind: str, channels: int) -> tuple[str, dict[str, Any]]:
    """Returns MONAI's norm argument for `kind` with learned scale and shift (its default has none).

    Args:
        kind: ``instance`` or ``group``; MONAI takes one number of groups for all widths, here at
            most 8.
        channels: a number that divides every width of the network.
    """
    if kind == "instance":
        return "instance", {"affine": True}
    return "group", {"num_groups": math.gcd(channels, GROUP_CHANNELS), "affine": True}


def unetr(settings: Model, classes: int, crop: Sequence[int]) -> nn.Module:
    """Builds UNETR for `crop` (z, y, x) voxels.

    Its sizes come from `model.args`: `feature_size`, `hidden_size`, `mlp_dim`, `num_heads`, ...
    Parameters named `norm_cross_attn` are MONAI's and unused: they never have a gradient. Those of
    `cross_attn`, which MONAI before 1.6 makes as well and never uses, are left out: the same
    tensors travel whichever version a site has.

    Raises:
        UserError: a crop that is no multiple of the 16-voxel patch, or arguments that do not fit.
    """
    from monai.networks.nets.unetr import UNETR  # takes seconds: each message is a new process

    if any(n % PATCH for n in crop):
        raise UserError(
            "preprocess.crop",
            list(crop),
            f"make each axis a multiple of {PATCH}",
            problem=f"UNETR cuts the crop into patches of {PATCH} voxels",
        )
    arguments = dict(settings.args)
    feature_size = int(arguments.get("feature_size", 16))
    arguments.setdefault("norm_name", norm_argument(settings.norm, feature_size))
    try:
        network = UNETR(in_channels=1, out_channels=classes, img_size=tuple(crop), **arguments)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            "model.args",
            settings.args,
            "give arguments that monai.networks.nets.UNETR takes (feature_size, hidden_size, "
            "mlp_dim, num_heads, ...)",
            problem=str(error),
        ) from error
    for block in network.vit.blocks:
        block.cross_attn = nn.Identity()
    return network
