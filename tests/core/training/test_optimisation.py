"""Learning rates, devices and the optimiser's memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from core.errors import UserError
from core.plan.schema import Train
from core.training.optimisation import (
    learning_rate,
    load_optimiser,
    make_optimiser,
    resolve_device,
)


def test_optimiser_memory_of_another_network_is_refused() -> None:
    layer = nn.Linear(3, 2)
    named = dict(layer.named_parameters())
    optimiser = make_optimiser(Train(), list(named.values()))
    with pytest.raises(UserError, match="shape"):
        load_optimiser(optimiser, named, {"weight::exp_avg": torch.zeros(5, 5)})


def test_learning_rate_schedules() -> None:
    def rates(**settings: Any) -> list[float]:
        train = Train(lr=2.0, **settings)
        return [learning_rate(train, epoch, 10) for epoch in (0.0, 2.5, 5.0, 10.0)]

    assert rates(schedule="constant") == [2.0] * 4
    assert rates(schedule="poly") == pytest.approx([2.0, 2 * 0.75**0.9, 2 * 0.5**0.9, 0.0])
    cosine = [2.0, 1 + math.cos(math.pi / 4), 1.0, 0.0]
    assert rates(schedule="cosine") == pytest.approx(cosine, abs=1e-12)
    warm = rates(schedule="constant", warmup_epochs=5.0)
    assert 0 < warm[0] < 0.1
    assert warm[1:] == [1.0, 2.0, 2.0]
    with pytest.raises(UserError, match="schedule"):
        learning_rate(Train(schedule="step"), 0, 1)


def test_devices() -> None:
    auto = resolve_device("auto")
    assert auto.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    for wrong in ("gpu", "cuda:99", "cuda:x", ""):
        with pytest.raises(UserError, match="device"):
            resolve_device(wrong)
