"""Weights on the wire: all tensors of a message in one piece.

Flower moves every array of a message by two requests of its own, at each of three hops. In one
piece a network of a hundred tensors takes as few requests as one of a single tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor


def packed(state: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """The safetensors file of a state, the same bytes for the same state.

    Args:
        state: tensors by name, de-duplicated (no two may share memory); any device, any memory
            format.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return np.frombuffer(safetensors.torch.save(tensors), dtype=np.uint8)


def unpacked(parcel: NDArray[np.uint8]) -> dict[str, Tensor]:
    """The state in a parcel, which may come from anywhere.

    Raises:
        ValueError: it is no row of bytes, or they are no safetensors file.
    """
    if parcel.dtype != np.uint8 or parcel.ndim != 1:
        raise ValueError("no row of bytes")
    try:
        return safetensors.torch.load(parcel.tobytes())
    except (SafetensorError, KeyError) as error:  # KeyError: a type that torch lacks
        raise ValueError("no safetensors file") from error
