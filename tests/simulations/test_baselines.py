from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import UserError
from core.plan.load import load
from core.plan.schema import Config
from simulations.baselines import POOLED, with_baseline


def config(*overrides: str) -> Config:
    return load("smoke", ["federation.min_sites=2", *overrides])[0]


def test_without_a_baseline_nothing_changes() -> None:
    assert with_baseline(config()) == config()


def test_local_only_is_every_phase_once_for_each_of_its_sites() -> None:
    plan = with_baseline(config("simulation.baseline=local-only"))
    assert [(p.name, p.sites, p.init) for p in plan.phases] == [
        ("pretrain-miccai", ["miccai"], "scratch"),
        ("pretrain-nyu", ["nyu"], "scratch"),
        ("personalise-nyu", ["nyu"], "pretrain-nyu"),
    ]
    for phase in plan.phases:
        before = config().phase(phase.name.split("-")[0])
        assert (phase.rounds, phase.local_epochs) == (before.rounds, before.local_epochs)
        assert (phase.organs, phase.freeze) == (before.organs, before.freeze)


def test_local_only_wants_a_site_that_was_there_before() -> None:
    changed = config("simulation.baseline=local-only", "phases.pretrain.sites=[miccai]")
    with pytest.raises(UserError, match=r"phases\.personalise\.sites = nyu"):
        with_baseline(changed)


def test_pooled_is_one_site_with_the_cases_of_the_sites_of_the_phases() -> None:
    extra = "simulation.sites.unused={phantom: nyu, cases: 3}"
    plan = with_baseline(config("simulation.baseline=pooled", extra))
    assert [p.sites for p in plan.phases] == [[POOLED], [POOLED]]
    assert [p.name for p in plan.phases] == ["pretrain", "personalise"]
    assert set(plan.simulation.sites) == {"nyu", "miccai"}


@pytest.mark.parametrize("kind", ["local-only", "pooled"])
def test_a_baseline_has_no_quorum_of_several_sites(kind: str) -> None:
    assert with_baseline(config(f"simulation.baseline={kind}")).federation.min_sites == 0


@pytest.mark.parametrize("kind", ["local-only", "pooled"])
def test_a_baseline_runs_and_can_be_resumed(run_tiny: Callable[..., Path], kind: str) -> None:
    overrides = [f"simulation.baseline={kind}", "federation.min_sites=2", "phases.0.rounds=1"]
    out = run_tiny("x", *overrides, "phases.1.rounds=1")
    metrics = json.loads((out / "metrics.json").read_text())
    blocks = {b["name"]: b for b in metrics["phases"]}
    if kind == "pooled":
        assert {n: set(b["sites"]) for n, b in blocks.items()} == {
            "pretrain": {POOLED},
            "personalise": {POOLED},
        }
        cell = blocks["pretrain"]["sites"][POOLED]["test"]["Brainstem"]
        assert cell["n"] == 2  # one test case of either site
    else:
        assert {n: set(b["sites"]) for n, b in blocks.items()} == {
            "pretrain-miccai": {"miccai"},
            "pretrain-nyu": {"nyu"},
            "personalise-nyu": {"nyu"},
        }
    run_tiny("x", *overrides, "phases.1.rounds=1", resume=True)
    assert json.loads((out / "metrics.json").read_text()) == metrics
