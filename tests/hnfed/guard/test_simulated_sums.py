"""Sums over three simulated institutions, real training included, against plain averaging."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from core.journal import read_events
from core.wire.checkpoint import load
from hnfed.cli.main import RELEASE
from hnfed.report.page import write_report
from simulations.run import simulate
from tests.simulations.conftest import TINY

SITES = ["nyu", "miccai", "third"]


def run(folder: Path, cache: Path, *, secure: bool) -> Path:
    sites = ",".join(SITES)
    overrides = [
        *TINY,
        f"simulation.cache={cache}",
        "simulation.sites.third={phantom: miccai, cases: 5}",
        f"phases.0.sites=[{sites}]",
        "phases.0.rounds=2",
        "phases.1.rounds=1",
        "loss.class_weight=sqrt",
        "federation.guards.norm='off'",
        "weighting.by=dice",
        f"federation.secure_aggregation={str(secure).lower()}",
    ]
    assert simulate("smoke", overrides, folder, release=RELEASE, report=write_report) == 0
    return folder


def test_three_institutions_learn_what_they_would_without_masks(
    tmp_path: Path, task_identity: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.exchange.POLL_SECONDS", 0.001)
    plain = run(tmp_path / "plain", tmp_path / "cache", secure=False)
    secure = run(tmp_path / "secure", tmp_path / "cache", secure=True)
    first = [load(r / "checkpoints/pretrain/last.safetensors")[0] for r in (plain, secure)]
    for name, tensor in first[0].items():
        assert torch.allclose(first[1][name], tensor, atol=2e-5), name
    blocks = [json.loads((r / "metrics.json").read_text())["phases"] for r in (plain, secure)]
    assert blocks[1][0]["mean"]["n"] == blocks[0][0]["mean"]["n"]
    assert blocks[1][0]["mean"]["dice"] == pytest.approx(blocks[0][0]["mean"]["dice"], abs=1e-2)
    assert list(blocks[1][0]["sites"]) == ["all-sites"]
    (site,) = blocks[1][1]["sites"].values()  # the personal phase tells nothing
    assert site == {"test": {}, "val": {}}
    assert (secure / "report.html").is_file()
    rounds = [e for e in read_events(secure / "journal.jsonl") if e["event"] == "round"]
    assert rounds[0]["accepted"] == sorted(SITES)
