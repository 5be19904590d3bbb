"""An update much longer than the round's median is shortened, or refused (guard of the plan)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from core.plan.schema import Guards
from core.wire.state import length, packed, shortened
from server.guards import Accepted, on_disk

# With two updates nothing says which of them is the odd one.
FEWEST = 3


def limit(
    good: Mapping[str, Accepted], before: Mapping[str, Tensor], guards: Guards, folder: Path
) -> tuple[dict[str, Accepted], dict[str, float], list[str]]:
    """Holds each update against the median length of the round's updates.

    Args:
        good: accepted replies by site.
        before: weights that the sites were sent.
        guards: `norm` is ``clip``, ``reject`` or ``off``; `norm_factor` the multiple of the median.
        folder: where shortened updates wait (`server.guards.on_disk`).

    Returns:
        The replies that remain; by site the factor that its update was shortened by; and the sites
        whose updates are refused.
    """
    if guards.norm == "off" or len(good) < FEWEST:
        return dict(good), {}, []
    lengths = {site: length(one.state, before) for site, one in good.items()}
    longest = guards.norm_factor * statistics.median_low(lengths.values())
    odd = [site for site, length in lengths.items() if length > longest > 0]
    if guards.norm == "reject":
        return {s: one for s, one in good.items() if s not in odd}, {}, odd
    factors = {site: longest / lengths[site] for site in odd}
    kept = {
        site: replace(
            one, state=on_disk(packed(shortened(one.state, before, factors[site])), folder)
        )
        if site in factors
        else one
        for site, one in good.items()
    }
    return kept, factors, []
