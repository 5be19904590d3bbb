"""Aggregation: the strategy's average, then the rows of the head, which are ours (D11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.app import MetricRecord, RecordDict
from torch import Tensor

from server.guards import Accepted
from server.strategy import ARRAYS, METRICS, WEIGHT, Aggregator

State = Mapping[str, Tensor]


def average(
    strategy: Aggregator, round_: int, state: State, good: Mapping[str, Accepted], *, equal: bool
) -> dict[str, Tensor]:
    """The strategy's average of the replies, sorted by site, into a copy of `state`.

    Args:
        strategy: Flower's.
        round_: number of the round.
        state: all weights before the round.
        good: accepted replies by site; their messages are emptied of everything but the weights.
        equal: every site weighs 1 instead of its training cases.
    """
    replies = []
    for site in sorted(good):
        message = good[site].message
        arrays = message.content[ARRAYS]
        weight = 1.0 if equal else float(good[site].result.cases)
        message.content = RecordDict({ARRAYS: arrays, METRICS: MetricRecord({WEIGHT: weight})})
        replies.append(message)
    averaged, _ = strategy.aggregate_train(round_, replies)
    assert averaged is not None
    new = dict(state)
    for name, tensor in averaged.to_torch_state_dict().items():
        new[name] = tensor.to(state[name].dtype)
    return new


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
        averaged: weights after the strategy's own aggregation (body and background row stay).
        updates: the sites' weights, sorted by site.
        annotated: for each update, the weight of each organ (cases that annotate it).
        heads: names of the parameters whose dim 0 is (background, organ 1, ...).

    Returns:
        The new state and the organs (0-based) that nobody annotated: their rows are kept.
    """
    state = dict(averaged)
    totals = [sum(column) for column in zip(*annotated, strict=True)]
    for name in heads:
        head = state[name].clone()
        for c, total in enumerate(totals, start=1):
            if total <= 0:
                head[c] = previous[name][c]
                continue
            row = head.new_zeros(head[c].shape).double()
            for update, weights in zip(updates, annotated, strict=True):
                row = row + update[name][c].double() * (weights[c - 1] / total)
            head[c] = row.to(head.dtype)
        state[name] = head
    return state, [c for c, total in enumerate(totals) if total <= 0]
