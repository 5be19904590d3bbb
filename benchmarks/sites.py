"""Simulations of more and more tiny sites: seconds a round, what of them no site computes, memory.

python -m benchmarks.sites [--sites N [N ...]] [--engine inline|ray] [--rounds N] [--json FILE]

A site has four small phantoms and trains one epoch of a network of 15,000 weights a round, so that
what remains is mostly what a simulation costs itself. Each number of sites is a command of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.demo import run
from benchmarks.measure import AtMost, report, row
from core.journal import JOURNAL, read_events

SITES, ROUNDS = (2, 8, 24, 32), 3
FORMER = {2: 1.8, 8: 4.9, 24: 16.4}  # seconds a round of the inline engine, before it was mended
FASTER = AtMost(0.4)
LINEAR, FLAT = AtMost(1.1), AtMost(1.1)  # time beyond computing a site, memory: most sites to least
Cost = Mapping[str, float]


def plan_of(sites: int, rounds: int, cache: Path) -> dict[str, Any]:
    """The plan of so many sites; its phantoms are made below `cache`, once for all numbers."""
    names = [f"s{i:03d}" for i in range(sites)]
    return {
        "preprocess": {"spacing_mm": [8.0, 6.0, 6.0], "crop": [32, 32, 40]},
        "augment": {"enabled": False},
        "model": {"channels": [4, 8, 16]},
        "train": {"threads": 1, "deterministic": True},
        "phases": [
            {
                "name": "p",
                "sites": names,
                "organs": ["Brainstem", "Bone_Mandible"],
                "rounds": rounds,
                "test": False,
            }
        ],
        "tracking": {"mode": "disabled"},
        "simulation": {
            "cpus_per_site": 1,
            "phantom_spacing_mm": [8.0, 6.0, 6.0],
            "cache": str(cache),
            "overlays": 0,
            "sites": {name: {"phantom": "nyu", "cases": 4} for name in names},
        },
    }


def cost_of(events: Sequence[Mapping[str, Any]], peak: float) -> dict[str, float]:
    """Seconds of a round, those of them in which no site computes (one after the other), memory."""
    rounds = [event for event in events if event["event"] == "round"]
    seconds = [float(event["seconds"]) for event in rounds]
    beyond = [float(e["seconds"]) - float(e["seconds_compute"]) for e in rounds]
    return {
        "round_s": statistics.median(seconds),
        "beyond_s": statistics.median(beyond),
        "peak_mb": peak / 1e6,
    }


def measured(sites: int, rounds: int, engine: str, folder: Path) -> dict[str, float]:
    """Runs the plan of so many sites, once its phantoms are prepared."""
    plan, out = folder / f"{sites}.yaml", folder / f"{sites}-{engine}"
    plan.write_text(json.dumps(plan_of(sites, rounds, folder / "cache")), encoding="utf-8")
    command = [sys.executable, "-m", "hnfed.cli.main", "simulate", str(plan)]
    first = ["phases.p.rounds=1", "simulation.engine=inline", "--out", str(folder / f"{sites}-0")]
    run([*command, *first])
    _, peak = run([*command, f"simulation.engine={engine}", "--out", str(out)])
    return cost_of(read_events(out / JOURNAL), peak)


def rows_of(found: Mapping[int, Cost], engine: str) -> list[dict[str, Any]]:
    """Rows by number of sites; the largest number beside the smallest."""
    rows, least, most = [], min(found), max(found)
    for sites, cost in found.items():
        name, former = f"{sites} sites, {engine}", FORMER.get(sites)
        if engine == "inline" and former:
            ratio, target = cost["round_s"] / former, FASTER if sites == 24 else None
            rows.append(row(f"{name}: a round", cost["round_s"], "s", f"{former} s", ratio, target))
        else:
            rows.append(row(f"{name}: a round", cost["round_s"], "s"))
        if engine == "inline":  # side by side, seconds of sites add up to more than the clock's
            rows.append(row(f"{name}: a round beyond computing", cost["beyond_s"], "s"))
        rows.append(row(f"{name}: memory of all processes", cost["peak_mb"], "MB"))
    if least < most:
        low, high = found[least], found[most]
        key = "beyond_s" if engine == "inline" else "round_s"
        one, many = low[key] / least, high[key] / most
        what = "beyond computing" if engine == "inline" else "in all"
        against = f"{least} sites"
        rows.append(row(f"{most} sites, {engine}: a round {what}, a site", many, "s",
                        against, many / one, LINEAR))  # fmt: skip
        ratio = high["peak_mb"] / low["peak_mb"]
        rows.append(row(f"{most} sites, {engine}: memory beside few", high["peak_mb"], "MB",
                        against, ratio, FLAT))  # fmt: skip
    return rows


def main() -> int:
    """Prints the rows; 1 where a target is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=list(SITES))
    parser.add_argument("--engine", choices=("inline", "ray"), default="inline")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for sites in sorted(set(options.sites)):
            print(f"{sites} sites ...", flush=True)
            found[sites] = measured(sites, options.rounds, options.engine, Path(folder))
    rows = rows_of(found, options.engine)
    return report(rows, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
