from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from server.parts import parts

Sizes = st.lists(st.integers(0, 40), min_size=1, max_size=6)


@given(Sizes, st.integers(1, 30))
def test_parts_are_bounded_and_make_the_whole_again(sizes: list[int], most: int) -> None:
    state = {f"t{i}": torch.arange(float(n)) for i, n in enumerate(sizes)}
    made: dict[str, torch.Tensor] = {}
    for part in parts(state, most):
        values = part.of(state)
        assert sum(v.numel() for v in values.values()) <= most
        part.put(values, made, state)
    assert set(made) == set(state)
    assert all(torch.equal(made[n], state[n]) for n in state)


def test_a_state_may_stay_whole() -> None:
    state = {"a": torch.ones(3, 4), "b": torch.ones(2)}
    (part,) = parts(state, 0)
    assert {n: v.shape for n, v in part.of(state).items()} == {"a@0": (12,), "b@0": (2,)}


def test_any_memory_format_keeps_its_order() -> None:
    volume = torch.arange(2.0 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    state = {"w": volume.to(memory_format=torch.channels_last_3d)}
    made: dict[str, torch.Tensor] = {}
    for part in parts(state, 100):
        part.put(part.of(state), made, state)
    assert torch.equal(made["w"], volume)


def test_a_tensor_is_cut_evenly_so_that_no_single_number_is_left_over() -> None:
    """NumPy adds up a single column in another order than many: the last bit would differ."""
    cuts = [part.stretches for part in parts({"w": torch.zeros(101)}, 100)]
    assert cuts == [(("w", 0, 50),), (("w", 50, 101),)]
