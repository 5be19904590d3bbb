"""Both sides train from the same cases; their scores are paired by patient."""

from __future__ import annotations

import json
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
from core.plan.schema import Model, Plan
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


@pytest.mark.parametrize(("against", "target"), [("naive", 3.0), ("fp32", None)])
def test_rows_compare_with_the_side_that_was_asked_for(
    against: str, target: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []

    def run(command: list[str], **_: object) -> Namespace:
        side = command[command.index("--side") + 1]
        ran.append(side)
        told = {"cpu": 1.0 if side == "ours" else 2.5, "wall": 1.0, "dice": []}
        return Namespace(stdout=json.dumps(told).encode())

    monkeypatch.setattr(naive_recipe.subprocess, "run", run)
    given = options("", [])
    given.seeds, given.against, given.amp = [0, 1], against, "bf16"
    rows = list(naive_recipe.measured(given, tmp_path))
    assert ran == ["ours", against] * 2
    assert [row["ratio"] for row in rows] == [2.5, 1.0]
    assert {row["target"] for row in rows} == {target}
    ends = [row["name"].rpartition(", ")[0].rpartition("(")[2] for row in rows]
    assert ends == ["cpu", "wall"]
    assert all(row["name"].endswith(f"{against})") for row in rows)


def test_only_ours_is_computed_in_less_than_float32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for side in naive_recipe.SIDES:
        seen: list[str] = []

        def watched(model: nn.Module, entries: object, plan: Plan, *_: object) -> None:
            seen.append(plan.train.amp)  # noqa: B023

        monkeypatch.setattr(naive_recipe, "train", watched)
        monkeypatch.setattr(naive_recipe, "train_naively", watched)
        given = options(side, [])
        given.amp = "bf16"
        own = tmp_path / side
        own.mkdir()
        naive_recipe.one(given, own)
        assert seen == ["bf16" if side == "ours" else "off"]
