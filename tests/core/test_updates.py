"""Length of an update, and the same made shorter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.updates import length, shortened

BEFORE = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.5]]), "n": torch.tensor([7])}
AFTER = {"w": torch.tensor([4.0, 2.0]), "b": torch.tensor([[4.5]]), "n": torch.tensor([9])}


def test_the_length_is_over_all_tensors_and_leaves_whole_numbers_out() -> None:
    assert length(AFTER, BEFORE) == pytest.approx(5.0)


@given(st.floats(0.0, 1.0))
def test_a_shortened_update_points_the_same_way(factor: float) -> None:
    made = shortened(AFTER, BEFORE, factor)
    assert length(made, BEFORE) == pytest.approx(5.0 * factor, abs=1e-5)
    assert torch.equal(made["n"], AFTER["n"])
    assert made["w"].dtype == torch.float32
