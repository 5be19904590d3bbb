"""A state in parts of bounded size, so that an average needs a part of each update at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

# Numbers of a part: few enough for thousands of sites, so many that a network is few parts.
PART = 2**20
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """Stretches of flattened tensors: (name, first number, one beyond the last)."""

    stretches: tuple[tuple[str, int, int], ...]

    def of(self, state: State) -> dict[str, Tensor]:
        """The part of a state: 1-D tensors under names of the part's own."""
        return {
            f"{name}@{first}": state[name].reshape(-1)[first:end]
            for name, first, end in self.stretches
        }

    def put(self, values: State, into: dict[str, Tensor], like: State) -> None:
        """Writes a part into a state that is being made.

        Args:
            values: named as in `of`.
            into: gets the tensors that it lacks, in the shapes of `like`, and this part's numbers.
            like: a whole state.
        """
        for name, first, end in self.stretches:
            value = values[f"{name}@{first}"]
            if name not in into:
                into[name] = value.new_empty(like[name].shape)
            into[name].view(-1)[first:end] = value


def parts(state: State, most: int) -> Iterator[Part]:
    """Cuts a state into parts of at most `most` numbers; no tensor is cut unevenly.

    Args:
        state: tensors by name.
        most: numbers of a part; 0 leaves the state whole.
    """
    stretches: list[tuple[str, int, int]] = []
    numbers = 0
    for name, tensor in state.items():
        size = tensor.numel()
        pieces = max(1, math.ceil(size / most)) if most else 1
        edges = [size * i // pieces for i in range(pieces + 1)]
        for first, end in itertools.pairwise(edges):
            if stretches and most and numbers + end - first > most:
                yield Part(tuple(stretches))
                stretches, numbers = [], 0
            stretches.append((name, first, end))
            numbers += end - first
    if stretches:
        yield Part(tuple(stretches))
