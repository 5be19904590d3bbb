"""Lengths and directions of updates: in the journal where single updates are seen, else nowhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from core.plan.schema import Phase
from server.update_measures import update_measures
from tests.server.conftest import ORGANS

BEFORE = {"w": torch.zeros(2), "k": torch.ones(1)}


class One:
    """As much of an accepted reply as is read."""

    def __init__(self, x: float, y: float) -> None:
        self.state = {"w": torch.tensor([x, y])}


def test_lengths_and_cosines() -> None:
    after = {**BEFORE, "w": torch.tensor([2.0, 0.0])}
    good: Any = {"along": One(3.0, 0.0), "across": One(0.0, 4.0), "against": One(-1.0, 0.0)}
    found = update_measures(good, BEFORE, after)
    assert found["along"] == {"norm": 3.0, "cosine": 1.0}
    assert found["across"] == {"norm": 4.0, "cosine": 0.0}
    assert found["against"] == {"norm": 1.0, "cosine": -1.0}
    still: Any = {"a": One(0.0, 0.0)}
    assert update_measures(still, BEFORE, after) == {"a": {"norm": 0.0, "cosine": None}}
    assert update_measures(good, BEFORE, BEFORE)["along"]["cosine"] is None


def test_where_no_weights_travel_there_are_none() -> None:
    silent: Any = {"a": One(1.0, 1.0)}
    silent["a"].state = {}
    assert update_measures(silent, BEFORE, BEFORE) == {}


def test_a_round_journals_them(federate: Callable[..., Any], make_plan: Callable[..., Any]) -> None:
    shared = Phase(name="p", sites=["a", "b"], organs=ORGANS, rounds=1)
    run = federate(make_plan(shared), add={"a": 1.0, "b": 4.0})
    run.run()
    (event,) = run.events("round")
    count = sum(t.numel() for t in run.weights("last").values())
    assert event["updates"]["a"]["norm"] == pytest.approx(math.sqrt(count), rel=1e-4)
    assert event["updates"]["b"]["norm"] == pytest.approx(4 * math.sqrt(count), rel=1e-4)
    assert event["updates"]["a"]["cosine"] == pytest.approx(1.0, abs=1e-3)
