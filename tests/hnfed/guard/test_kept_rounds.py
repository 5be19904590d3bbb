"""No order takes back what a site has trained for itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.wire.messages import Order
from core.wire.partition import start_state, state_hash
from core.wire.round_checkpoints import RoundStore
from core.wire.state import packed
from hnfed.guard import order
from hnfed.guard.kept_rounds import require_onward, with_trained
from hnfed.guard.order import Asked, OrderError
from hnfed.guard.pins import Pin, keep, read_pin
from tests.client.conftest import tiny_phase, tiny_plan
from tests.hnfed.guard.conftest import ORGANS, Hospital

KEEPS: list[dict[str, Any]] = [{"share": "none"}, {"keep": ["norms"]}, {"ditto": 0.5}]


def asked(round_: int, base_round: int, task: str = "train", **changes: Any) -> Asked:
    plan = tiny_plan(tiny_phase(organs=list(ORGANS), rounds=20, **changes))
    kind = "train" if task == "train" else "evaluate"
    told = Order("r-1", "p", round_, task, base_round=base_round)
    return Asked(kind, "north", "r-1", plan, told, plan.phases[0])


def answered(folder: Path, pin: Pin, one: Asked) -> Pin:
    """The pin after an answer to an order that the guard let through, as it comes from the disk."""
    require_onward(folder, pin, one)
    keep(folder, "r-1", replace(pin, trained=with_trained(pin, one)))
    made = read_pin(folder, "r-1")
    assert made is not None
    return made


@pytest.mark.parametrize("changes", KEEPS)
def test_an_order_that_goes_behind_what_is_kept_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    pin = Pin("a" * 64)
    for round_ in range(1, 7):
        pin = answered(tmp_path, pin, asked(round_, round_ - 1, **changes))
    for round_, base_round in ((1, 0), (2, 0), (2, 1), (5, 4), (6, 0), (6, 4), (7, 0), (20, 4)):
        with pytest.raises(OrderError, match=r"take back what was trained here: .* round 6"):
            require_onward(tmp_path, pin, asked(round_, base_round, **changes))


def test_a_server_that_lost_replies_or_is_resumed_goes_on(tmp_path: Path) -> None:
    def own(round_: int, base_round: int) -> Asked:
        return asked(round_, base_round, share="none")

    pin = Pin("a" * 64)
    for one in (own(1, 0), own(1, 0), own(2, 0), own(3, 0)):  # no reply came through yet
        pin = answered(tmp_path, pin, one)
    for one in (own(4, 3), own(4, 3), own(5, 3), own(9, 3), own(9, 3), own(10, 9), own(11, 10)):
        pin = answered(tmp_path, pin, one)
    require_onward(tmp_path, pin, asked(11, 11, "test", share="none"))
    require_onward(tmp_path, pin, asked(10, 3, "validate", share="none"))
    with pytest.raises(OrderError):
        require_onward(tmp_path, pin, own(11, 9))


def test_what_lies_on_the_disk_counts_before_an_answer_left(tmp_path: Path) -> None:
    """Training was done and its reply stopped, or it was done by an earlier version."""
    store = RoundStore(tmp_path / "r-1" / "p" / "rounds")
    for round_ in (5, 6):
        store.put(round_, {"w": torch.zeros(1)}, {"round": round_})
    with pytest.raises(OrderError, match="come to round 6"):
        require_onward(tmp_path, Pin("a" * 64), asked(2, 0, share="none"))
    require_onward(tmp_path, Pin("a" * 64), asked(6, 5, share="none"))
    require_onward(tmp_path, Pin("a" * 64), asked(2, 0, share="all"))


def test_phases_of_a_run_stand_each_for_itself(tmp_path: Path) -> None:
    pin = answered(tmp_path, Pin("a" * 64), asked(6, 5, share="none"))
    other = tiny_plan(tiny_phase("q", organs=list(ORGANS), share="none"))
    told = Order("r-1", "q", 1, "train")
    require_onward(tmp_path, pin, Asked("train", "north", "r-1", other, told, other.phases[0]))


@pytest.mark.parametrize(
    ("task", "round_", "named"),
    [
        ("train", 2, {"base_round": 2}),
        ("train", 2, {"best_round": 2}),
        ("test", 2, {"base_round": 3}),
    ],
)
def test_no_order_names_a_round_that_has_not_been(
    task: str, round_: int, named: dict[str, int]
) -> None:
    kind, plan = "train" if task == "train" else "evaluate", tiny_plan()
    told = Order("r-1", "p", round_, task)
    order.read(kind, "north", "r-1", plan, {"order": told.to_config()})
    wrong = replace(told, **named)
    with pytest.raises(OrderError, match="base_round or best_round"):
        order.read(kind, "north", "r-1", plan, {"order": wrong.to_config()})


def test_the_guard_refuses_and_the_weights_stay(
    tmp_path: Path, patients: Path, own_bundle: bytes
) -> None:
    plan = tiny_plan(tiny_phase(organs=list(ORGANS), share="none", rounds=9))
    hospital = Hospital(tmp_path, patients, own_bundle, plan)
    assert hospital.ask("query").code == "OK", hospital.log
    state = start_state(plan, plan.phases[0], None)
    base, digest = packed(state), state_hash(state)

    def train(round_: int, base_round: int) -> str:
        told = hospital.order(round_, base_round=base_round, base_hash=digest)
        return hospital.ask("train", told, base=base).code

    assert [train(1, 0), train(2, 1), train(3, 2)] == ["OK"] * 3, hospital.log
    folder = hospital.state / "r-000001" / "p"

    def held() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in folder.rglob("*.safetensors")}

    before = held()
    assert [train(2, 0), train(4, 0), train(4, 1)] == ["E_ORDER"] * 3, hospital.log
    assert held() == before
    assert [train(3, 2), train(4, 2), train(5, 4)] == ["OK"] * 3, hospital.log
