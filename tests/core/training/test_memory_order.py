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


def orders_of_first_norms(model: nn.Module) -> list[bool]:
    """Whether what the first block's norms got lies channels-last, filled as the network runs."""
    seen: list[bool] = []
    for name, module in model.named_modules():
        if isinstance(module, InstanceNorm) and name.startswith("down.0."):
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0].stride(1) == 1))
    return seen


@pytest.mark.parametrize("channels_last", [True, False])
def test_training_and_scoring_run_in_the_order_of_the_weights(
    entries: list[Entry], channels_last: bool
) -> None:
    plan = plan_of(model=Model(channels=[8, 16], channels_last=channels_last))
    model = model_of(plan)
    seen = orders_of_first_norms(model)
    phase = replace(plan.phases[0], local_epochs=1)
    engine.train(model, entries[:1], plan, phase, CPU, engine.Epochs(0, 1, seed=1))
    trained = len(seen)
    assert trained == 3, "two norms and the shortcut's"
    engine.validate(model, entries[:1], plan, phase, CPU)
    assert len(seen) == 2 * trained
    assert all(seen) == channels_last


def test_the_order_changes_rounding_alone() -> None:
    image = torch.rand(1, 1, 24, 24, 24, dtype=torch.float64)
    said = []
    for channels_last in (True, False):
        model = to_device(model_of(plan_of()).double(), CPU, channels_last)
        said.append(model(laid_out(image, model)))
    torch.testing.assert_close(said[0], said[1], atol=1e-10, rtol=1e-10)


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
