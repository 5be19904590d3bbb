"""A site whose scores of the incoming weights stand out: labels swapped, or another anatomy.

All sites score the same weights in a round (D4). Where the others find an organ well and one site
does not, twice in a row, its labels are in doubt before its scans are: the coordinator is told.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from core.metrics.scores import OrganSum

FEWEST = 3  # sites that score an organ: with two nothing says which is the odd one
MEDIAN_ABSOLUTE_DEVIATIONS = 4.0
SMALLEST_GAP, SMALLEST_DICE = 0.25, 0.3
Sums = Mapping[str, Mapping[str, OrganSum]]


def standing_out(sums: Sums) -> dict[str, list[str]]:
    """Organs by site that it scores far below what the other sites do.

    Far is more than four median absolute deviations of the others, and at least 0.25 Dice, below
    their median of at least 0.3.

    Args:
        sums: val sums of the same weights by site and organ.
    """
    found: dict[str, list[str]] = {}
    for organ in sorted({o for organs in sums.values() for o in organs}):
        cells = {s: m[organ] for s, m in sums.items() if organ in m and m[organ].n > 0}
        dice = {s: c.dice / c.n for s, c in cells.items()}
        if len(dice) < FEWEST:
            continue
        for site, own in dice.items():
            others = [d for s, d in dice.items() if s != site]
            middle = statistics.median(others)
            spread = statistics.median(abs(d - middle) for d in others)
            gap = max(MEDIAN_ABSOLUTE_DEVIATIONS * spread, SMALLEST_GAP)
            if middle >= SMALLEST_DICE and middle - own > gap:
                found.setdefault(site, []).append(organ)
    return found


def repeated(
    before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """What stood out in both of two rounds."""
    both = {s: [o for o in organs if o in before.get(s, ())] for s, organs in now.items()}
    return {s: organs for s, organs in both.items() if organs}


def words(site: str, organs: Sequence[str]) -> str:
    """What the coordinator is told of a site; no score is in it (D5)."""
    if not organs:
        return f"{site} stands out (on which organs is not told: too few cases)"
    listed = ", ".join(organs)
    pairs = [o for o in organs if o.endswith("_L") and f"{o[:-2]}_R" in organs]
    if pairs:
        return f"{site} stands out on {listed}: are left and right swapped in its labels?"
    return f"{site} stands out on {listed}: are these contours, or their names, what others have?"
