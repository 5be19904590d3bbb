"""Baselines by the same engine and step budget: each site alone, and all data in one place."""

from __future__ import annotations

from dataclasses import replace

from core.errors import UserError
from core.plan.schema import Config, Phase

POOLED = "pooled"


def with_baseline(config: Config) -> Config:
    """Rewrites the phases for ``simulation.baseline``; epochs and everything else stay as they are.

    ``local-only``: every phase once for each of its sites, alone, named PHASE-SITE.
    ``pooled``: one site that holds the cases of all sites of the phases (the "mixed" model).
    The quorum and secure aggregation fall away: every phase has one site.
    """
    kind = config.simulation.baseline
    if not kind:
        return config
    sites = {n: s for n, s in config.simulation.sites.items() if n in config.site_names}
    if kind == "pooled":
        phases = [replace(p, sites=[POOLED]) for p in config.phases]
    else:
        phases = [p for phase in config.phases for p in _alone(config, phase)]
    return replace(
        config,
        phases=phases,
        federation=replace(config.federation, min_sites=0, secure_aggregation=False),
        simulation=replace(config.simulation, sites=sites),
    )


def _alone(config: Config, phase: Phase) -> list[Phase]:
    earlier = {p.name: p for p in config.phases}
    phases = []
    for site in phase.sites:
        init = phase.init
        if init in earlier:
            if site not in earlier[init].sites:
                raise UserError(
                    f"phases.{phase.name}.sites",
                    site,
                    f"add it to phases.{init}.sites: alone it must have trained that phase",
                )
            init = f"{init}-{site}"
        phases.append(replace(phase, name=f"{phase.name}-{site}", sites=[site], init=init))
    return phases
