"""What of this machine a simulated site is given under Ray, and how many fit beside each other."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from core.archives.parallel import cpus
from core.plan.schema import Config, Plan
from core.training.ranks import devices_of
from simulations.cluster import Cluster
from simulations.foresight import devices_of_site
from simulations.launch import Clients
from simulations.memory_probe import Rehearsal, rehearse
from simulations.threads import threads_by_phase

USED = 0.8  # of a GPU's free memory: each process has the driver's own beside its tensors


def room_for(
    config: Config, sites: int, release: str, probe: Callable[[Plan, str], Rehearsal] = rehearse
) -> Clients:
    """The sites of a run as processes: each with cores or GPUs, and so many at a time as have them.

    On GPUs a step of the plan is taken first. Where several sites share one, they are as many as it
    has memory for, whatever `gpus_per_site` says.

    Args:
        config: of the simulation.
        sites: how many.
        release: see `Clients`.
        probe: takes a step on a device.

    Raises:
        UserError: not even one fits.
    """
    simulation, devices = config.simulation, devices_of_site(config)
    if devices[0].type == "cpu":
        each = max(simulation.cpus_per_site, len(devices))
        share = simulation.gpus_per_site if simulation.device == "cpu" else 0.0
        at_once = max(1, cpus() // each)
        threads = threads_by_phase(config.plan, at_once, cpus()) if len(devices) == 1 else {}
        return Clients(sites, each, share, at_once, release, threads=threads)
    each, share = simulation.cpus_per_site, simulation.gpus_per_site or float(len(devices))
    step = probe(config.plan, "cuda:" + ",".join(str(device.index) for device in devices))
    if share < 1:
        fitting = max(1, int(USED * step.free_bytes / step.peak_bytes))
        if 1 / share > fitting:
            print(f"a step takes {step.peak_bytes / 1e9:.1f} GB: {fitting} at a time on a GPU")
            share = 1 / fitting
    elif not simulation.gpus_per_site and len(devices) == 1:
        print("one site at a time on a GPU; simulation.gpus_per_site=0.5 lets two share it")
    usable = devices_of(simulation.device)
    at_once = max(1, min(cpus() // each, int(len(usable) / share + 1e-6)))
    return Clients(sites, each, share, at_once, release, visible=visible(usable))


def room_on(cluster: Cluster, config: Config, sites: int, release: str) -> Clients:
    """The sites of a run as processes on a cluster, which itself finds them room."""
    simulation = config.simulation
    each, share = simulation.cpus_per_site, simulation.gpus_per_site
    return Clients(sites, each, share, sites, release, cluster)


def visible(devices: tuple[torch.device, ...]) -> str:
    """CUDA_VISIBLE_DEVICES for those of the GPUs that this process sees."""
    given = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    return ",".join(given[d.index] if given else str(d.index) for d in devices)
