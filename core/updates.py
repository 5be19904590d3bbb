"""An update is what training added to the weights: its length, and the same made shorter."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]


def length(after: State, before: State) -> float:
    """Euclidean length of an update over all its floating-point tensors.

    Args:
        after: weights after training.
        before: the same names before; more are allowed.
    """
    squares = [
        float((tensor.double() - before[name].double()).square().sum())
        for name, tensor in after.items()
        if tensor.is_floating_point()
    ]
    return math.sqrt(math.fsum(squares))


def shortened(after: State, before: State, factor: float) -> dict[str, Tensor]:
    """`after` with its update made `factor` times as long; whole numbers stay as they are."""
    state = {}
    for name, tensor in after.items():
        if not tensor.is_floating_point():
            state[name] = tensor
            continue
        start = before[name].double()
        state[name] = (start + (tensor.double() - start) * factor).to(tensor.dtype)
    return state
