from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, Metadata, MetricRecord, RecordDict

from core.plan.load import plan_json
from core.plan.schema import Plan
from core.wire.messages import Header, Order
from core.wire.partition import fingerprint, start_state
from core.wire.state import packed
from hnfed.guard import exit
from hnfed.guard.simulated import read, release
from server.exchange import record_of
from tests.client.conftest import tiny_plan

NUMBERS = {"cases": 3, "steps": 3, "skipped": 0, "seconds": 1.0, "startup": 0.0}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return tiny_plan()


@pytest.fixture
def context(plan: Plan) -> Context:
    local = json.dumps({"sites": {"north": {}, "south": {}}})
    config: Any = {"plan": plan_json(plan), "run_id": "run", "local": local}
    return Context(1, 2, {"partition-id": 0}, RecordDict(), config)


def order() -> Message:
    asked = ConfigRecord(Order("run", "p", 1, "train", fingerprint=fingerprint()).to_config())
    about = Metadata(1, "1", 1, 2, "", "", 1.0, 1e12, "train")
    made: Any = Message
    return made(RecordDict({"order": asked}), metadata=about)


def reply(state: dict[str, torch.Tensor], numbers: dict[str, Any], **header: Any) -> Message:
    told = Header("north", "run", "p", 1).to_config() | header
    content = RecordDict({"header": ConfigRecord(told), "metrics": MetricRecord(numbers)})
    if state:
        content["arrays"] = record_of(packed(state))
    return Message(content, reply_to=order())


def test_a_good_reply_leaves_as_it_is(plan: Plan, context: Context) -> None:
    state = start_state(plan, plan.phases[0], None)
    out = release(order(), reply(state, NUMBERS), context)
    assert out.content["header"]["code"] == "OK"
    assert out.content["arrays"].object_id == record_of(packed(state)).object_id


BAD = [
    ({"mrn": 4711}, {}, {}), ({}, {"site": "south"}, {}), ({}, {"note": "DOE"}, {}),
    ({}, {}, {"ct": torch.zeros(4)}),
]  # fmt: skip


@pytest.mark.parametrize(("numbers", "header", "more"), BAD)
def test_what_a_hospital_would_stop_is_stopped_here(
    plan: Plan, context: Context, numbers: Any, header: Any, more: Any
) -> None:
    state = start_state(plan, plan.phases[0], None) | more
    bad = reply(state, NUMBERS | numbers, **header)
    out = release(order(), bad, context)
    assert out.content["header"]["code"] == "E_OUTBOX"
    assert not out.content.array_records
    asked = read(order(), context, "north")
    told = exit.Reply(
        dict(bad.content["header"]),
        dict(bad.content["metrics"]),
        packed(state),
    )
    with pytest.raises(exit.OutboxError):
        exit.release(told, asked, None)


def test_a_refusal_keeps_its_code_and_nothing_else(context: Context) -> None:
    out = release(order(), reply({}, {"mrn": 4711}, code="E_DATA", note="DOE"), context)
    assert out.content["header"]["code"] == "E_DATA"
    assert "note" not in out.content["header"]
    assert dict(out.content["metrics"]) == exit.NOTHING
