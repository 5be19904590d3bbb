"""Simulations of many sites: what their rows say, and that their plan is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.sites import cost_of, plan_of, rows_of
from core.plan.load import load


def test_a_round_costs_what_no_site_computes() -> None:
    events = [
        {"event": "round", "seconds": 5.0, "seconds_compute": 1.0},
        {"event": "accepted", "seconds_compute": 9.0},
        {"event": "round", "seconds": 2.0, "seconds_compute": 1.5},
        {"event": "round", "seconds": 3.0, "seconds_compute": 1.5},
    ]
    assert cost_of(events, 5e6) == {"round_s": 3.0, "beyond_s": 1.5, "peak_mb": 5.0}


def test_the_most_sites_stand_beside_the_fewest() -> None:
    found = {n: {"round_s": 0.2 * n, "beyond_s": 0.01 * n**2, "peak_mb": 100.0} for n in (2, 24)}
    rows = {row["name"]: row for row in rows_of(found, "inline")}
    assert rows["24 sites, inline: a round"]["ratio"] == pytest.approx(4.8 / 16.4)
    assert rows["24 sites, inline: a round"]["met"] is True
    grown = rows["24 sites, inline: a round beyond computing, a site"]
    assert grown["ratio"] == pytest.approx(12)
    assert grown["met"] is False
    assert rows["24 sites, inline: memory beside few"]["met"] is True


def test_the_plan_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "sites.yaml"
    path.write_text(json.dumps(plan_of(3, 2, tmp_path)))
    config = load(str(path))[0]
    assert list(config.simulation.sites) == ["s000", "s001", "s002"]
    assert config.phases[0].rounds == 2
