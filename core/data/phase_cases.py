"""Which of a site's prepared cases a phase uses: alike where it trains and where it is guarded."""

from __future__ import annotations

from collections.abc import Sequence

from core.data.cached_case import Entry
from core.plan.schema import Phase, Plan
from core.wire.partition import seed_of


def cases_of(entries: Sequence[Entry], plan: Plan, phase: Phase, split: str) -> list[Entry]:
    """The cases of a split that annotate an organ of the phase.

    With `phase.max_cases` only so many training cases, those with most of the organs first and
    then by a seeded draw, so that a smaller number is always a part of a larger one.

    Args:
        entries: prepared cases, of any split.
        plan: gives the seed.
        phase: gives the organs and `max_cases`.
        split: train, val or test.
    """
    wanted = set(phase.organs)
    found = [e for e in entries if e.split == split and e.annotated & wanted]
    if split != "train" or phase.max_cases is None:
        return found
    ranked = sorted(
        found,
        key=lambda e: (-len(e.annotated & wanted), seed_of(plan.seed, "max_cases", e.case)),
    )
    chosen = {e.case for e in ranked[: phase.max_cases]}
    return [e for e in found if e.case in chosen]
