from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.metrics.scores import OrganSum
from core.plan.schema import Phase, Plan
from core.training.optimisation import NonFiniteError
from core.wire.messages import CODES, Description, Header, Order, Result
from core.wire.partition import start_state
from core.wire.state import packed
from hnfed.guard import exit
from hnfed.guard.order import Asked
from hnfed.guard.outbox import (
    CONFIG,
    NUMBERS,
    OutboxError,
    require_allowed,
    require_form,
)
from tests.client.conftest import tiny_plan

SHAPES = {"head.weight": (2, 3), "body.1": (4,)}
HEADER = Header("nyu", "run-1", "pretrain", 3).to_config()
METRICS = {"cases": 12, "seconds": 1.5, "loss": [0.1, 0.2], "val.dice": [0.5], "left_out.E_X": 2}

EXPECTED = {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def good() -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def test_what_may_leave_leaves() -> None:
    require_allowed(HEADER, METRICS, good(), EXPECTED)
    require_allowed({"site": "nyu", "version.torch": "2.13.0+cpu", "code": "OK"}, {}, {}, {})


@pytest.mark.parametrize(
    ("config", "metrics"),
    [
        ({"note": "x"}, {}),
        ({"site": "Doe, Jane"}, {}),
        ({"site": "/data/DOE"}, {}),
        ({"site": "a" * 129}, {}),
        ({"code": "E_SECRET"}, {}),
        ({"round": 1.5}, {}),
        ({"version.torch/../x": "1"}, {}),
        ({"split_hash": "MRN12345"}, {}),
        ({"fingerprint": "Doe.Jane"}, {}),
        ({}, {"patient": 1}),
        ({}, {"left_out.DOE^JANE": 1}),
        ({}, {"loss": [float("nan")]}),
        ({}, {"loss": [1e16]}),
        ({}, {"loss": ["text"]}),
        ({}, {"cases": True}),
        ({}, {"annotated": list(range(257))}),
    ],
)
def test_scalars_that_may_not(config: dict[str, Any], metrics: dict[str, Any]) -> None:
    with pytest.raises((OutboxError, NonFiniteError)):
        require_allowed(config, metrics, {}, {})


def test_tensors_that_may_not() -> None:
    for name, value in {
        "encoder.w": torch.zeros(2),
        "head.weight": torch.zeros(3, 2),
        "body.1": torch.zeros(4, dtype=torch.float64),  # room for words in its lower half
    }.items():
        with pytest.raises(OutboxError):
            require_allowed(HEADER, {}, {name: value}, EXPECTED)
    with pytest.raises(NonFiniteError):
        require_allowed(HEADER, {}, {"body.1": torch.tensor([1.0, float("inf"), 0, 0])}, EXPECTED)


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(["site", "code", "round", "cases"]), st.text(max_size=12)),
        st.one_of(
            st.text(max_size=40), st.integers(), st.floats(), st.binary(max_size=8), st.none()
        ),
        max_size=4,
    )
)
def test_whatever_else_is_stopped(values: dict[str, Any]) -> None:
    """What passes is short text of a few signs under a known name, or a whole number."""
    try:
        require_allowed(values, {}, {}, {})
    except OutboxError:
        return
    for key, value in values.items():
        assert key in {*HEADER, "fingerprint", "split_hash"} or key.startswith("version.")
        if isinstance(value, str):
            assert len(value) <= 128
            assert not set(value) & set(" /\\^,;'\"<>\n")
            assert key != "code" or value in CODES
        else:
            assert isinstance(value, int)


TOKENS = (
    "DOE^JANE",
    "/data/MRN12345",
    "1.2.840.113619.2.55 3",
    "Müller",
    "x\ny",
    "a b",
    "C:\\scan",
)


def anything(chance: random.Random) -> Any:
    """A value of any kind, of a plausible or an absurd size."""
    kinds: list[Callable[[], Any]] = [
        lambda: chance.choice(TOKENS),
        lambda: chance.choice(["nyu", "pretrain", "OK", "E_DATA", "E_JANE", "a" * 200]),
        lambda: chance.choice([0, 3, -1, 10**18, True, None, 1.5, 1e300]),
        lambda: chance.choice([float("nan"), float("inf"), -float("inf")]),
        lambda: (
            [chance.choice([1, 2.5, float("nan"), "DOE^JANE", None, True])]
            * chance.choice([1, 3, 300])
        ),
        lambda: bytes(4),
        lambda: {"patient": "DOE^JANE"},
        lambda: torch.zeros(2),
    ]
    return chance.choice(kinds)()


def escaped(config: Mapping[str, Any], metrics: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """What of an accepted reply is not on the list, judged apart from the code; "" if none."""
    header = {"site", "run", "phase", "round", "code", "stopped", "best_round"}
    for key, value in config.items():
        if key not in header | {"fingerprint", "split_hash"} and not key.startswith("version."):
            return key
        if not isinstance(key, str) or any(t in f"{key}{value}" for t in TOKENS):
            return f"{key}={value}"
        if not isinstance(value, str | int) or len(str(value)) > 128:
            return f"{key}={value}"
    for key, value in metrics.items():
        if not key.isascii() or any(c in key for c in " /\\^"):
            return key
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                return f"{key}={number}"
            if not abs(number) < 1e16:
                return f"{key}={number}"
    for name, tensor in state.items():
        if name not in SHAPES or tuple(tensor.shape) != SHAPES[name]:
            return name
        if not bool(torch.isfinite(tensor.float()).all()):
            return f"{name}: not finite"
    return ""


def test_five_thousand_random_replies_and_none_escapes() -> None:
    chance = random.Random(5)
    keys = [*HEADER, "fingerprint", "split_hash", "version.torch", "note", *TOKENS]
    numbers = [*METRICS, "steps", "test.n", "left_out.W_X", "left_out.DOE", "patient", *TOKENS]
    passed = stopped = 0
    for _ in range(5000):
        config, metrics, state = dict(HEADER), dict(METRICS), good()
        for _ in range(chance.randrange(3)):
            config[chance.choice(keys)] = anything(chance)
        for _ in range(chance.randrange(3)):
            metrics[chance.choice(numbers)] = anything(chance)
        if chance.random() < 0.3:
            name = chance.choice([*SHAPES, "encoder.w", *TOKENS])
            shape = chance.choice([(2, 3), (4,), (3, 2)])
            state[name] = torch.full(shape, chance.choice([0.0, float("nan"), float("inf")]))
        try:
            require_allowed(config, metrics, state, EXPECTED)
        except (OutboxError, NonFiniteError):
            stopped += 1
            continue
        passed += 1
        assert not escaped(config, metrics, state)
    print(f"5000 replies: {stopped} stopped, {passed} passed, 0 escapes")
    assert stopped > 1000
    assert passed > 300


def test_the_list_names_what_the_protocol_sends_and_no_more() -> None:
    description = Description("a", "f", "s", (1, 1, 1), (1,), (1.0,), (1.0,), {}, {}, (1,), (1,))
    config, metrics = description.to_records()
    result = Result(
        1, (1,), (1.0,) * 5, scores={s: {"A": OrganSum(1, 1, 1.0)} for s in ("val", "test")}
    )
    assert set(CONFIG) == set(config) | {f.name for f in fields(Header)} | {"receipt"}
    assert set(NUMBERS) == set(metrics) | set(result.to_metrics(["A"]))


FORM = Plan(phases=[Phase("p", ["nyu"], ["Brainstem", "Larynx"])])


@pytest.mark.parametrize(
    ("kind", "metrics"),
    [
        ("query", {"val.dice": [0.5, 0.25]}),
        ("query", {"loss": [1.0] * 5}),
        ("query", {"cases": [3, 1, 1, 77]}),
        ("query", {"left_out.E_X": [1, 2]}),
        ("train", {"voxels": [1.5, 2.5]}),
        ("train", {"left_out.E_X": 123456}),
        ("train", {"annotated": [1, 2, 3]}),
        ("train", {"loss": [0.5] * 200}),
        ("train", {"steps": [1, 2]}),
        ("evaluate", {"test.n": [1.0] * 256}),
    ],
)
def test_a_reply_has_the_numbers_of_its_kind_and_no_more(
    kind: str, metrics: dict[str, object]
) -> None:
    phase = None if kind == "query" else FORM.phases[0]
    with pytest.raises(OutboxError, match="metrics: "):
        require_form(kind, FORM, phase, metrics)


@pytest.mark.parametrize(
    ("bits", "right"),
    [(32, 32), (16, 16), (8, 8), (16, 32), (32, 16), (8, 32), (8, 16), (32, 8), (16, 8)],
)
def test_weights_leave_in_the_bits_of_the_plan_and_in_no_others(bits: int, right: int) -> None:
    plan = tiny_plan()
    plan = replace(plan, federation=replace(plan.federation, update_bits=bits))
    order = Order("run", "p", 1, "train")
    asked = Asked("train", "north", "run", plan, order, plan.phases[0])
    state = start_state(plan, plan.phases[0], None)
    numbers = {"cases": 3, "steps": 3, "skipped": 0, "seconds": 1.0}
    reply = exit.Reply(Header("north", "run", "p", 1).to_config(), numbers, packed(state, right))
    if bits != right:
        with pytest.raises(OutboxError):
            exit.release(reply, asked, None)
        return
    assert exit.release(reply, asked, None).parcel == packed(state, bits)
