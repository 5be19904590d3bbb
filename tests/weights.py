"""The weights of a message, as tests read them."""

from __future__ import annotations

from flwr.app import ArrayRecord
from torch import Tensor

from core.wire.state import unpacked


def weights_in(
    record: ArrayRecord, bits: int = 32, since: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    (array,) = record.values()
    return unpacked(array.data, bits=bits, since=since)
