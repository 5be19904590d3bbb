"""Flower's strategies do the averaging; here they are chosen by configuration."""

from __future__ import annotations

import math
from typing import Any

from flwr.app import MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAvg,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    Krum,
)

from core.plan.schema import Strategy

ARRAYS = "arrays"
METRICS = "metrics"
HEADER = "header"
ORDER = "order"
BASE = "base"
WEIGHT = "weight"
Aggregator = FedAvg | DifferentialPrivacyClientSideFixedClipping


def trimmed(settings: Strategy, replies: int) -> int:
    """How many values the trimmed mean cuts off at either end: at least one where two are left."""
    return min(math.ceil(settings.trim * replies - 1e-9), (replies - 1) // 2)


def build_strategy(settings: Strategy, replies: int) -> Aggregator:
    """Flower's strategy of that name over the updates of one round (quorum is ours).

    FedProx aggregates as FedAvg; its proximal term is added at the sites, from the plan. ``dp``
    averages updates that the sites clipped, all weighing the same, and adds noise.

    Args:
        settings: the plan's.
        replies: how many updates there are.
    """
    common: dict[str, Any] = {
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
        "weighted_by_key": WEIGHT,
        "train_metrics_aggr_fn": lambda *_: MetricRecord(),
    }
    match settings.name:
        case "fedprox":
            return FedProx(proximal_mu=settings.proximal_mu, **common)
        case "median":
            return FedMedian(**common)
        case "trimmed-mean":
            return FedTrimmedAvg(beta=(trimmed(settings, replies) + 0.5) / (replies + 1), **common)
        case "krum":
            return Krum(num_malicious_nodes=settings.malicious, **common)
        case "dp":
            return DifferentialPrivacyClientSideFixedClipping(
                FedAvg(**common),
                noise_multiplier=settings.noise_multiplier,
                clipping_norm=settings.clip_norm,
                num_sampled_clients=replies,
            )
    return FedAvg(**common)
