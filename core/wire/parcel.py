"""Weights as bytes: all tensors of a message, or of a checkpoint, in one piece.

Flower moves every array of a message by requests of its own, at each of three hops. In one piece a
network takes as few as its bytes need (Flower cuts an array at 5 MB), however many tensors it has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

TOLD = {"dtype", "shape", "data_offsets"}
HEADER_BYTES = 400  # more than the header says of a tensor beside its name


def packed(state: Mapping[str, Tensor]) -> bytes:
    """The safetensors file of a state, the same bytes for the same state.

    Args:
        state: tensors by name, de-duplicated (no two may share memory); any device, any memory
            format.
    """
    return safetensors.torch.save({n: t.detach().cpu().contiguous() for n, t in state.items()})


def unpacked(parcel: bytes, expected: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state in a parcel, which may come from anywhere.

    Args:
        parcel: from `packed`.
        expected: what should be in it: a parcel that is much larger is not opened.

    Raises:
        ValueError: it is larger, is no safetensors file, or holds more than tensors.
    """
    if expected is not None and len(parcel) > _most(expected):
        raise ValueError("a larger parcel")
    try:
        state = safetensors.torch.load(parcel)
    except (SafetensorError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError("no safetensors file") from error
    length = int.from_bytes(parcel[:8], "little")
    if any(set(told) != TOLD for told in json.loads(parcel[8 : 8 + length]).values()):
        raise ValueError("text beside the tensors")
    return state


def _most(state: Mapping[str, Tensor]) -> int:
    names = sum(6 * len(name) + HEADER_BYTES for name in state)
    return HEADER_BYTES + names + sum(t.numel() * t.element_size() for t in state.values())
