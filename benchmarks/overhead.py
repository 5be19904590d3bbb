"""Time in rounds not spent computing at a site: the demo's plan, a few rounds, inline engine."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import AtMost, report, row
from core.journal import JOURNAL, read_events
from simulations.run import simulate

TARGET = 0.05
SHORT = (
    "simulation.engine=inline",
    "phases.pretrain.rounds=2",
    "phases.personalise.rounds=2",
    "tracking.mode=disabled",
)


def shares(events: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Returns (seconds in rounds, seconds of them computed at the sites, one after the other)."""
    rounds = [e for e in events if e["event"] == "round"]
    total = sum(float(e["seconds"]) for e in rounds)
    return total, sum(float(e["seconds_compute"]) for e in rounds)


def rows(config: str = "demo") -> list[dict[str, Any]]:
    """Runs the plan in a temporary folder and returns the row."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        if simulate(config, SHORT, out):
            raise SystemExit("the run did not complete")
        events = read_events(out / JOURNAL)
    total, computed = shares(events)
    share = (total - computed) / total
    name = "time in rounds not spent computing, inline"
    return [row(name, total - computed, "s", "seconds in rounds", share, AtMost(TARGET))]


def main() -> None:
    """Prints the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--json", type=Path, help="merge the row into this benchmarks.json")
    options = parser.parse_args()
    found = rows(options.config)
    report(found, options.json)


if __name__ == "__main__":
    main()
