from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from core.plan.load import load
from hnfed.report.page import write_report
from simulations.run import simulate

PHASES = {
    "table1": ["pretrain", "pretrained", "transfer"],
    "table3": ["pretrain", "from-scratch", "no-freezing", "first-half", "last-layers"],
    "losses": ["train"],
    "figure5": ["pretrain", "pretrained", "mixed"],
}


@pytest.mark.parametrize("plan", PHASES)
def test_a_plan_of_the_paper_runs_on_phantoms(plan: str, tiny: list[str], tmp_path: Path) -> None:
    name = f"paper/{plan}"
    config, _ = load(name)
    assert [p.name for p in config.phases] == PHASES[plan]
    assert (config.preprocess.crop, {p.patience for p in config.phases}) == ([96, 128, 224], {50})
    small = [f"phases.{p.name}.rounds={min(p.rounds, 1)}" for p in config.phases]
    small += [
        f"simulation.sites.{s}={{phantom: {s}, cases: 5, "
        "split: {train: 0.34, val: 0.33, test: 0.33, seed: 0}}"
        for s in config.simulation.sites
    ]
    shared = [o for o in tiny if not o.startswith("simulation.sites")]
    # Fine enough that each organ has a voxel: an organ that no case can teach ends the run.
    shared += ["simulation.phantom_spacing_mm=[4.0, 3.0, 3.0]"]
    shared += ["preprocess={spacing_mm: [4.0, 3.0, 3.0], crop: [48, 40, 48]}"]
    overrides = [*shared, *small, "tracking.mode=disabled"]
    assert simulate(name, overrides, tmp_path / "run", report=write_report) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [p["name"] for p in metrics["phases"]] == PHASES[plan]
    assert all(p["mean"]["n"] > 0 for p in metrics["phases"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert ("Beside the paper" in page) == bool(config.simulation.published)
    assert ("true volume of OpticChiasm at miccai in mL" in page) == (plan == "figure5")
    if plan == "figure5":
        section = page.split('<section id="volumes">')[1].split("</section>")[0]
        assert re.search(r"<b>pretrained \d+\.\d\d</b> .*<b>mixed \d+\.\d\d</b>", section)
    if plan == "table1":
        assert "this run: transfer" in page
        assert "UNETR, pretrained: the printed average is 61.3, that of the rows 61.24." in page
