"""Length of an update, and the same made shorter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.wire.state import beyond, length, shortened

BEFORE = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.5]])}
AFTER = {"w": torch.tensor([4.0, 2.0]), "b": torch.tensor([[4.5]])}


def test_the_length_is_over_all_tensors() -> None:
    assert length(AFTER, BEFORE) == pytest.approx(5.0)


@given(st.floats(0.0, 1.0))
def test_a_shortened_update_points_the_same_way(factor: float) -> None:
    made = shortened(AFTER, BEFORE, factor)
    assert length(made, BEFORE) == pytest.approx(5.0 * factor, abs=1e-5)
    assert made["b"].shape == (1, 1)
    assert made["w"].dtype == torch.float32


@pytest.mark.parametrize("value", [3.4e38, -3.4e38, 1e9, 12.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["w", "b"])
def test_what_no_training_does_is_named(name: str, value: float) -> None:
    after = AFTER | {name: torch.full_like(AFTER[name], value)}
    near = value == 12.0 and name == "w"  # whose own size is 1.6
    assert beyond(after, BEFORE) == ("" if near else name)


def test_what_training_does_is_let_be() -> None:
    small = {"w": torch.full((1000,), 1e-3)}
    assert beyond({"w": torch.full((1000,), 5.0)}, small) == "", "weights that begin near nothing"
    large = {"w": torch.full((10,), 1e4)}
    assert beyond({"w": torch.full((10,), 9e4)}, large) == "", "a tensor's own size counts"
    assert beyond({"w": torch.zeros(0)}, BEFORE | {"w": torch.zeros(0)}) == ""


@given(st.integers(2, 10), st.floats(-1e38, 1e38))
def test_an_average_of_what_is_let_be_is_finite(sites: int, value: float) -> None:
    before = {"w": torch.full((3,), value)}
    step = 0.99 * 10 * max(abs(value), 1.0)
    after = [{"w": (before["w"].double() + step).float()} for _ in range(sites)]
    if all(beyond(one, before) == "" for one in after) and torch.isfinite(after[0]["w"]).all():
        mean = sum(one["w"].double() for one in after) / sites
        assert torch.isfinite(torch.as_tensor(mean)).all()
