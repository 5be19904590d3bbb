"""Flower's strategies do the averaging: one table, from which configuration chooses.

What a strategy carries from round to round (its moments) it gets before a round and gives back
after it; the phase's run owns them and commits them with the round's weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    Krum,
)
from torch import Tensor

from core.errors import UserError
from core.plan.schema import Strategy
from core.wire.state import in_bytes

ARRAYS = "arrays"
METRICS = "metrics"
HEADER = "header"
ORDER = "order"
BASE = "base"
WEIGHT = "weight"
MOMENT = "::"  # stands between the name of a tensor and that of its moment
LEFT = "left"  # the server's own moment: what rounding to 8 bits took from the weights, if it did
Aggregator = FedAvg | DifferentialPrivacyClientSideFixedClipping
State = Mapping[str, Tensor]
Moments = Mapping[str, State]  # by the name of Flower's attribute, then by tensor
COMMON: Mapping[str, Any] = {  # the quorum is ours
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
    "weighted_by_key": WEIGHT,
    "train_metrics_aggr_fn": lambda *_: MetricRecord(),
}


@dataclass(frozen=True)
class Row:
    """One strategy.

    Attributes:
        build: makes Flower's, from the plan's settings and the number of updates in the round.
        moments: attributes in which Flower's keeps what it carries from round to round.
        by_name: they are mappings by the name of the tensor; else lists in the order of the arrays.
        elementwise: a value of the average depends on no other value: it can be made in parts.
    """

    build: Callable[[Strategy, int], Aggregator]
    moments: tuple[str, ...] = ()
    by_name: bool = True
    elementwise: bool = True


def trimmed(settings: Strategy, replies: int) -> int:
    """How many values the trimmed mean cuts off at either end: at least one where two are left."""
    return min(math.ceil(settings.trim * replies - 1e-9), (replies - 1) // 2)


def _trimmed_mean(settings: Strategy, replies: int) -> Aggregator:
    return FedTrimmedAvg(beta=(trimmed(settings, replies) + 0.5) / (replies + 1), **COMMON)


def _dp(settings: Strategy, replies: int) -> Aggregator:
    """Averages updates that the sites clipped, all weighing the same, and adds noise."""
    return DifferentialPrivacyClientSideFixedClipping(
        FedAvg(**COMMON),
        noise_multiplier=settings.noise_multiplier,
        clipping_norm=settings.clip_norm,
        num_sampled_clients=replies,
    )


def _fedadam(settings: Strategy, _: int) -> Aggregator:
    return FedAdam(
        eta=settings.eta,
        beta_1=settings.beta_1,
        beta_2=settings.beta_2,
        tau=settings.tau,
        **COMMON,
    )


def _fedavgm(settings: Strategy, _: int) -> Aggregator:
    return FedAvgM(
        server_learning_rate=settings.server_learning_rate,
        server_momentum=settings.server_momentum,
        **COMMON,
    )


# Its names are those of `core.plan.schema.STRATEGIES`. FedProx aggregates as FedAvg does: its
# proximal term is added at the sites.
STRATEGIES: Mapping[str, Row] = {
    "fedavg": Row(lambda *_: FedAvg(**COMMON)),
    "fedprox": Row(lambda settings, _: FedProx(proximal_mu=settings.proximal_mu, **COMMON)),
    "median": Row(lambda *_: FedMedian(**COMMON)),
    "trimmed-mean": Row(_trimmed_mean),
    "krum": Row(
        lambda settings, _: Krum(num_malicious_nodes=settings.malicious, **COMMON),
        elementwise=False,
    ),
    "dp": Row(_dp, elementwise=False),  # its noise is drawn in one go
    "fedadam": Row(_fedadam, moments=("m_t", "v_t")),
    "fedavgm": Row(_fedavgm, moments=("momentum_vector",), by_name=False),
}


def build_strategy(
    settings: Strategy, replies: int, before: State | None = None, moments: Moments | None = None
) -> Aggregator:
    """Flower's strategy as it stands before the average of one round.

    Args:
        settings: the plan's.
        replies: how many updates there are.
        before: the weights that travelled, before the round, in the order of the updates' arrays;
            needed by strategies with moments.
        moments: as `moments_of` gave them after the round before; empty in a phase's first.
    """
    row = STRATEGIES[settings.name]
    strategy = row.build(settings, replies)
    if row.moments:
        assert before is not None
        assert isinstance(strategy, FedAvg)
        # Flower takes the weights of before from here. It sends nothing, and asks no grid, where it
        # is to train on no site.
        strategy.fraction_train = 0.0
        strategy.configure_train(0, ArrayRecord(dict(before)), ConfigRecord(), cast(Grid, None))
        for kind, tensors in (moments or {}).items():
            arrays = {name: tensors[name].numpy() for name in before}
            setattr(strategy, kind, arrays if row.by_name else list(arrays.values()))
    return strategy


def moments_of(strategy: Aggregator, settings: Strategy, before: State) -> Moments:
    """What a strategy carries on, after a round's average.

    Args:
        strategy: of `build_strategy`, used once.
        settings: the plan's.
        before: as given to `build_strategy`.

    Returns:
        By the name of each moment, its tensors by the names of those in `before`. A moment that
        its settings make unnecessary (FedAvgM's without momentum) is not there.
    """
    kept = {}
    for kind in STRATEGIES[settings.name].moments:
        found = getattr(strategy, kind)
        if found is not None:
            arrays = found if isinstance(found, dict) else dict(zip(before, found, strict=True))
            kept[kind] = {name: torch.from_numpy(np.array(arrays[name])) for name in before}
    return kept


def joined(state: State, moments: Moments) -> dict[str, Tensor]:
    """Weights and moments as tensors of one checkpoint: a moment's name follows its tensor's."""
    return dict(state) | {
        f"{name}{MOMENT}{kind}": tensor
        for kind, tensors in moments.items()
        for name, tensor in tensors.items()
    }


def separated(tensors: State) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Inverse of `joined`: weights, and moments."""
    state: dict[str, Tensor] = {}
    moments: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name, _, kind = full.partition(MOMENT)
        (moments.setdefault(kind, {}) if kind else state)[name] = tensor
    return state, moments


def require_moments(
    settings: Strategy, moments: Moments, noted: object, shared: State, where: str
) -> None:
    """Requires that a strategy finds all that it carried when the round was committed.

    Args:
        settings: the plan's.
        moments: as read.
        noted: what the round's JSON says of which there are; None where it says nothing.
        shared: the tensors that travel, which are those that have moments.
        where: the round, for people.

    Raises:
        UserError: some are missing, there are others, or one has another shape.
    """
    row = STRATEGIES[settings.name]
    if not row.moments and not moments and not noted:
        return
    wrong = ""
    if not isinstance(noted, list) or sorted(moments) != sorted(map(str, noted)):
        wrong = "are not those that were committed"
    elif not set(moments) <= {*row.moments, LEFT}:
        wrong = "are another strategy's"
    for kind, tensors in moments.items():
        all_ = {n: t.shape for n, t in shared.items() if kind != LEFT or in_bytes(t)}
        if {n: t.shape for n, t in tensors.items()} != all_:
            wrong = wrong or f"({kind}) are not of the tensors that travel"
    if wrong:
        raise UserError(
            "--resume",
            where,
            "restore the run's folder state/ from a copy, or start a new run in another folder",
            problem=f"the moments of {settings.name} {wrong}; without them it would go on with "
            "other weights",
        )
