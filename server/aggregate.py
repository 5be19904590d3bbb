"""Aggregation: the strategy's average, then the rows of the head, which are ours (D11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from core.plan.schema import Phase, Plan
from core.wire.messages import Description
from server.enrolment import declared
from server.guards import Accepted
from server.strategy import ARRAYS, METRICS, WEIGHT, Aggregator, build_strategy, trimmed

State = Mapping[str, Tensor]


def aggregate(
    plan: Plan,
    phase: Phase,
    described: Mapping[str, Description],
    heads: Sequence[str],
    state: State,
    good: Mapping[str, Accepted],
    round_: int,
) -> tuple[dict[str, Tensor], list[str]]:
    """All accepted replies of a round -> the next weights.

    Args:
        plan: names the strategy.
        phase: of the round.
        described: what each site said of itself; used where a reply tells no counts.
        heads: names of the parameters whose dim 0 is (background, organ 1, ...).
        state: all weights before the round.
        good: accepted replies by site; their messages become those that the strategy averages.
        round_: number of the round.

    Returns:
        The new weights, and what a reader of the journal should know.
    """
    settings, sites, notes = plan.federation.strategy, sorted(good), []
    told = all(good[s].result.annotated for s in sites)
    if not told and settings.by_rows:
        notes.append("not every site tells its counts: all sites weigh equally")
    if settings.name == "trimmed-mean" and not trimmed(settings, len(good)):
        notes.append(f"round {round_}: nothing is trimmed from {len(good)} updates")
    strategy = build_strategy(settings, len(good))
    new = average(strategy, round_, state, good, equal=not told or not settings.by_rows)
    if not settings.by_rows:
        return new, notes
    weights = [
        [float(c) for c in good[s].result.annotated]
        if told
        else declared(described[s], plan, phase)
        for s in sites
    ]
    new, kept = aggregate_head(state, new, [good[s].state for s in sites], weights, heads)
    if kept:
        names = ", ".join(phase.organs[c] for c in kept)
        notes.append(f"round {round_}: nobody annotates {names}; the head keeps its rows")
    return new, notes


def average(
    strategy: Aggregator, round_: int, state: State, good: Mapping[str, Accepted], *, equal: bool
) -> dict[str, Tensor]:
    """The strategy's average of the replies, sorted by site, into a copy of `state`.

    Args:
        strategy: Flower's.
        round_: number of the round.
        state: all weights before the round.
        good: accepted replies by site; their messages become those that the strategy averages.
        equal: every site weighs 1 instead of its training cases.
    """
    replies = []
    for site in sorted(good):
        message = good[site].message
        assert message is not None
        arrays = ArrayRecord(dict(good[site].state))
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
