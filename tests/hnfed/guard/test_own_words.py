"""A reply has no words of its own: neither as versions nor as numbers of its head."""

from __future__ import annotations

from typing import Any

import pytest

from core.provenance import versions
from core.wire.messages import Header, Order
from hnfed.guard import exit
from hnfed.guard.node import _with_startup
from hnfed.guard.order import Asked
from hnfed.guard.outbox import OutboxError
from tests.client.conftest import tiny_plan

NUMBERS = {"cases": 3, "steps": 3, "skipped": 0, "seconds": 1.0}


def described(**more: Any) -> dict[str, Any]:
    told = {"site": "north", "code": "OK", "fingerprint": "a" * 64, "split_hash": "b" * 64}
    return told | {f"version.{k}": v for k, v in versions().items()} | more


@pytest.mark.parametrize(
    "more",
    [
        {"version.torch": "DOE.JOHN.19500101"}, {"version.mrn": "4711"}, {"phase": "DOE"},
        {"best_round": 4711}, {"receipt": "c" * 64},
    ],
)  # fmt: skip
def test_a_description_carries_no_words_of_its_own(more: dict[str, Any]) -> None:
    order = Order("run", "", 0, "")
    asked = Asked("query", "north", "run", tiny_plan(), order, None)
    numbers = {"cases": [3, 1, 1]}
    made = exit.release(exit.Reply(described(), numbers), asked, None, exit.Known(split="b" * 64))
    assert made.config == described()
    other = exit.Reply(described(split_hash="d" * 64), numbers)
    with pytest.raises(OutboxError, match="split_hash"):  # the guard knows the split that it made
        exit.release(other, asked, None, exit.Known(split="b" * 64))
    with pytest.raises(OutboxError, match="config"):
        exit.release(exit.Reply(described() | more, numbers), asked, None)


@pytest.mark.parametrize(
    "more", [{"best_round": 19500101}, {"best_round": "DOE"}, {"stopped": "DOE"}, {"stopped": 4711}]
)
def test_a_head_has_no_room_for_numbers(more: dict[str, Any]) -> None:
    plan = tiny_plan()
    order = Order("run", "p", 1, "validate")
    asked = Asked("evaluate", "north", "run", plan, order, plan.phases[0])
    told = Header("north", "run", "p", 1).to_config()
    assert exit.release(exit.Reply(told, NUMBERS), asked, None).config == told
    with pytest.raises(OutboxError, match="stopped or best_round"):
        exit.release(exit.Reply(told | more, NUMBERS), asked, None)


@pytest.mark.parametrize("seconds", [0, "x", None, -1e14, float("nan"), True])
def test_startup_is_the_guards_own_number_whatever_seconds_are(seconds: Any) -> None:
    """Seconds as a whole number let the code's own startup through, masked sums included."""
    with pytest.raises(OutboxError, match="startup"):
        _with_startup(exit.Reply({}, {"seconds": seconds, "startup": 4711.19500101}), 2.0)
    told = _with_startup(exit.Reply({}, {"seconds": 1.5, "startup": 4711.0}), 2.0)
    assert told.metrics["startup"] == 0.5
