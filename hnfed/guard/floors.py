"""How many cases and steps must stand behind an update that leaves: counted on the cases at hand.

A plan says how many cases it wants at most; how many there are, and which organs they annotate,
only the site knows. A phase that names an organ which one case annotates selects that case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

from core.data.cached_case import Entry, cases_of
from core.plan.schema import Phase, Plan
from core.wire.messages import Order
from hnfed.guard.rules import Policy, PolicyError

MOST_ORGAN = 0.9  # of a crop; what the background lacks is taken from the organs' weights


def require_entries(
    policy: Policy, plan: Plan, phase: Phase, order_round: int, entries: Sequence[Entry]
) -> None:
    """Requires that an update is made of enough cases and steps to hide each of them.

    A phase that sends no weights, or trains nothing, needs none. A phase with an organ that fewer
    than `fewest_cases_organ` cases here annotate, but more than none, is refused as a whole: its
    head row, and what it moves in the rest, would be theirs alone. An organ that no case here
    annotates is none of this site's rows, and does no harm. A case without a voxel of the organ in
    its crop counts as one that does not annotate it: a plan chooses the crop.

    Args:
        policy: of the site.
        plan: gives the batch.
        phase: of the order.
        order_round: from 1.
        entries: the site's prepared cases; of them those count that the phase would train on.

    Raises:
        PolicyError: names the key, and what there is; it stays in the site's log.
    """
    if phase.share == "none" or phase.rounds == 0:
        return
    entries = cases_of(entries, plan, phase, "train")
    found = len(distinct(entries))
    if found < policy.fewest_cases:
        raise PolicyError(f"fewest_cases: {found} distinct cases in phase {phase.name}")
    for organ in phase.organs:
        there = [e for e in entries if organ in e.annotated and e.voxels.get(organ, 0)]
        count = len(distinct(there))
        if 0 < count < policy.fewest_cases_organ:
            raise PolicyError(
                f"fewest_cases_organ: {count} distinct cases annotate {organ} in phase "
                f"{phase.name}, with a voxel of it in the crop"
            )
    taken = steps(plan, phase, len(entries))
    if taken < policy.fewest_steps:
        raise PolicyError(
            f"fewest_steps: {taken} in round {order_round} of phase {phase.name}: "
            f"{phase.local_epochs} epochs over {len(entries)} cases in batches of "
            f"{plan.train.batch}"
        )


def require_taken(
    policy: Policy, plan: Plan, phase: Phase, entries: Sequence[Entry], counts: tuple[int, int]
) -> None:
    """Requires that an update that was made has the floors: steps that were left out make nothing.

    A plan decides how often a step is left out: with ``train.amp: fp16`` and a heavy loss nearly
    all of a round overflow, and the update is that of the case which does not. Of a case that only
    such steps saw there is nothing in the update, so as many cases as may be of that kind count as
    absent.

    Args:
        policy: of the site.
        plan: gives the batch.
        phase: of the order.
        entries: training cases of the phase.
        counts: steps that were taken, and those that were left out.

    Raises:
        PolicyError: fewer steps, or cases, than the policy asks for; it stays in the site's log.
    """
    taken, left_out = counts
    if phase.share == "none" or phase.rounds == 0:
        return
    taken -= phase.keep_epochs * math.ceil(len(entries) / plan.train.batch)
    if taken < policy.fewest_steps:
        raise PolicyError(
            f"fewest_steps: {taken} taken in phase {phase.name}, {left_out} left out as not finite "
            "(the coordinator: train.amp=bf16 or off, smaller weights of the loss)"
        )
    unseen = left_out * plan.train.batch // (phase.local_epochs - phase.keep_epochs)
    groups = {"fewest_cases": entries} | {
        f"fewest_cases_organ, {organ}": [
            e for e in entries if organ in e.annotated and e.voxels.get(organ, 0)
        ]
        for organ in phase.organs
    }
    for key, group in groups.items():
        least = policy.fewest_cases if group is entries else policy.fewest_cases_organ
        if unseen and group and len(distinct(group)) - unseen < least:
            raise PolicyError(
                f"{key}: {left_out} steps left out in phase {phase.name} may be all that saw "
                f"{unseen} of {len(distinct(group))} cases (the coordinator: train.amp=bf16 or off)"
            )


def require_apart(
    policy: Policy, phase: Phase, own: Sequence[Entry], others: Mapping[str, Sequence[Entry]]
) -> None:
    """Requires that a cut of cases leaves none alone between two updates that leave.

    A plan does not know how many cases there are: one phase over all of them and one with a
    `max_cases` of one fewer differ by a single case, and so do their updates.

    Args:
        policy: of the site.
        phase: of the order.
        own: training cases of that phase.
        others: of the other phases here that send weights and that are cut, or all of them where
            `phase` is cut, by name.

    Raises:
        PolicyError: two sets differ, by fewer than `fewest_cases`; it stays in the site's log.
    """
    mine = distinct(own)
    for name, entries in others.items():
        if apart := too_few_apart(policy, mine, distinct(entries)):
            raise PolicyError(
                f"fewest_cases: phases {phase.name} and {name} differ by {apart} distinct cases"
            )


def too_few_apart(policy: Policy, one: Set[str], other: Set[str]) -> int:
    """By how many cases two sets differ, where these are too few to stand alone; 0 otherwise."""
    apart = len(one ^ other)
    return apart if apart < policy.fewest_cases else 0


def steps(plan: Plan, phase: Phase, cases: int) -> int:
    """Optimiser steps behind what leaves of one round; epochs of what stays do not count.

    All count whole: however long a plan's ramp, it slows a quarter of them at most
    (`core.training.optimisation.ramp`), and seven eighths of the rates' sum are left.
    """
    epochs = phase.local_epochs - phase.keep_epochs
    return epochs * math.ceil(cases / plan.train.batch)


def distinct(entries: Sequence[Entry]) -> set[str]:
    """One word for each CT among the entries: copies under other names are one."""
    return {e.image_sha256 or f"case {e.case}" for e in entries}


def require_order(policy: Policy, plan: Plan, phase: Phase, order: Order) -> None:
    """Requires that what comes with a round does not take the weight from all cases but a few.

    Class frequencies and organ factors are not in the plan: the server sends them with each order.

    Raises:
        PolicyError: a factor or frequency that no honest server would send.
    """
    if phase.share == "none":
        return
    static = [plan.weighting.organs.get(o, 1.0) for o in phase.organs]
    if order.organ_factors:
        weights = [1.0, *(w * f for w, f in zip(static, order.organ_factors, strict=True))]
        if min(weights) <= 0 or max(weights) / min(weights) > policy.largest_organ_ratio:
            raise PolicyError(f"largest_organ_ratio: {order.organ_factors} came with the order")
    pairs = list(zip(order.voxels, order.totals, strict=True))
    if not all(0 <= v <= t and math.isfinite(t) for v, t in pairs):
        raise PolicyError("class frequencies: an organ has more voxels than there are")
    if sum(v / t for v, t in pairs if t) > MOST_ORGAN:
        raise PolicyError("class frequencies: they leave next to no background")
