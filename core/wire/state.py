"""Weights as bytes: all tensors of a message, or of a checkpoint, in one piece.

Flower moves every array of a message by requests of its own, at each of three hops. In one piece a
network takes as few as its bytes need (Flower cuts an array at 5 MB), however many tensors it has.
An update is what training added to a state: its length, and the same made shorter.
With 8 bits a tensor of two dimensions or more travels as bytes, with one scale for each index of
its first dimension, and an update as what it adds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

TOLD = {"dtype", "shape", "data_offsets"}
HEADER_BYTES = 400  # more than the header says of a tensor beside its name
SCALE = "::scale"  # behind the name of a tensor of bytes: the name of its scales
# Of a round's step, as a multiple of the tensor's own size, or of 1 if that is less.
FARTHEST = 10.0
PIECE = 2**20  # numbers that are looked at together
State = Mapping[str, Tensor]
Loader = Callable[[bytes], dict[str, Tensor]]


def packed(
    state: State, bits: int = 32, since: State | None = None, seed: int | None = None
) -> bytes:
    """The safetensors file of a state, the same bytes for the same state.

    Args:
        state: tensors by name, de-duplicated (no two may share memory); any device, any memory
            format.
        bits: 16 for float16 in place of float32, 8 for bytes and their scales; see `rounded`.
        since: what the receiver has: with 8 bits the difference travels.
        seed: of rounding up or down by chance, right on average: what is much smaller than the
            largest in its row would never move otherwise. Without one to the nearest.
    """
    chance = None if seed is None else torch.Generator().manual_seed(seed)
    plain = {n: t.detach().cpu().contiguous() for n, t in state.items()}
    if bits == 8 and since is not None:
        plain = {n: t - since[n] for n, t in plain.items()}
    return safetensors.torch.save(_narrowed(plain, bits, chance))


def rounded(state: State, bits: int) -> dict[str, Tensor]:
    """A state as it is behind `packed` and `unpacked`; rounded once more it stays as it is.

    With 16 bits its numbers are float16's; with 8 they are -127 to 127 times the row's scale, a
    127th of its largest value.
    """
    return _widened(_narrowed(state, bits), bits)


def in_bytes(tensor: Tensor) -> bool:
    """Whether a tensor travels as bytes where a plan asks for 8 bits: biases and norms do not.

    Nor do tensors whose rows hold two numbers or less, beside a scale of four bytes.
    """
    long = tensor.dim() > 1 and tensor.numel() > 2 * len(tensor)
    return tensor.is_floating_point() and long


def _narrowed(state: State, bits: int, chance: torch.Generator | None = None) -> dict[str, Tensor]:
    if bits == 16:
        return {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    found = dict(state)
    for name in [n for n, t in state.items() if bits == 8 and in_bytes(t)]:
        rows = state[name].float().flatten(1)
        scales = (rows.abs().amax(1) / 127).contiguous()
        # Upwards to 16 binary digits: a byte times a scale is exact, and rounds to itself again.
        scales = ((scales.view(torch.int32) + 0xFF) & ~0xFF).view(torch.float32)
        scales[scales < torch.finfo(torch.float32).tiny] = 0.0  # some processes know no such number
        steps = (rows / scales[:, None]).nan_to_num(0.0, 0.0, 0.0)
        if chance is not None:  # the largest stays a 127th: what is rounded rounds to itself
            below = steps.floor()
            drawn = below + (torch.rand(steps.shape, generator=chance) < steps - below)
            steps = torch.where(steps.abs() > 126.5, steps, drawn)
        found[name] = steps.round().to(torch.int8).view(state[name].shape)
        found[name + SCALE] = scales
    return found


def _widened(state: State, bits: int) -> dict[str, Tensor]:
    """Inverse of `_narrowed`, up to rounding.

    Raises:
        ValueError: it holds numbers of more than these bits, or scales that do not fit.
    """
    floats = {n: t for n, t in state.items() if t.is_floating_point()}
    if bits == 16:
        if any(t.dtype != torch.float16 for t in floats.values()):
            raise ValueError("numbers of other than 16 bits")
        return dict(state) | {n: t.float() for n, t in floats.items()}
    if bits != 8:
        return dict(state)
    found = {n: t for n, t in state.items() if not n.endswith(SCALE)}
    for name in {n.removesuffix(SCALE) for n in state.keys() - found.keys()} | {
        n for n, t in found.items() if t.dtype == torch.int8 or in_bytes(t)
    }:
        steps, scales = state.get(name), state.get(name + SCALE)
        if steps is None or steps.dtype != torch.int8 or scales is None or steps.dim() < 2:
            raise ValueError("numbers of other than 8 bits")
        if scales.dtype != torch.float32 or scales.shape != steps.shape[:1]:
            raise ValueError("scales that do not fit")
        found[name] = (steps.float().flatten(1) * scales[:, None]).view(steps.shape)
    return found


def unpacked(
    parcel: bytes,
    expected: State | None = None,
    *,
    load: Loader = safetensors.torch.load,
    bits: int = 32,
    since: State | None = None,
) -> dict[str, Tensor]:
    """The state in a parcel, which may come from anywhere.

    Args:
        parcel: from `packed`.
        expected: what should be in it: a parcel that is much larger is not opened.
        load: makes the tensors of a safetensors file's bytes.
        bits: as in `packed`; of 16 and 8 the tensors are float32 again.
        since: as in `packed`.

    Raises:
        ValueError: it is larger, is no safetensors file, or holds more than tensors of these bits.
    """
    if expected is not None and len(parcel) > _most(expected, bits):
        raise ValueError("a larger parcel")
    try:
        state = load(parcel) if bits == 32 else safetensors.torch.load(parcel)
    except (SafetensorError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError("no safetensors file") from error
    length = int.from_bytes(parcel[:8], "little")
    header = json.loads(parcel[8 : 8 + length])
    wrong = any(not isinstance(told, dict) or set(told) != TOLD for told in header.values())
    if "__metadata__" in header or wrong:
        raise ValueError("text beside the tensors")
    if bits == 32:
        return state
    state = _widened(state, bits)
    if bits == 8 and since is not None:
        state = {n: t + since[n] if _fits(t, since.get(n)) else t for n, t in state.items()}
    return load(packed(state))


def _fits(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and (tensor.shape, tensor.dtype) == (other.shape, other.dtype)


def size_of(tensor: Tensor, bits: int) -> int:
    """Bytes that a tensor takes in a parcel, its scales included."""
    if bits == 8 and in_bytes(tensor):
        return tensor.numel() + 4 * len(tensor)
    narrow = bits == 16 and tensor.is_floating_point()
    return tensor.numel() * (2 if narrow else tensor.element_size())


def _most(state: State, bits: int) -> int:
    names = sum(6 * len(name) + HEADER_BYTES for name in state) * (2 if bits == 8 else 1)
    return HEADER_BYTES + names + sum(size_of(t, bits) for t in state.values())


def length(after: State, before: State) -> float:
    """Euclidean length of an update over all its tensors.

    Args:
        after: weights after training.
        before: the same names before; more are allowed.
    """
    return math.sqrt(math.fsum(float(step.square().sum()) for (step,) in _steps(before, after)))


def inner_product(one: State, other: State, before: State) -> float:
    """Inner product of two updates over all tensors of the first, in float64.

    Args:
        one: weights after training.
        other: the same names in another training; more are allowed.
        before: the same names before both; more are allowed.
    """
    return math.fsum(float((a * b).sum()) for a, b in _steps(before, one, other))


def _steps(before: State, *after: State) -> Iterator[list[Tensor]]:
    """The updates by tensors of the first, a piece at a time, in float64."""
    for name in after[0]:
        for old, *new in _pieces(before[name], *(state[name] for state in after)):
            start = old.double()
            yield [piece.double() - start for piece in new]


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same numbers of several tensors of one shape, `PIECE` at a time."""
    assert len({t.shape for t in tensors}) == 1, [t.shape for t in tensors]
    return zip(*(torch.split(t.reshape(-1), PIECE) for t in tensors), strict=True)


def shortened(after: State, before: State, factor: float) -> dict[str, Tensor]:
    """`after` with its update made `factor` times as long."""
    state = {}
    for name, tensor in after.items():
        state[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        for made, new, old in _pieces(state[name], tensor, before[name]):
            start = old.double()
            made.copy_(start + (new.double() - start) * factor)
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
        if not tensor.numel():
            continue
        step = size = 0.0
        for new, old in _pieces(tensor, before[name]):
            step += float((new.double() - old.double()).square().sum())
            size += float(old.double().square().sum())
        step, size = math.sqrt(step / tensor.numel()), math.sqrt(size / tensor.numel())
        if not step <= FARTHEST * max(size, 1.0):  # also where it is no number
            return name
    return ""
