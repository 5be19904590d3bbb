"""An update is what training added to the weights: its length, and the same made shorter."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]
FARTHEST = (
    10.0  # of a round's step, as a multiple of the tensor's own size, or of 1 if that is less
)


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


def beyond(after: State, before: State) -> str:
    """The first tensor that no training brings so far in one round; "" where there is none.

    A tensor may move, in root mean square over its values, by `FARTHEST` times the larger of its
    own root mean square and 1. It needs no other site to compare with: it holds where there are
    two. What is not finite is beyond.

    Args:
        after: weights after training, or an average of such.
        before: the same names before; more are allowed.
    """
    for name, tensor in after.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        start = before[name].double()
        step, size = _rms(tensor.double() - start), _rms(start)
        if not step <= FARTHEST * max(size, 1.0):  # also where it is no number
            return name
    return ""


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
