from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.wire.state import (
    SCALE,
    beyond,
    inner_product,
    length,
    packed,
    rounded,
    shortened,
    unpacked,
)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)
SHAPE = st.lists(st.integers(0, 3), max_size=4)
STATES = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(DTYPES), SHAPE),
    max_size=5,
)


@settings(max_examples=100, deadline=None)
@given(STATES)
def test_a_state_comes_out_as_it_went_in(kinds: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    state = {
        name: torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)
        for name, (dtype, shape) in kinds.items()
    }
    again = unpacked(packed(state))
    assert set(again) == set(state)
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert again[name].shape == tensor.shape
        assert torch.equal(again[name], tensor)


def test_special_numbers_and_memory_formats_keep_their_bits() -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    last = torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    again = unpacked(packed({"odd": odd, "last": last.requires_grad_()}))
    assert again["odd"].numpy().tobytes() == odd.numpy().tobytes()
    assert torch.equal(again["last"], last)


def test_one_state_has_one_parcel_whatever_its_order() -> None:
    state = {"b": torch.ones(2), "a": torch.zeros(3), "c": torch.ones(1, dtype=torch.int64)}
    turned = dict(reversed(state.items()))
    assert packed(state) == packed(turned)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.data())
def test_whatever_bytes_come_they_are_a_state_or_a_value_error(
    noise: bytes, data: st.DataObject
) -> None:
    whole = bytearray(packed({"w": torch.ones(2, 3), "b": torch.ones(3)}))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] = data.draw(st.integers(0, 255))
    for parcel in (noise, bytes(whole), bytes(whole[:place])):
        try:
            state = unpacked(parcel)
        except ValueError:
            continue
        assert all(isinstance(t, torch.Tensor) for t in state.values())


def parcel_of(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize("shape", [[0, 2**40, 2**40], [0, 2**63], [-1], [0.5]])
def test_shapes_that_no_tensor_has(shape: list[float]) -> None:
    with pytest.raises(ValueError, match="no safetensors file"):
        unpacked(parcel_of({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}))


def test_a_tensor_that_is_told_as_a_list() -> None:
    with pytest.raises(ValueError, match=r"text beside|no safetensors"):
        unpacked(parcel_of({"w": ["F32", [1], [0, 4]]}, b"\0" * 4))


def test_a_parcel_holds_the_tensors_and_nothing_else() -> None:
    state = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int64)}
    parcel = packed(state)
    length = int.from_bytes(parcel[:8], "little")
    header = json.loads(parcel[8 : 8 + length])
    assert set(header) == set(state)
    assert all(set(v) == {"dtype", "shape", "data_offsets"} for v in header.values())
    assert len(parcel) == 8 + length + 4 * 6 + 8 * 4
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "note": "hello"}
    with pytest.raises(ValueError, match="text beside"):
        unpacked(parcel_of({"w": entry}, b"\0" * 4))
    with pytest.raises(ValueError, match="text beside"):
        unpacked(safetensors.torch.save(state, metadata={"host": "x"}))


@pytest.mark.parametrize("beside", [{"dtype": "x", "shape": "y", "data_offsets": "z"}, None, {}])
def test_no_text_stands_beside_the_tensors_in_any_form(beside: object) -> None:
    header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": beside}
    with pytest.raises(ValueError, match=r"text beside|no safetensors"):
        unpacked(parcel_of(header, b"\0" * 4))


def test_a_larger_parcel_than_expected_is_not_opened() -> None:
    expected = {"w" * 200: torch.ones(2, 3), **{f"\u00e4{i}": torch.ones(()) for i in range(50)}}
    assert set(unpacked(packed(expected), expected)) == set(expected)
    with pytest.raises(ValueError, match="larger"):
        unpacked(packed(expected | {"more": torch.ones(10_000)}), expected)


def test_in_sixteen_bits_half_of_it_travels_and_comes_back_rounded_once() -> None:
    state = {"w": torch.randn(64, 64) / 10, "n": torch.arange(4)}
    parcel = packed(state, 16)
    assert len(parcel) < 0.52 * len(packed(state))
    again = unpacked(parcel, state, bits=16)
    assert {n: t.dtype for n, t in again.items()} == {n: t.dtype for n, t in state.items()}
    assert torch.equal(again["n"], state["n"])
    assert torch.equal(again["w"], state["w"].half().float())
    assert torch.allclose(again["w"], state["w"], rtol=2**-11, atol=2**-25)
    for name, tensor in rounded(state, 16).items():
        assert torch.equal(tensor, again[name])
    assert packed(again, 16) == parcel  # once rounded, nothing is lost any more
    for name, tensor in rounded(state, 32).items():
        assert torch.equal(tensor, state[name])


def test_other_bits_than_the_plan_says_are_refused() -> None:
    state = {"w": torch.ones(3)}
    with pytest.raises(ValueError, match="16 bits"):
        unpacked(packed(state), state, bits=16)
    assert unpacked(packed(state, 16))["w"].dtype == torch.float16  # no weight of ours: refused


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=5),
    st.floats(1e-42, 1e30),
    st.integers(0, 2**31),
)
def test_eight_bits_are_off_by_half_a_step_and_rounded_once_only(
    shape: list[int], size: float, seed: int
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size
    state = {"w": values, "bias": torch.randn(3), "n": torch.arange(4)}
    parcel = packed(state, 8)
    again = unpacked(parcel, state, bits=8)
    assert {n: t.dtype for n, t in again.items()} == {n: t.dtype for n, t in state.items()}
    assert torch.equal(again["bias"], state["bias"])
    assert torch.equal(again["n"], state["n"])
    step = values.double().flatten(1).abs().amax(1) / 127 * (1 + 2**-15)
    off = (again["w"].double() - values.double()).flatten(1).abs()
    assert bool((off <= torch.where(step < 1.2e-38, 127 * step, step / 2)[:, None] * 1.001).all())
    assert all(torch.equal(t, again[n]) for n, t in rounded(state, 8).items())
    assert packed(again, 8) == parcel


def test_in_eight_bits_a_quarter_travels_and_an_update_as_what_it_adds() -> None:
    state = {"w": torch.randn(32, 16, 3, 3, 3) / 10, "bias": torch.randn(32)}
    added = {n: t + 1e-4 * torch.randn(t.shape) for n, t in state.items()}
    parcel = packed(added, 8, state)
    assert len(parcel) < 0.27 * len(packed(added))
    again = unpacked(parcel, state, bits=8, since=state)
    step = float((added["w"] - state["w"]).abs().max()) / 127
    assert torch.allclose(again["w"], added["w"], rtol=0, atol=0.51 * step + 1e-7)
    assert not torch.allclose(rounded(added, 8)["w"], added["w"], rtol=0, atol=5 * step)
    assert torch.allclose(again["bias"], added["bias"], rtol=0, atol=1e-6)
    same = unpacked(packed(state, 8, state), state, bits=8, since=state)
    assert all(torch.equal(t, state[n]) for n, t in same.items())  # what did not move is the same
    assert unpacked(packed(added, 32, state))["w"].equal(added["w"])
    assert unpacked(packed(added, 16, state), bits=16, since=state)["w"].equal(
        added["w"].half().float()
    )


def test_rounding_by_chance_is_right_on_average_and_the_same_for_a_seed() -> None:
    before = {"w": torch.zeros(2, 4000)}
    after = {"w": torch.full((2, 4000), 3e-5)}
    after["w"][:, 0] = torch.tensor([1e-2, -1e-2])  # a step is 7.9e-5: the others are below half
    nearest = unpacked(packed(after, 8, before), bits=8, since=before)["w"]
    assert not nearest[:, 1:].any()
    drawn = unpacked(packed(after, 8, before, 7), bits=8, since=before)["w"]
    assert drawn[:, 1:].mean().item() == pytest.approx(3e-5, rel=0.1)
    assert torch.allclose(drawn, after["w"], rtol=0, atol=7.9e-5)
    assert packed(after, 8, before, 7) == packed(after, 8, before, 7) != packed(after, 8, before, 8)
    values = {"w": torch.randn(50, 30)}
    for seed in range(20):  # the guard packs what it opened, and gets the same bytes
        parcel = packed(values, 8, seed=seed)
        assert packed(unpacked(parcel, values, bits=8), 8) == parcel


def test_tensors_that_bytes_would_not_make_smaller_keep_their_numbers() -> None:
    state = {"one": torch.randn(9, 1), "two": torch.randn(9, 2, 1), "none": torch.zeros(4, 0)}
    assert all(torch.equal(t, state[n]) for n, t in rounded(state, 8).items())
    assert len(packed(state, 8)) == len(packed(state))
    assert set(unpacked(packed(state, 8), state, bits=8)) == set(state)


@pytest.mark.parametrize("bits", [16, 8])
def test_more_numbers_than_expected_are_not_opened_however_few_bits_they_have(bits: int) -> None:
    expected = {"w": torch.zeros(4, 20_000)}
    assert unpacked(packed(expected, bits), expected, bits=bits)["w"].shape == (4, 20_000)
    with pytest.raises(ValueError, match="larger"):
        unpacked(packed({"w": torch.ones(4, 22_000)}, bits), expected, bits=bits)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_not_finite_in_eight_bits(value: float) -> None:
    values = torch.randn(3, 4)
    values[1, 2] = value
    again = rounded({"w": values}, 8)["w"]
    assert not again[1].isfinite().any()
    assert torch.equal(again[[0, 2]], rounded({"w": values[[0, 2]]}, 8)["w"])


@pytest.mark.parametrize(
    "changes",
    [
        {"w": torch.ones(3, 4)},
        {"w": torch.ones(3, 4, dtype=torch.float16)},
        {"w": torch.ones(3, 4, dtype=torch.int16)},
        {"w": torch.ones(3, dtype=torch.int8)},
        {"w" + SCALE: torch.ones(4)},
        {"w" + SCALE: torch.ones(3, 1)},
        {"w" + SCALE: torch.ones(3, dtype=torch.float64)},
        {"w" + SCALE: torch.ones(3, dtype=torch.int8)},
        {"more": torch.ones(3, 4, dtype=torch.int8)},
        {"more" + SCALE: torch.ones(3)},
        {SCALE: torch.ones(3)},
        {"w" + SCALE + SCALE: torch.ones(3)},
    ],
)
def test_bytes_without_scales_that_fit_are_refused(changes: dict[str, Tensor]) -> None:
    good = unpacked(packed({"w": torch.randn(3, 4)}, 8))
    assert set(unpacked(packed(good), bits=8)) == {"w"}
    with pytest.raises(ValueError, match=r"8 bits|scales"):
        unpacked(packed(good | changes), bits=8)


def test_a_difference_to_another_tensor_is_left_as_it_is() -> None:
    parcel = packed({"w": torch.randn(3, 4), "x": torch.randn(2, 2)}, 8)
    told = unpacked(parcel, bits=8, since={"w": torch.ones(4, 3)})  # its shape is refused later
    assert {n: tuple(t.shape) for n, t in told.items()} == {"w": (3, 4), "x": (2, 2)}


def test_products_of_updates_are_added_up_in_float64_in_any_memory_format() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other, before = ({"w": torch.randn(3, 4, 5, 6, 7, generator=generator)} for _ in range(3))
    one["w"] = one["w"].to(memory_format=torch.channels_last_3d)
    long = [(state["w"].double() - before["w"].double()).flatten() for state in (one, other)]
    assert inner_product(one, other, before) == pytest.approx(float(long[0] @ long[1]), rel=1e-12)
    assert length(one, before) == pytest.approx(float(long[0].norm()), rel=1e-12)


def test_an_update_is_measured_without_a_copy_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = Tensor.double
    monkeypatch.setattr("core.wire.state.PIECE", 100)
    monkeypatch.setattr(Tensor, "double", lambda t: sizes.append(t.numel()) or plain(t))
    state = {"w": torch.ones(31, 10), "b": torch.ones(7)}
    before = {n: torch.zeros_like(t) for n, t in state.items()}
    for measure, value in (
        (lambda: length(state, before), 317**0.5),
        (lambda: inner_product(state, state, before), 317),
        (lambda: beyond(state, before), ""),
        (lambda: len(shortened(state, before, 0.5)), 2),
    ):
        assert measure() == value
        assert max(sizes) == 100
        sizes.clear()
