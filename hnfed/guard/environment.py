"""What of the environment the processes of a site are given: an allow-list.

The account's environment may hold keys of other programs, a proxy's password, or a variable that
changes how a library behaves. What stands in no list below is not handed on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

# The machine: where programs and libraries are, its language and clock, its GPUs and cores.
MACHINE: Final = frozenset({
    "PATH", "LD_LIBRARY_PATH", "LANG", "LANGUAGE", "TZ",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
})  # fmt: skip
LANGUAGE: Final = "LC_"
# The account, and the way out through a clinic's proxy: for the process that dials, alone.
NODE: Final = frozenset({
    "HOME", "USER", "LOGNAME", "TMPDIR",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy",
})  # fmt: skip
# No telemetry, no look for updates, and one form of output, whatever the account has set.
FIXED: Final = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_MODE": "disabled",
}


def node_environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """For the process of a site that talks to the server.

    Args:
        given: what is filtered; None for this process's own environment.
    """
    return _of(os.environ if given is None else given, MACHINE | NODE) | FIXED


def worker_environment(scratch: Path, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """For the process that runs a bundle's code: nothing of the account, no proxy.

    Args:
        scratch: folder that it may write: its home, and the place of its temporary files.
        given: what is filtered; None for this process's own environment.
    """
    own = {"HOME": str(scratch), "TMPDIR": str(scratch), "USER": "hnfed", "LOGNAME": "hnfed"}
    return _of(os.environ if given is None else given, MACHINE) | own | FIXED


def _of(given: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    return {k: v for k, v in given.items() if k in names or k.startswith(LANGUAGE)}
