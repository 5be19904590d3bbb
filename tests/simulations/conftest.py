"""A plan in seconds: coarse phantoms, made once; a network of a few weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hnfed.report.page import write_report
from simulations.phantom.cases import SIGNATURES, Cohort, write_site
from simulations.run import simulate

TINY = (
    "simulation.engine=inline",
    "simulation.phantom_spacing_mm=[8.0, 6.0, 6.0]",
    "simulation.sites.nyu.cases=5",
    "simulation.sites.miccai.cases=5",
    "simulation.overlays=0",
    "preprocess={spacing_mm: [12.0, 12.0, 12.0], crop: [16, 16, 16]}",
    "model.channels=[4, 8]",
    "train.threads=1",
    "augment.enabled=false",
)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five coarse cases, miccai_000 to miccai_004; tests copy what they change."""
    root = tmp_path_factory.mktemp("shared") / "one"
    write_site(root, Cohort(SIGNATURES["miccai"], 5, 1, (8.0, 6.0, 6.0)))
    return root


@pytest.fixture(scope="session")
def phantom_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom archives and prepared cases of all tests here."""
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture
def tiny(phantom_cache: Path) -> list[str]:
    """Overrides of `smoke` that make it tiny."""
    return [*TINY, f"simulation.cache={phantom_cache}"]


@pytest.fixture
def run_tiny(
    tiny: list[str], tmp_path: Path, task_identity: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Runs `smoke`, tiny, into a folder of the test; returns the folder of a run that completed."""
    monkeypatch.setattr("server.exchange.POLL_SECONDS", 0.001)

    def run(folder: str, *overrides: str, resume: bool = False) -> Path:
        out = tmp_path / folder
        assert simulate("smoke", [*tiny, *overrides], out, resume=resume, report=write_report) == 0
        return out

    return run


# Cells of which one needs another, each as long as it takes to be stopped in the middle.
STUDY = """
config: smoke
set: {{{settings}}}
cells:
  frozen:
    needs: pretrain
    phases: [personalise]
    axes: &axes {{lr: {{a: {{train.lr: 0.002}}, b: {{train.lr: 0.001}}}}}}
    set: {{phases.personalise.init: "{{pretrain}}/checkpoints/pretrain/best.safetensors"}}
  pretrain:
    phases: [pretrain]
    axes: *axes
    set: {{phases.pretrain.rounds: 100, phases.pretrain.patience: 100}}
"""
