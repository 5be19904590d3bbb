from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from flwr.app import Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from core.plan.schema import Strategy
from core.wire.messages import Header, Result
from server.aggregate import Part, aggregate_head, average, parts
from server.guards import Accepted
from server.strategy import STRATEGIES, State, joined


def head(value: float) -> dict[str, Tensor]:
    return {
        "body": torch.full((2, 3), value),
        "head.weight": torch.full((3, 2, 1), value),
        "head.bias": torch.full((3,), value),
    }


def accepted(state: State, updates: Sequence[State], round_: int) -> dict[str, Accepted]:
    order = Message(RecordDict(), dst_node_id=1, message_type="train")  # type: ignore[arg-type]
    return {
        f"s{i}": Accepted(
            Header(f"s{i}", "r", "p", round_),
            Result(cases=i + 1),
            {n: t + u for (n, t), u in zip(state.items(), update.values(), strict=True)},
            Message(RecordDict(), reply_to=order),
        )
        for i, update in enumerate(updates)
    }


Sizes = st.lists(st.integers(0, 40), min_size=1, max_size=6)
HEADS = ["head.weight", "head.bias"]


def test_each_row_is_weighted_by_the_cases_that_annotate_its_organ() -> None:
    state, kept = aggregate_head(
        head(0.0), head(9.0), [head(1.0), head(4.0)], [[3.0, 0.0], [1.0, 2.0]], HEADS
    )
    assert kept == []
    for name in HEADS:
        assert torch.allclose(state[name][1], torch.tensor((3 * 1.0 + 1 * 4.0) / 4))
        assert torch.allclose(state[name][2], torch.tensor(4.0))


def test_body_and_background_row_stay_as_the_strategy_left_them() -> None:
    state, _ = aggregate_head(
        head(0.0), head(9.0), [head(1.0), head(4.0)], [[3.0, 1.0], [1.0, 1.0]], HEADS
    )
    assert torch.equal(state["body"], head(9.0)["body"])
    for name in HEADS:
        assert torch.equal(state[name][0], head(9.0)[name][0])


def test_a_row_that_nobody_annotates_is_the_previous_one() -> None:
    state, kept = aggregate_head(
        head(-5.0), head(9.0), [head(1.0), head(4.0)], [[1.0, 0.0], [1.0, 0.0]], HEADS
    )
    assert kept == [1]
    for name in HEADS:
        assert torch.equal(state[name][2], head(-5.0)[name][2])
        assert not torch.equal(state[name][1], head(-5.0)[name][1])


def test_inputs_are_not_changed() -> None:
    averaged, update = head(9.0), head(1.0)
    aggregate_head(head(0.0), averaged, [update], [[1.0, 1.0]], HEADS)
    assert torch.equal(averaged["head.bias"], head(9.0)["head.bias"])
    assert torch.equal(update["head.bias"], head(1.0)["head.bias"])


def test_sums_run_in_double_precision() -> None:
    sites = 7
    states = [{"head.bias": torch.tensor([0.0, 1.0e8 + i])} for i in range(sites)]
    state, _ = aggregate_head(
        {"head.bias": torch.zeros(2)},
        {"head.bias": torch.zeros(2)},
        states,
        [[1.0]] * sites,
        ["head.bias"],
    )
    exact = sum(float(s["head.bias"][1].double()) for s in states) / sites
    assert float(state["head.bias"][1]) == float(torch.tensor(exact))


def test_every_update_has_a_row_of_weights() -> None:
    with pytest.raises(ValueError):
        aggregate_head(head(0.0), head(0.0), [head(1.0), head(2.0)], [[1.0, 1.0]], HEADS)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"dp"}))  # its noise differs
@pytest.mark.parametrize("sites", [1, 3, 9])
def test_an_average_in_parts_is_the_whole_one_bit_for_bit(
    task_identity: None, monkeypatch: pytest.MonkeyPatch, name: str, sites: int
) -> None:
    generator = torch.Generator().manual_seed(1)

    def drawn() -> dict[str, Tensor]:
        shapes = {"a": (7, 3, 2), "b": (5,), "one": (1,), "none": ()}
        return {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}

    def rounds() -> dict[str, Tensor]:
        state, moments = start, {}
        for round_ in (1, 2):
            good = accepted(state, drawn_updates, round_)
            state, moments = average(settings, round_, state, moments, good, equal=False)
        return joined(state, moments)

    settings, start = Strategy(name=name), drawn()
    drawn_updates = [drawn() for _ in range(sites)]
    whole = rounds()
    monkeypatch.setattr("server.aggregate.AT_ONCE", 10 * sites)
    monkeypatch.setattr("server.aggregate.FEWEST", 1)
    cut = rounds()
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[n], cut[n]) for n in whole)
    assert any(not torch.equal(whole[n], start[n]) for n in start)


@pytest.mark.parametrize(("sites", "most"), [(1, 60), (3, 20), (12, 8)])
def test_more_sites_are_averaged_in_smaller_parts_so_that_memory_does_not_grow(
    task_identity: None, monkeypatch: pytest.MonkeyPatch, sites: int, most: int
) -> None:
    sizes = []

    def seen(state: State, numbers: int) -> Iterator[Part]:
        sizes.append(numbers)
        return parts(state, numbers)

    monkeypatch.setattr("server.aggregate.AT_ONCE", 60)
    monkeypatch.setattr("server.aggregate.FEWEST", 8)
    monkeypatch.setattr("server.aggregate.parts", seen)
    state = {"a": torch.zeros(100)}
    good = accepted(state, [{"a": torch.ones(100)}] * sites, 1)
    average(Strategy(name="fedavg"), 1, state, {}, good, equal=False)
    assert sizes == [most]


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
