"""What a plan would do at a site, in words for those who must agree to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.data.cached_case import Entry, cases_of
from core.errors import UserError
from core.files import read_bounded
from core.models.stages import unique_state
from core.plan.load import PLAN_BYTES, load, plan_from_json, plan_hash
from core.plan.schema import SPLITS, Phase, Plan
from core.text import shown
from core.wire.partition import parts_of, size_bytes
from core.wire.state import in_bytes
from hnfed.guard.floors import distinct, require_entries
from hnfed.guard.outline import outline_if_possible
from hnfed.guard.policy import Policy, PolicyError, require_plan

SHARED = (
    "numbers of cases and of voxels by organ, losses, and sums of Dice and HD95 by organ over the "
    "validation and test cases"
)
WEIGHTS = {
    "any": "  but weights are made of images: whoever takes over the coordinator's machine can "
    "send some that make a reply show one CT (policy.yaml: weights: any; docs/privacy.md)",
    "agreed": "  works with no weights but those that this machine derives itself, from the plan's "
    "seed and from what the sites signed; who has taken over the coordinator's machine needs "
    "the help of one of them to send others (docs/privacy.md)",
}
PERSONAL = (
    "scores by organ, emptied where fewer than {cell} cases, or fewer in which the organ was "
    "found, stand behind them"
)


def in_words(
    plan: Plan, site: str, policy: Policy, entries: Sequence[Entry] | None = None
) -> list[str]:
    """Lines for a screen: what is trained here, on how many cases, what leaves, what stays.

    Args:
        plan: to be approved.
        site: this site's name.
        policy: of the site.
        entries: its prepared cases; None where they were not opened.

    Raises:
        UserError: a network that cannot be built.
    """
    own = [phase for phase in plan.phases if site in phase.sites]
    leaving = any(p.share != "none" and p.rounds for p in own)
    lines = [f"plan {plan_hash(plan)}", f"  at {site}: {len(own)} of {len(plan.phases)} phases"]
    try:
        require_plan(plan, site, policy)
        lines.append("  policy.yaml allows it")
    except PolicyError as error:
        lines.append(f"  policy.yaml refuses it: {error}")
    read = ", ".join(plan.organ_names)
    lines.append(f"  reads: CTs, and contours of {read}")
    for phase in own:
        lines += _phase(plan, phase, site, policy, entries)
    lines += [
        "  before the first round: numbers of cases, of annotated cases and of voxels by organ, "
        "and how often what was left out and why",
        f"  again: each round's task is answered up to {policy.most_answers} times, over all runs "
        "of this plan (most_answers)",
        "  never: images, contours, case ids, file names, figures of single cases",
        *([WEIGHTS[policy.weights]] if policy.weights != "any" or leaving else []),
        "  before it is approved: compare the SHA-256 above with the coordinator's, by phone",
    ]
    return [shown(line) for line in lines]


def _phase(
    plan: Plan, phase: Phase, site: str, policy: Policy, entries: Sequence[Entry] | None
) -> list[str]:
    others = [s for s in phase.sites if s != site]
    company = f"with {', '.join(others)}" if others else "this site alone"
    epochs = phase.rounds * phase.local_epochs
    thaws = "".join(f", {part} trains from round {r} on" for part, r in phase.thaw.items())
    lines = [
        f"  phase {phase.name}, {company}: {phase.rounds} rounds of {phase.local_epochs} epochs, "
        f"{epochs} in all",
        f"    organs: {', '.join(phase.organs)}",
        f"    network: {plan.model.name}, starts from {phase.init}, frozen: {phase.freeze}{thaws}",
    ]
    lines += [f"    {line}" for line in _traffic(plan, phase, policy)]
    lines.append(f"    cases: {_cases(plan, phase, policy, entries)}")
    return lines


def _traffic(plan: Plan, phase: Phase, policy: Policy) -> list[str]:
    """What leaves in a phase, with how many numbers, and what stays."""
    model = outline_if_possible(plan, phase)
    parts, state = parts_of(model, plan, phase), unique_state(model)
    bits = plan.federation.update_bits

    def size(names: Sequence[str]) -> tuple[int, int, int]:
        tensors = [state[n] for n in names]
        scales = [len(t) for t in tensors if bits == 8 and in_bytes(t)]  # a tensor by themselves
        numbers = sum(t.numel() for t in tensors) + sum(scales)
        return len(tensors) + len(scales), numbers, size_bytes(state, names, bits)

    cell = max(policy.min_cell, plan.federation.min_cell)
    tensors, numbers, total_bytes = size(parts.shared)
    rounds = phase.rounds
    leaves = "leaves: no weight; " + PERSONAL.format(cell=cell)
    if parts.shared and rounds:
        leaves = (
            f"leaves: each round {tensors} tensors of {numbers:,} numbers; in {rounds} rounds "
            f"{tensors * rounds:,} tensors, {numbers * rounds:,} numbers, "
            f"{total_bytes * rounds / 1e6:,.1f} MB; {SHARED}"
        )
    elif phase.share != "none":
        leaves = f"leaves: no weight, nothing is trained; {SHARED}"
    kept = [
        f"{text} ({size(names)[1]:,} numbers)"
        for text, names in (
            ("weights trained here for here", parts.personal),
            ("what is frozen, which came from the server", parts.frozen),
        )
        if names
    ]
    return [leaves, f"stays: {', '.join(kept) or 'no weight of its own'}"]


def _cases(plan: Plan, phase: Phase, policy: Policy, entries: Sequence[Entry] | None) -> str:
    if entries is None:
        most = f"at most {phase.max_cases} for training" if phase.max_cases else "all"
        return f"{most} that annotate one of these organs (give --site SITE.yaml to count them)"
    found: dict[str, Any] = {s: cases_of(entries, plan, phase, s) for s in SPLITS}
    counts = ", ".join(f"{s} {len(distinct(es))}" for s, es in found.items())
    rows = ", ".join(f"{o} {sum(o in e.annotated for e in found['train'])}" for o in phase.organs)
    try:
        require_entries(policy, plan, phase, 1, entries)
    except PolicyError as error:
        return f"{counts}; in training {rows}; policy.yaml refuses: {error}"
    return f"{counts}; in training {rows}"


def plan_of(text: str) -> Plan:
    """A plan from what a person names: a shipped plan, a YAML file, or a plan as JSON.

    Raises:
        UserError: none of them, or one that makes no sense.
    """
    path = Path(text)
    if path.suffix == ".json" and path.exists():
        try:
            return plan_from_json(read_bounded(path, PLAN_BYTES).decode("utf-8"))
        except (ValueError, OSError) as error:
            raise UserError("--plan", text, "give a plan", problem="no JSON") from error
    return load(text)[0].plan
