"""Labels from probabilities: the largest class, and only where one may be other than background."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.data import resample
from core.data.geometry import Geometry
from core.data.resample import foreground_bounds, largest_class, restore

CROP = Geometry((9, 8, 10), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
TURNED = (0.0, -1.0, 0.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0)
OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)


def values_of(seed: int, low: tuple[int, ...], high: tuple[int, ...]) -> torch.Tensor:
    """(4, Z, Y, X): background alone outside a box, anything inside, ties too."""
    drawn = torch.randint(0, 4, (4, *CROP.size), generator=torch.Generator().manual_seed(seed))
    values = drawn.float()
    inside = torch.zeros(CROP.size, dtype=torch.bool)
    inside[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
    values[0][~inside] = 3.5
    return values


def nearly_tied(values: torch.Tensor) -> torch.Tensor:
    """Where the two largest of (C, ...) differ by rounding alone."""
    first, second = values.topk(2, dim=0).values
    return (first - second < 1e-5).to(torch.uint8)


@pytest.mark.parametrize("direction", [STRAIGHT, TURNED, OBLIQUE])
@example(seed=68, corners=((0, 8), (0, 0), (5, 9)), step=0.9)
@given(
    seed=st.integers(0, 99),
    corners=st.tuples(
        *(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)) for n in CROP.size)
    ),
    step=st.sampled_from([0.9, 1.0, 2.3]),
)
@settings(max_examples=25, deadline=None)
def test_labels_are_those_of_the_whole_crop(
    direction: tuple[float, ...], seed: int, corners: tuple[tuple[int, int], ...], step: float
) -> None:
    low, high = (tuple(pick(c) for c in corners) for pick in (min, max))
    values = values_of(seed, low, high)
    size = (22, 21, 20)
    middle = np.array([10.0, 8.0, 9.0])  # of the crop, in mm (x, y, z)
    origin = middle - np.reshape(direction, (3, 3)) @ (step * (np.array(size[::-1]) - 1) / 2)
    source = Geometry(size, (step,) * 3, tuple(float(v) for v in origin), direction)
    found = restore(values, CROP, source)
    with pytest.MonkeyPatch.context() as patch:
        whole = [(-0.5, n - 0.5) for n in CROP.size]
        patch.setattr(resample, "foreground_bounds", lambda values: whole)
        patch.setattr(resample, "largest_class", lambda v: v.argmax(0).to(torch.uint8))
        expected = restore(values, CROP, source)
        patch.setattr(resample, "largest_class", nearly_tied)
        tied = restore(values, CROP, source) > 0  # rounding decides, which another box may turn
    np.testing.assert_array_equal(found[~tied], expected[~tied])
    assert tied.mean() < 0.2


def test_bounds_hold_the_neighbours_of_what_may_be_an_organ() -> None:
    values = torch.zeros(3, 5, 6, 7)
    values[0] = 1.0
    values[2, 2, 0, 3:5] = 1.0  # a tie counts
    assert list(foreground_bounds(values)) == [(1, 3), (-0.5, 1), (2, 5)]


@pytest.mark.parametrize("classes", [1, 3])
def test_a_crop_of_background_is_left_at_once(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resample, "largest_class", lambda values: pytest.fail("computed"))
    values = torch.zeros(classes, *CROP.size)
    values[0] = 1.0
    for direction in (STRAIGHT, OBLIQUE):
        source = Geometry((6, 6, 6), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0), direction)
        assert not restore(values, CROP, source).any()


def test_largest_class_is_the_first_of_the_largest() -> None:
    values = torch.randint(0, 3, (6, 4, 5, 7), generator=torch.Generator().manual_seed(0)).float()
    kept = values.clone()
    for given_values in (values, values.movedim(1, 2), values.half(), values.double()):
        found = largest_class(given_values)
        assert found.dtype == torch.uint8
        assert torch.equal(found.long(), torch.from_numpy(given_values.numpy().argmax(0)))
    assert torch.equal(values, kept)
    assert not largest_class(torch.full((3, 2), float("nan"))).any()
    assert largest_class(values.requires_grad_()).dtype == torch.uint8
