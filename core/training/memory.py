"""The memory of a step: kept for the next one, and in the order that the fast kernels want.

Kernels for channels-last are the faster ones, on a CPU and on a GPU: of convolutions, and above all
of instance norm, which for a batch of one has as many blocks as channels otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from core.processes import LIBC

LAST = torch.channels_last_3d
# From glibc's malloc.h: no allocation of its own mapping, nothing given back by itself, and 256 MB
# taken from the system at a time.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEPT = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 256 * 1024**2}


@contextmanager
def kept_heap(device: torch.device) -> Iterator[None]:
    """On a CPU, keeps what is freed within it, and gives it back to the system at its end.

    glibc gives each large activation back as it is freed, and takes it again in the next step:
    page faults, up to 40 % of a step. What is kept costs half as much memory again. The settings
    are the process's and stay; only the memory goes. Where the C library is another, or its
    variables of the environment (MALLOC_...) say how, no setting is changed.
    """
    libc = LIBC if device.type == "cpu" and hasattr(LIBC, "malloc_trim") else None
    if libc is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        for option, value in KEPT.items():
            libc.mallopt(option, value)
    try:
        yield
    finally:
        if libc is not None:
            libc.malloc_trim(0)


def to_device(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """Moves a network; its weights get the order channels-last where asked for."""
    if channels_last:
        for parameter in _kernels(model):
            # `contiguous` would keep the strides of a weight with one channel.
            parameter.data = parameter.data.to(memory_format=LAST)
    return model.to(device)


def laid_out(image: Tensor, model: nn.Module) -> Tensor:
    """The image (B, C, Z, Y, X) in the order of the network's weights.

    An image of one channel lies in both orders at once, and torch then takes channels-first for
    the layers that follow: its strides must say which is meant.
    """
    first = next((kernel for kernel in _kernels(model) if kernel.shape[1] > 1), None)
    if first is None or not first.is_contiguous(memory_format=LAST):
        return image
    return image.to(memory_format=LAST)


def _kernels(model: nn.Module) -> Iterator[nn.Parameter]:
    """Weights (C_out, C_in, Z, Y, X) of more than one voxel; of one, both orders are the same."""
    return (p for p in model.parameters() if p.dim() == 5 and p.shape[2:].numel() > 1)
