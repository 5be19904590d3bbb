"""The outline of a network is its names, shapes and types, and takes no memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from core.errors import UserError
from core.models.stages import head_rows, unique_state
from core.plan.schema import Model, Plan
from core.wire.partition import network, parts_of
from hnfed.guard import exit, outline
from tests.server.conftest import tiny_plan

UNETR = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2}
SWIN = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
STAGES = {
    "encoder": ["swinViT", *(f"encoder{i}" for i in (1, 2, 3, 4, 10))],
    "decoder": [f"decoder{i}" for i in range(1, 6)],
    "head": ["out"],
}


@pytest.fixture(
    params=[
        Model(channels=[4, 8]),
        Model(name="unetr", args=UNETR),
        Model(name="SwinUNETR", args=SWIN, stages=STAGES),
    ],
    ids=lambda model: model.name,
)
def plan(request: pytest.FixtureRequest) -> Plan:
    plan: Plan = tiny_plan()
    return replace(
        plan, model=request.param, preprocess=replace(plan.preprocess, crop=[64, 64, 64])
    )


def test_it_has_the_form_of_the_network_and_no_memory(plan: Plan) -> None:
    phase = replace(plan.phases[0], freeze="encoder")
    whole, made = network(plan, phase), outline.outline(plan, phase)
    known, told = unique_state(whole), unique_state(made)
    assert {n: (t.shape, t.dtype) for n, t in told.items()} == {
        n: (t.shape, t.dtype) for n, t in known.items()
    }
    assert all(t.is_meta for t in told.values())
    assert parts_of(made, plan, phase) == parts_of(whole, plan, phase)
    assert head_rows(made) == head_rows(whole)


def test_the_guard_builds_no_network(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    made: list[nn.Module] = []

    def seen(plan: Plan, phase: Any) -> nn.Module:
        made.append(network(plan, phase))
        return made[-1]

    monkeypatch.setattr(outline, "network", seen)
    exit.most_bytes.cache_clear()
    exit.shared_shapes.cache_clear()
    assert exit.plan_bytes(plan) > 2**22
    assert exit.shared_shapes(exit.plan_json(plan), plan.phases[0].name)
    assert made
    assert all(t.is_meta for model in made for t in model.parameters())


def test_numbers_that_are_read_as_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny_plan()

    def reading(plan: Plan, phase: Any) -> nn.Module:
        if torch.zeros(1).is_meta:
            raise UserError("model.args", "{}", "other ones", problem="Tensor.item() of meta")
        return network(plan, phase)

    monkeypatch.setattr(outline, "network", reading)
    with pytest.raises(UserError):
        outline.outline(plan, plan.phases[0])
    whole = outline.outline_if_possible(plan, plan.phases[0])
    assert not any(t.is_meta for t in whole.parameters())
