"""Weights and images lie in memory as the fast kernels want them, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from core.data.cached_case import Entry
from core.models.blocks import InstanceNorm
from core.plan.schema import Model
from core.training import engine
from core.training.memory import laid_out, to_device
from tests.core.training.conftest import model_of, plan_of

CPU = torch.device("cpu")
LAST, FIRST = (Model(channels=[8, 16], channels_last=last) for last in (True, False))


def orders_of_first_norms(model: nn.Module) -> dict[str, list[bool]]:
    """Whether what each norm of the first block got lies channels-last; filled as it runs."""
    seen: dict[str, list[bool]] = {}
    for name, module in model.named_modules():
        if isinstance(module, InstanceNorm) and name.startswith("down.0."):
            orders = seen.setdefault(name, [])
            module.register_forward_pre_hook(
                lambda _, given, orders=orders: orders.append(given[0].stride(1) == 1)
            )
    return seen


@pytest.mark.parametrize("settings", [LAST, FIRST])
def test_training_and_scoring_run_in_the_order_of_the_weights(
    entries: list[Entry], settings: Model
) -> None:
    plan = plan_of(model=settings)
    model = model_of(plan)
    seen = orders_of_first_norms(model)
    phase = replace(plan.phases[0], local_epochs=1)
    engine.train(model, entries[:1], plan, phase, CPU, engine.Epochs(0, 1, seed=1))
    engine.validate(model, entries[:1], plan, phase, CPU)
    last = settings.channels_last
    assert seen["down.0.norm1"] == seen["down.0.norm2"] == [last, last]
    if last:
        assert seen["down.0.shortcut.1"] == [True, True]


def test_the_order_changes_rounding_alone() -> None:
    torch.manual_seed(1)
    image = torch.rand(1, 1, 24, 24, 24)
    said = []
    for settings in (LAST, FIRST):
        model = to_device(model_of(plan_of(model=settings)), CPU, settings.channels_last)
        seen = orders_of_first_norms(model)
        said.append(model(laid_out(image, model)))
        assert seen["down.0.norm1"] == [settings.channels_last]
    torch.testing.assert_close(said[0], said[1], atol=1e-4, rtol=1e-4)


def test_an_image_of_one_channel_says_its_order() -> None:
    image = torch.rand(1, 1, 4, 5, 6)
    last = to_device(nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 4, 3)), CPU, True)
    first = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 4, 3))
    assert laid_out(image, last).stride() == (120, 1, 30, 6, 1)
    assert laid_out(image, first) is image
    assert torch.equal(laid_out(image, last), image)


def test_a_network_without_kernels_takes_the_image_as_it_is() -> None:
    image: Tensor = torch.rand(1, 1, 4, 5, 6)
    assert laid_out(image, nn.Identity()) is image
    assert laid_out(image, to_device(nn.Conv3d(1, 3, 1), CPU, True)) is image


def test_weights_of_one_channel_lie_as_asked_for() -> None:
    weight = to_device(nn.Conv3d(1, 4, 3), CPU, True).weight
    assert isinstance(weight, Tensor)
    assert weight.stride() == (27, 1, 9, 3, 1)
