"""The demo against its goals: wall time, memory of all its processes, test Dice by organ group."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import AtMost, report, row
from hnfed.watch.processes import memory_bytes
from simulations.supervise import owned

SMALL = ("OpticChiasm", "OpticNrv_L", "OpticNrv_R")
MOST_SECONDS, MOST_GB = 240.0, 6.0
LEAST_DICE = {"six larger organs": 0.70, "chiasm and nerves": 0.35, "constrictors": 0.50}
SAMPLE_SECONDS = 1.0


def dice_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Test Dice per organ of a run's `metrics.json`, averaged over the organs of each group."""
    groups: dict[str, list[float]] = {name: [] for name in LEAST_DICE}
    for phase in metrics["phases"]:
        for organ in phase["organs"]:
            dice = phase["mean"]["organs"][organ]["dice"]
            constrictor = organ.startswith("Musc_Constrict")
            small = "chiasm and nerves" if organ in SMALL else "six larger organs"
            groups["constrictors" if constrictor else small].append(dice)
    return {name: sum(values) / len(values) for name, values in groups.items()}


def run(command: Sequence[str]) -> tuple[float, int]:
    """Runs a command to its end; returns its seconds and the peak of its processes' PSS in bytes.

    Raises:
        SystemExit: the command failed.
    """
    mark = f"HNFED_BENCH={os.getpid()}-{time.time_ns()}"
    name, _, value = mark.partition("=")
    started = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | {name: value})
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_bytes(owned(mark)))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.monotonic() - started, peak


def main() -> None:
    """Runs the demo into a temporary folder and prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "runs" / "demo"
        seconds, peak = run(
            [sys.executable, "-m", "hnfed.cli.main", "simulate", "demo", "--out", str(out)]
        )
        dice = dice_of(json.loads((out / "metrics.json").read_text()))
    gigabytes = peak / 1e9
    found = [
        row("demo, wall", seconds, "s", "goal", seconds, AtMost(MOST_SECONDS)),
        row("demo, memory of all processes", gigabytes, "GB", "goal", gigabytes, AtMost(MOST_GB)),
        *(row(f"demo, {k}", v, "Dice", "goal", v, LEAST_DICE[k]) for k, v in dice.items()),
    ]
    report(found, options.json)


if __name__ == "__main__":
    main()
