"""What of a simulation can be known before anything is prepared: device, limits, splits."""

from __future__ import annotations

import math
import resource

import torch

from core.archives.splits import shares_of
from core.errors import UserError
from core.plan.schema import Config
from core.training.optimisation import make_scaler
from core.training.ranks import devices_of, require_batch

# Ray's processes map memory that they never use: 8 GB of address space leave a run without sites,
# 14 GB are enough on two cores.
RAY_SPACE_BYTES = 12 * 1024**3


def require_runnable(config: Config) -> None:
    """Requires that this machine has the device, that it can compute so, and that splits add up.

    Raises:
        UserError: names the key of the configuration.
    """
    if not elsewhere(config):
        make_scaler(config.train, devices_of_site(config)[0])
    if config.simulation.engine == "ray":
        require_space(resource.getrlimit(resource.RLIMIT_AS)[0])
    for name, site in config.simulation.sites.items():
        if not site.splits:
            shares_of(site.split, f"simulation.sites.{name}.split")


def elsewhere(config: Config) -> bool:
    """Whether sites compute on GPUs of a cluster's nodes, which this machine cannot look at."""
    return bool(config.simulation.ray and config.simulation.gpus_per_site)


def devices_of_site(config: Config) -> tuple[torch.device, ...]:
    """The devices of one site's processes. Ray gives a site some of the GPUs that are named.

    Raises:
        UserError: names ``simulation.device``, or a batch too small for them.
    """
    simulation = config.simulation
    devices = devices_of(simulation.device, "simulation.device")
    if simulation.engine == "ray" and devices[0].type == "cuda":
        all_named = 1 if simulation.device in ("auto", "cuda") else len(devices)
        devices = devices[: math.ceil(simulation.gpus_per_site) or all_named]
    require_batch(config.train.batch, devices, "simulation.device")
    return devices


def told_device(config: Config) -> str:
    """`simulation.device` as a site is told it: under Ray it sees its own GPUs alone, from 0."""
    device = config.simulation.device
    if elsewhere(config):
        return "cuda" if device.startswith("cuda") else device
    gpus = devices_of_site(config)[0].type == "cuda"
    return "cuda" if gpus and config.simulation.engine == "ray" else device


def require_space(allowed: int) -> None:
    """Requires address space for Ray; with too little its processes abort, or wait for each other.

    Args:
        allowed: bytes that a process may map (``ulimit -v``), or `resource.RLIM_INFINITY`.

    Raises:
        UserError: names the limit.
    """
    if allowed == resource.RLIM_INFINITY or allowed >= RAY_SPACE_BYTES:
        return
    raise UserError(
        "ulimit -v",
        f"{allowed / 1024**3:.1f} GB of address space",
        "lift it (ulimit -v unlimited) and bound memory by a container or a cgroup instead, or set "
        "simulation.engine=inline",
        problem=f"Ray's processes map more than {RAY_SPACE_BYTES // 1024**3} GB",
    )
