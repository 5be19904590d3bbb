"""Flower's strategies do the averaging; here they are chosen by configuration."""

from __future__ import annotations

from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAvg, FedProx

from core.plan import Strategy

ARRAYS = "arrays"
METRICS = "metrics"
HEADER = "header"
ORDER = "order"
BASE = "base"
WEIGHT = "weight"


def build_strategy(settings: Strategy) -> FedAvg:
    """FedAvg or FedProx over whatever subset of sites answered (our loop keeps the quorum).

    FedProx aggregates as FedAvg; its proximal term is added at the sites, from the plan.
    """
    if settings.name == "fedprox":
        return FedProx(
            proximal_mu=settings.proximal_mu,
            min_train_nodes=1,
            min_evaluate_nodes=1,
            min_available_nodes=1,
            weighted_by_key=WEIGHT,
            train_metrics_aggr_fn=lambda *_: MetricRecord(),
        )
    return FedAvg(
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=1,
        weighted_by_key=WEIGHT,
        train_metrics_aggr_fn=lambda *_: MetricRecord(),
    )
