"""What secure aggregation rules out is said where a plan is read, with the remedy."""

from __future__ import annotations

from core.errors import UserError
from core.plan.schema import Phase, Plan
from core.secure.masked_sum import FEWEST

KEY = "federation.secure_aggregation"
ALL = "all-sites"  # stands where the name of a site does, for what is summed over all of them


def check_secure(plan: Plan) -> None:
    """Requires that all that a plan asks for can be had from sums over all of its sites.

    Raises:
        UserError: names the key that cannot be kept.
    """
    if not plan.federation.secure_aggregation:
        return
    settings, shared = plan.federation, [p for p in plan.phases if p.share != "none"]
    if not settings.strategy.by_rows:
        raise UserError(
            "federation.strategy.name",
            settings.strategy.name,
            f"write fedavg or fedprox, or {KEY}: false",
            problem="it needs each site's update or their plain mean, and the server learns sums "
            "weighted by cases only",
        )
    if settings.guards.norm == "reject":
        remedy = "write clip (each site then shortens its own update), or off"
        problem = "no update of one site can be left out of a sum"
        raise UserError("federation.guards.norm", "reject", remedy, problem=problem)
    if settings.update_bits != 32:
        problem = "masked numbers have 32 bits: the sum of all sites must fit below the largest"
        remedy = f"write 32, or {KEY}: false"
        raise UserError("federation.update_bits", settings.update_bits, remedy, problem=problem)
    for phase in shared:
        _check_phase(phase, shared[0])
    sites = len(shared[0].sites) if shared else 0
    if settings.min_sites not in (0, sites):
        raise UserError(
            "federation.min_sites",
            settings.min_sites,
            "leave it out",
            problem=f"a sum needs all {sites} sites: over fewer, the difference of two rounds "
            "would tell what the missing one holds",
        )


def _check_phase(phase: Phase, first: Phase) -> None:
    key = f"phases.{phase.name}"
    if len(phase.sites) < FEWEST:
        remedy = f"add sites until there are {FEWEST}, write share: none, or {KEY}: false"
        problem = f"a sum over {len(phase.sites)} sites tells each what the other holds"
        raise UserError(f"{key}.sites", phase.sites, remedy, problem=problem)
    if set(phase.sites) != set(first.sites):
        remedy = f"give it the sites of phase {first.name}, or write share: none"
        problem = "the difference of sums over other sites would tell what few sites hold"
        raise UserError(f"{key}.sites", phase.sites, remedy, problem=problem)
    if ALL in phase.sites:
        raise UserError(f"{key}.sites", ALL, "call the site something else: sums bear that name")
    if phase.max_cases is not None:
        problem = "which organs are left among fewer cases is known at each site alone"
        raise UserError(f"{key}.max_cases", phase.max_cases, "leave it out", problem=problem)
