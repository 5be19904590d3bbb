"""Flower's strategies do the averaging; here they are chosen by configuration."""

from __future__ import annotations

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

from core.plan import Strategy

ARRAYS = "arrays"
METRICS = "metrics"
HEADER = "header"
ORDER = "order"
BASE = "base"
WEIGHT = "weight"
Aggregator = FedAvg | DifferentialPrivacyClientSideFixedClipping


def build_strategy(settings: Strategy) -> Aggregator:
    """Flower's strategy of that name over whatever subset of sites answered (quorum is ours).

    FedProx aggregates as FedAvg; its proximal term is added at the sites, from the plan. ``dp``
    averages updates that the sites clipped, all weighing the same, and adds noise.
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
            return FedTrimmedAvg(beta=settings.trim, **common)
        case "krum":
            return Krum(num_malicious_nodes=settings.malicious, **common)
        case "dp":
            return DifferentialPrivacyClientSideFixedClipping(
                FedAvg(**common),
                noise_multiplier=settings.noise_multiplier,
                clipping_norm=settings.clip_norm,
                num_sampled_clients=1,  # set to the number of replies, round by round
            )
    return FedAvg(**common)
