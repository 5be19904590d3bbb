"""Both sides train from the same cases; their scores are paired by patient."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import naive_recipe
from benchmarks.gpu_steps import label_map, usual_layers
from core.models.blocks import InstanceNorm
from core.models.build import build
from core.models.convolution import Convolution
from core.plan.schema import Model
from simulations.phantom.cases import SIGNATURES, Cohort, write_site


def options(side: str, archive: list[Path]) -> Namespace:
    return Namespace(
        archive=archive,
        crop=[16, 16, 16],
        epochs=1,
        train=2,
        test=9,
        threads=1,
        side=side,
        seed=0,
        amp="off",
        device="cpu",
        workers=0,
    )


def test_soft_labels_become_hard() -> None:
    shares = torch.zeros((1, 2, 1, 1, 3), dtype=torch.uint8)
    shares[0, 0, 0, 0, 0], shares[0, 1, 0, 0, 1] = 200, 100
    assert label_map(shares).flatten().tolist() == [1, 0, 0]


def test_usual_layers_compute_the_same() -> None:
    model = build(Model(channels=[4, 8]), 2, [8, 8, 8]).eval()
    x = torch.rand(1, 1, 8, 8, 8)
    before = model(x)
    after = usual_layers(model)
    torch.testing.assert_close(after(x), before, rtol=1e-4, atol=1e-5)
    kinds = {type(module) for module in after.modules()}
    assert nn.InstanceNorm3d in kinds
    assert not kinds & {InstanceNorm, Convolution}


@pytest.mark.parametrize("side", naive_recipe.SIDES)
def test_a_side_trains_and_is_scored(side: str, tmp_path: Path) -> None:
    cohort = Cohort(SIGNATURES["nyu"], 7, 3, (8.0, 6.0, 6.0))  # some lack an organ
    write_site(tmp_path / "archive", cohort)
    told = naive_recipe.one(options(side, [tmp_path / "archive"]), tmp_path)
    assert told["cpu"] > 0
    assert 1 <= len(told["dice"]) < 5, "two train, of those that annotate all four organs"
    for dice in told["dice"]:
        assert len(dice) == 4
        assert not any(math.isnan(d) for d in dice)


def test_without_an_archive_nothing_is_scored(tmp_path: Path) -> None:
    assert naive_recipe.one(options("ours", []), tmp_path)["dice"] == []
