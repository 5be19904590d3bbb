"""Where `hnfed grid` runs cells: what its options say, and the place that they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.archives.parallel import cpus
from core.plan.load import typed, value_of
from core.plan.schema import Simulation
from core.plan.validate import require_address
from simulations.cell import Wanted
from simulations.places import local
from simulations.places.place import Place


@dataclass(frozen=True)
class Where:
    """Where the cells of a grid are to run.

    Attributes:
        on: ``local``, ``ray`` or ``slurm``.
        jobs: cells side by side; None leaves it to the place.
        slurm: settings of submitit, for ``slurm``.
        ray: `ray` and `ray_insecure` of it, for ``ray``.
    """

    on: str = local.NAME
    jobs: int | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)
    ray: Simulation = field(default_factory=Simulation)


def of_the_cluster(overrides: Sequence[str]) -> tuple[list[str], Simulation]:
    """The overrides for the cells, and those that name the Ray cluster for ``--on ray``.

    A cell there is a run on one node, and joins nothing.

    Raises:
        UserError: what no cluster can have.
    """
    rest, found = [], {}
    for item in overrides:
        key, _, text = item.partition("=")
        section, _, name = key.partition(".")
        if section == "simulation" and name in ("ray", "ray_insecure"):
            found[name] = value_of(key, text)
        else:
            rest.append(item)
    simulation = typed(Simulation, found, "simulation")
    require_address(simulation)
    return rest, simulation


def opened(
    where: Where, out: Path, wishes: Sequence[Wanted], lock: int
) -> AbstractContextManager[Place]:
    """The place; what is imported for it is slow, or not installed everywhere.

    Args:
        where: as the command has it.
        out: folder of the cells.
        wishes: of all cells that may run.
        lock: file descriptor of the folder's lock.

    Raises:
        UserError: there is no such place here.
    """
    if where.on == "ray":
        from simulations.cluster import cluster_of
        from simulations.places import on_ray

        cluster = cluster_of(where.ray, needed=True)
        assert cluster is not None
        most = [max(need) for need in zip(*(w.needs_at_most for w in wishes), strict=True)]
        return on_ray.opened(out, cluster, {"CPU": float(most[0]), "GPU": most[1]})
    if where.on == "slurm":
        from simulations.places import on_slurm

        return on_slurm.opened(out, where.slurm, where.jobs)
    return local.opened(max(1, cpus() // max(wish.cpus for wish in wishes)), lock)
