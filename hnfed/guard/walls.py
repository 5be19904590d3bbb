"""The walls of one message's worker, as values for its first frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hnfed.guard.policy import Policy
from hnfed.guard.sandbox import Walls, enforceable, gpu_devices, require_outside, runtime_paths


def walls_of(
    policy: Policy,
    device: str,
    *,
    read: Sequence[Path],
    write: Sequence[Path],
    secrets: Sequence[Path],
) -> dict[str, Any] | None:
    """What the worker may open; None on a machine without walls, where the policy allows that.

    Args:
        policy: of the site.
        device: auto | cpu | cuda:N.
        read: files and folders beside Python's own.
        write: folders.
        secrets: that must lie outside of all these.

    Raises:
        UserError: a secret lies inside.
    """
    return None
