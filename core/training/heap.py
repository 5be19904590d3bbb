"""The memory of a step, kept for the next one instead of being asked for again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core.processes import LIBC

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
