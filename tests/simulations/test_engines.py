"""The same plan through Flower on Ray and inline: two engines, one result (D6)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.wire.checkpoint import load

WEIGHTS = (
    "checkpoints/pretrain/best.safetensors",
    "checkpoints/pretrain/last.safetensors",
    "sites/nyu/personalise/best.safetensors",
)


def scores(run: Path) -> list[object]:
    phases = json.loads((run / "metrics.json").read_text())["phases"]
    return [(p["name"], p["best_round"], p["sites"], p["mean"]) for p in phases]


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is none in every variable: local traffic must take no proxy."""
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "GRPC_PROXY"):
        for given in (name, name.lower()):
            monkeypatch.setenv(given, "socks5://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet.example")


@pytest.mark.usefixtures("proxies")
def test_ray_and_inline_give_equal_weights_and_scores(run_tiny: Callable[..., Path]) -> None:
    ray, inline = run_tiny("ray", "simulation.engine=ray"), run_tiny("inline")
    for name in WEIGHTS:
        one, other = load(ray / name)[0], load(inline / name)[0]
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, other[key]), (name, key)
    assert scores(ray) == scores(inline)
