"""Aggregation: the strategy's average, then the rows of the head, which are ours (D11)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from core.plan.schema import Phase, Plan, Strategy
from core.wire.messages import Description
from core.wire.partition import still_at
from server.enrolment import declared
from server.guards import Accepted
from server.strategy import (
    ARRAYS,
    METRICS,
    STRATEGIES,
    WEIGHT,
    Moments,
    State,
    build_strategy,
    moments_of,
    trimmed,
)

# Numbers that are averaged at once, those of all sites together, so that memory does not grow with
# the sites; and the fewest of one site, below which time would go into starting each part: from 64
# sites on memory grows by these.
AT_ONCE, FEWEST = 2**22, 2**16
DOMINANT = 0.9  # of all cases; a site that says so many is named in the journal


@dataclass(frozen=True)
class Federated:
    """What stays the same over the rounds of a phase.

    Attributes:
        plan: names the strategy.
        phase: of the rounds.
        described: what each site said of itself; used where a reply tells no counts.
        heads: names of the parameters whose dim 0 is (background, organ 1, ...).
        thaws: of what is frozen at first: the round from which on it trains.
    """

    plan: Plan
    phase: Phase
    described: Mapping[str, Description]
    heads: Sequence[str]
    thaws: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregated:
    """What a round's average leaves.

    Attributes:
        state: all weights.
        moments: what the strategy carries to the next round.
        notes: what a reader of the journal should know.
    """

    state: dict[str, Tensor]
    moments: Moments
    notes: list[str]


def aggregate(
    about: Federated, state: State, moments: Moments, good: Mapping[str, Accepted], round_: int
) -> Aggregated:
    """All accepted replies of a round -> the next weights.

    Args:
        about: the phase.
        state: all weights before the round.
        moments: what the strategy carried from the round before.
        good: accepted replies by site; their messages become those that the strategy averages.
        round_: number of the round.
    """
    plan, phase = about.plan, about.phase
    settings, sites, notes = plan.federation.strategy, sorted(good), []
    told = all(good[s].result.annotated for s in sites)
    if not told and settings.by_rows:
        notes.append("not every site tells its counts: all sites weigh equally")
    if settings.name == "trimmed-mean" and not trimmed(settings, len(good)):
        notes.append(f"round {round_}: nothing is trimmed from {len(good)} updates")
    equal = not told or not settings.by_rows
    most, share = dominant({s: float(good[s].result.cases) for s in sites})
    if not equal and most:
        notes.append(f"round {round_}: {most} has {share:.1%} of the weight, by cases that it says")
    new, carried = average(settings, round_, state, moments, good, equal=equal)
    new |= {n: state[n] for n in still_at(about.thaws, round_)}  # no noise, no rounding
    if not settings.by_rows:
        return Aggregated(new, carried, notes)
    weights = [
        [float(c) for c in good[s].result.annotated]
        if told
        else declared(about.described[s], plan, phase)
        for s in sites
    ]
    new, kept = aggregate_head(state, new, [good[s].state for s in sites], weights, about.heads)
    if kept:
        names = ", ".join(phase.organs[c] for c in kept)
        notes.append(f"round {round_}: nobody annotates {names}; the head keeps its rows")
    return Aggregated(new, carried, notes)


def dominant(amounts: Mapping[str, float]) -> tuple[str, float]:
    """The one of several sites with more than `DOMINANT` of the sum, and its share; ("", 0)."""
    whole = sum(amounts.values()) if len(amounts) > 1 else math.inf
    return next(((s, n / whole) for s, n in amounts.items() if n > DOMINANT * whole), ("", 0.0))


def average(
    settings: Strategy,
    round_: int,
    state: State,
    moments: Moments,
    good: Mapping[str, Accepted],
    *,
    equal: bool,
) -> tuple[dict[str, Tensor], Moments]:
    """The strategy's average of the replies, sorted by site, into a copy of `state`.

    Under a strategy with moments a value that no site moved stays as it is: momentum moves no
    organ's row that nobody annotates and no stage that has not thawed, nor does the rounding of
    their mean, which FedAdam would enlarge.

    Args:
        settings: name the strategy.
        round_: number of the round.
        state: all weights before the round.
        moments: what the strategy carried from the round before.
        good: accepted replies by site; their messages become those that the strategy averages.
        equal: every site weighs 1 instead of its training cases.

    Returns:
        The weights, and what the strategy carries to the next round.
    """
    like = {name: state[name] for name in good[min(good)].state}
    made: dict[str, Tensor] = {}
    carried: dict[str, dict[str, Tensor]] = {}
    row = STRATEGIES[settings.name]
    size = max(AT_ONCE // len(good), FEWEST) if row.elementwise else 0
    for part in parts(like, size):
        before = part.of(state)
        updates = [part.of(good[site].state) for site in sorted(good)]
        strategy = build_strategy(
            settings, len(good), before, {kind: part.of(m) for kind, m in moments.items()}
        )
        replies = [
            _filled(good[site], update, equal=equal)
            for site, update in zip(sorted(good), updates, strict=True)
        ]
        averaged, _ = strategy.aggregate_train(round_, replies)
        assert averaged is not None
        for message in replies:
            message.content.clear()  # see server/dispatch.py
        values = {n: t.to(before[n].dtype) for n, t in averaged.to_torch_state_dict().items()}
        if row.moments:
            values = {n: _moved(before[n], v, [u[n] for u in updates]) for n, v in values.items()}
        part.put(values, made, like)
        for kind, tensors in moments_of(strategy, settings, before).items():
            part.put(tensors, carried.setdefault(kind, {}), like)
    return dict(state) | made, carried


def _filled(one: Accepted, update: State, *, equal: bool) -> Message:
    """The site's message with what the strategy averages."""
    assert one.message is not None
    weight = MetricRecord({WEIGHT: 1.0 if equal else float(one.result.cases)})
    one.message.content = RecordDict({ARRAYS: ArrayRecord(dict(update)), METRICS: weight})
    return one.message


def _moved(before: Tensor, after: Tensor, updates: Sequence[Tensor]) -> Tensor:
    """`after`, but where every update has the value of `before`."""
    same = functools.reduce(torch.logical_and, [update == before for update in updates])
    return torch.where(same, before, after)


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


@dataclass(frozen=True)
class Part:
    """Stretches of flattened tensors: (name, first number, one beyond the last)."""

    stretches: tuple[tuple[str, int, int], ...]

    def of(self, state: State) -> dict[str, Tensor]:
        """The part of a state: 1-D tensors under names of the part's own."""
        return {
            f"{name}@{first}": state[name].reshape(-1)[first:end]
            for name, first, end in self.stretches
        }

    def put(self, values: State, into: dict[str, Tensor], like: State) -> None:
        """Writes a part into a state that is being made.

        Args:
            values: named as in `of`.
            into: gets the tensors that it lacks, in the shapes of `like`, and this part's numbers.
            like: a whole state.
        """
        for name, first, end in self.stretches:
            value = values[f"{name}@{first}"]
            if name not in into:
                into[name] = value.new_empty(like[name].shape)
            into[name].view(-1)[first:end] = value


def parts(state: State, most: int) -> Iterator[Part]:
    """Cuts a state into parts of at most `most` numbers; no tensor is cut unevenly.

    Args:
        state: tensors by name.
        most: numbers of a part; 0 leaves the state whole.
    """
    stretches: list[tuple[str, int, int]] = []
    numbers = 0
    for name, tensor in state.items():
        size = tensor.numel()
        pieces = max(1, math.ceil(size / most)) if most else 1
        edges = [size * i // pieces for i in range(pieces + 1)]
        for first, end in itertools.pairwise(edges):
            if stretches and most and numbers + end - first > most:
                yield Part(tuple(stretches))
                stretches, numbers = [], 0
            stretches.append((name, first, end))
            numbers += end - first
    if stretches:
        yield Part(tuple(stretches))
