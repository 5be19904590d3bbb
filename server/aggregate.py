"""Aggregation of what is ours: the rows of the head, each by the cases that annotate its organ (D11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

State = Mapping[str, Tensor]


def aggregate_head(
    previous: State,
    averaged: State,
    updates: Sequence[State],
    annotated: Sequence[Sequence[float]],
    heads: Sequence[str],
) -> tuple[dict[str, Tensor], list[int]]:
    """Overwrites the organ rows of the head in the averaged weights.

    Args:
        previous: weights before the round.
        averaged: weights after the strategy's own aggregation (body and background row stay as they are).
        updates: the sites' weights, sorted by site.
        annotated: for each site, the weight of each organ (cases that annotate it); one row per update.
        heads: names of the parameters whose dim 0 is (background, organ 1, ...).

    Returns:
        The new state and the organs (0-based) that nobody annotated: their rows are the previous ones.
    """
    state = dict(averaged)
    organs = len(annotated[0]) if annotated else 0
    kept = [c for c in range(organs) if sum(row[c] for row in annotated) <= 0]
    for name in heads:
        if name not in state:
            continue
        head = state[name].clone()
        for c in range(organs):
            total = sum(row[c] for row in annotated)
            if total <= 0:
                head[c + 1] = previous[name][c + 1]
                continue
            head[c + 1] = sum(
                (u[name][c + 1].double() * (row[c] / total) for u, row in zip(updates, annotated, strict=True)),
                start=head.new_zeros(head[c + 1].shape).double(),
            ).to(head.dtype)
        state[name] = head
    return state, kept
