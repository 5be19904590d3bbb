"""The walls of one message's worker: what this site's policy asks for, as values for its frame."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hnfed.guard.policy import Policy
from hnfed.guard.sandbox import (
    Walls,
    enforceable,
    gpu_devices,
    require,
    require_outside,
    runtime_paths,
)

GIB = 2**30


@functools.cache
def warning_of(mode: str) -> str:
    """Holds a policy's `sandbox` against this machine, once; a warning, or "".

    Raises:
        UserError: it is required, and cannot be enforced.
    """
    return require("required" if mode == "required" else "preferred", enforceable())


def walls_of(
    policy: Policy,
    devices: Sequence[str],
    *,
    read: Sequence[Path],
    write: Sequence[Path],
    secrets: Sequence[Path],
) -> dict[str, Any] | None:
    """What the worker may open; None on a machine without walls, where the policy allows that.

    Args:
        policy: of the site.
        devices: of its processes, ``cpu`` or ``cuda:N`` each; they share the policy's memory.
        read: files and folders beside Python's own.
        write: folders.
        secrets: that must lie outside of all these.

    Raises:
        UserError: walls are required and cannot be enforced, or a secret lies inside.
    """
    if warning_of(policy.sandbox):
        return None
    walls = Walls(
        read=(*runtime_paths(), *(path.resolve() for path in read if path.exists())),
        write=tuple(path.resolve() for path in write),
        devices=gpu_devices() if any(name.startswith("cuda") for name in devices) else (),
        memory_bytes=int(policy.memory_gb * GIB) // len(devices),
    )
    require_outside(walls, *secrets)
    return {
        "read": [str(path) for path in walls.read],
        "write": [str(path) for path in walls.write],
        "devices": [str(path) for path in walls.devices],
        "memory_bytes": walls.memory_bytes,
    }
