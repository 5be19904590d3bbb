"""A plan's network without memory: the names, shapes and types of its tensors, in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from core.errors import UserError
from core.plan.schema import Phase, Plan
from core.wire.partition import network


class _Numbers(TorchFunctionMode):
    """Under a device without memory: numbers that a network computes for itself as it is made."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = {"device": "cpu"} if func is torch.linspace else {}  # SwinUNETR's rates of dropout
        return func(*args, **(kwargs or {}) | own)


def outline(plan: Plan, phase: Phase) -> nn.Module:
    """The network of a phase on device meta, however large it is.

    Raises:
        UserError: it cannot be made, or computes other numbers as it is made.
    """
    with torch.device("meta"), _Numbers():
        return network(plan, phase)


def outline_if_possible(plan: Plan, phase: Phase) -> nn.Module:
    """`outline`; the network itself where that is not possible, which no policy allows."""
    try:
        return outline(plan, phase)
    except UserError:
        return network(plan, phase)
