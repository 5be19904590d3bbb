"""How long each site's update was, and how far it points where the average went."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from core.wire.state import inner_product, length
from server.guards import Accepted

State = Mapping[str, Tensor]
PLACES = 6


def update_measures(
    good: Mapping[str, Accepted], before: State, after: State
) -> dict[str, dict[str, float | None]]:
    """By site ``norm``, the Euclidean length, and ``cosine`` with the change of the shared weights.

    Args:
        good: accepted replies by site, as they were averaged.
        before: weights that the sites were sent.
        after: the same names after the average.

    Returns:
        {} where no weights came; a cosine with an update of length 0 is None.
    """
    found: dict[str, dict[str, float | None]] = {}
    states = {site: one.state for site, one in good.items() if one.state}
    names = next(iter(states.values()), {})  # those of every site
    whole = length({name: after[name] for name in names}, before)
    for site, state in states.items():
        norm = length(state, before)
        inner = inner_product(state, after, before)
        cosine = round(inner / (norm * whole), PLACES) if norm * whole > 0 else None
        found[site] = {"norm": round(norm, PLACES), "cosine": cosine}
    return found
