"""A tiny archive of balls, prepared, and plans and networks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.archives.archive import open_archive
from core.archives.cache_build import Cache, build_cache
from core.data.cache import Recipe
from core.data.cached_case import Entry
from core.models.build import build
from core.plan.schema import Augment, Loss, Model, Phase, Plan, Preprocess, Train

ORGANS = ("Brainstem", "Parotid_L")
PRE = Preprocess([5.0, 5.0, 5.0], [24, 24, 24], [-200.0, 300.0])


def plan_of(augment: bool = False, model: Model | None = None, **train: Any) -> Plan:
    return Plan(
        preprocess=PRE,
        augment=Augment(enabled=augment),
        model=model or Model(channels=[8, 16], norm="group", channels_last=True),
        loss=Loss(dice=1.0, gdice=0.0),
        train=Train(**{"lr": 5e-3, "threads": 1, "deterministic": True, **train}),
        phases=[Phase(name="p", sites=["s"], organs=list(ORGANS))],
    )


@pytest.fixture(scope="session")
def entries(ball_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    archive = open_archive(ball_archive)
    splits = {ref.case: str(ref.split) for ref in archive.cases}
    cache = tmp_path_factory.mktemp("cache")
    return list(build_cache(archive, splits, Cache(cache), Recipe(ORGANS, PRE)).entries)


def model_of(plan: Plan, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(plan.model, len(ORGANS), PRE.crop)
