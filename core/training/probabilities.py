"""What trained networks say of one crop: the probability of each class in each voxel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.organs.vocabulary import mirrored
from core.plan.schema import Train
from core.training.memory import laid_out
from core.training.optimisation import autocast_scoring


def probabilities_of(
    models: Sequence[nn.Module],
    image: Tensor,
    device: torch.device,
    *,
    average_mirrored: Sequence[str] = (),
    settings: Train | None = None,
) -> Tensor:
    """Mean softmax (1 + C, Z, Y, X) of the models for one scaled crop.

    Args:
        models: networks, on the device and in evaluation mode.
        image: (1, Z, Y, X) in [-1, 1], X from right to left of the patient.
        device: where the models are.
        average_mirrored: the C organs of the models' outputs, both sides of each: the mean is
            then also over the mirrored crop, mirrored back, sides exchanged. Empty: as it is.
        settings: float32 if its `amp` is `off` or None is given, else what `auto` has here.
    """
    batch = image[None].to(device)
    with torch.inference_mode(), autocast_scoring(settings or Train(), device):
        total = sum(
            torch.softmax(model(laid_out(batch, model))[0].float(), dim=0) for model in models
        )
        assert isinstance(total, Tensor)
        total /= len(models)
        if average_mirrored:
            sides = [0, *(1 + average_mirrored.index(mirrored(o)) for o in average_mirrored)]
            other = probabilities_of(models, image.flip(-1), device, settings=settings)
            total = (total + other.flip(-1)[sides]) / 2
        return total
