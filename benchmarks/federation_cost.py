"""What a round of a federation costs beside its training, fitted and written down for more sites.

A federation is started on the loopback address (`benchmarks.loopback`), whose sites answer at once;
more and more of them are connected, and run a small plan, with two sizes of the weights. Lines are
fitted to what its rounds took and to what the server's processes needed, and read at numbers of
sites that no test here had.

python -m benchmarks.federation_cost [--sites N [N ...]] [--json FILE] [--points FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loopback import SAMPLE_SECONDS, Loopback, loopback
from benchmarks.measure import report, row
from core.plan.load import load
from core.processes import leave_by_signal
from core.wire.partition import size_bytes, start_state
from hnfed.guard.fleet import connect
from hnfed.guard.kit import private_key, read_kit
from hnfed.guard.proxy import http_options

SITES = (2, 4, 8, 16, 30)
SMALL, DEFAULT = [4, 8, 16], [16, 32, 64, 128]  # 0.1 MB, and the default network of 5.7 MB
LARGE_UP_TO = 8  # sites with the latter: what a byte costs, its sites need not say again
ROUNDS = 3  # the first is not counted: its sites fetch the app bundle
IDLE_SECONDS = 15.0
FAR = (100, 1000)
QUESTIONS = 300
FILLED = "SuperLink's one process is filled"
# Terms of a line: what it is multiplied with at n sites and weights of m MB.
TERMS = {
    "1": lambda n, m: 1.0,
    "site": lambda n, m: float(n),
    "MB": lambda n, m: float(m),
    "site MB": lambda n, m: float(n * m),
}
# What is fitted, with its terms.
LINES = {
    "round_s": ("1", "site", "site MB"),
    "transport_s": ("1", "site", "site MB"),
    "bytes_mb": ("site", "site MB"),
    "memory_mb": ("1", "site", "MB", "site MB"),
    "superlink_cpu_s": ("1", "site", "site MB"),
    "server_cpu_s": ("1", "site", "site MB"),
    "nginx_cpu_s": ("1", "site", "site MB"),
}
UNITS = {"round_s": "s", "transport_s": "s", "bytes_mb": "MB", "memory_mb": "MB"}
Point = dict[str, float]


def plan_of(sites: Sequence[str], channels: Sequence[int]) -> dict[str, Any]:
    """A plan of one shared phase, as its file holds it."""
    return {
        "preprocess": {"spacing_mm": [8.0, 8.0, 8.0], "crop": [32, 32, 32]},
        "augment": {"enabled": False},
        "model": {"channels": list(channels)},
        "phases": [
            {
                "name": "p",
                "sites": list(sites),
                "organs": ["Brainstem", "Parotid_L"],
                "rounds": ROUNDS,
                "patience": 10**6,
            }
        ],
        "federation": {"min_cell": 1, "query_timeout_s": 120},
        "tracking": {"mode": "disabled"},
    }


def weights_mb(path: Path) -> float:
    """Size of what travels by a plan's file."""
    plan = load(str(path), [])[0].plan
    state = start_state(plan, plan.phases[0], None)
    return size_bytes(state, list(state)) / 1e6


def measured(federation: Loopback, sites: int, channels: Sequence[int]) -> Point:
    """What a round cost with the first `sites` sites, which are connected."""
    name = f"r{sites}-{channels[0]}"
    point = of_rounds(federation.run(plan_of(federation.sites[:sites], channels), name), federation)
    size = weights_mb(federation.kits.parent / f"{name}.yaml")
    return {"sites": sites, "mb": size} | point


def of_rounds(events: Sequence[Mapping[str, Any]], federation: Loopback) -> Point:
    """Medians over the rounds but the first; CPU and memory between their ends."""
    rounds = [e for e in events if e["event"] == "round"]
    counted = rounds[1:]
    first, last = (datetime.fromisoformat(rounds[i]["time"]).timestamp() for i in (0, -1))
    cpu = federation.watch.cpu_between(first, last)
    found = {
        "round_s": statistics.median(float(e["seconds"]) for e in counted),
        "transport_s": statistics.median(float(e["seconds_transport"]) for e in counted),
        "waiting_s": statistics.median(float(e["seconds_waiting"]) for e in counted),
        "bytes_mb": statistics.median(
            (e["bytes_to_sites"] + e["bytes_from_sites"]) / 1e6 for e in counted
        ),
        "memory_mb": federation.watch.peak_mb(first, last),
    }
    return found | {f"{name}_cpu_s": used / len(counted) for name, used in cpu.items()}


def fitted(points: Sequence[Point], what: str) -> dict[str, float]:
    """Coefficients by term of `LINES`, least squares of the relative errors, none below zero.

    A term that would be negative is left out and the others are fitted again: no site takes less
    than nothing.
    """
    terms = list(LINES[what])
    while True:
        rows = np.array([[TERMS[t](p["sites"], p["mb"]) for t in terms] for p in points])
        values = np.array([p[what] for p in points])
        scale = np.maximum(np.abs(values), 1e-9)
        found = np.linalg.lstsq(rows / scale[:, None], values / scale, rcond=None)[0]
        if found.min() >= 0 or len(terms) == 1:
            return dict(zip(terms, found.tolist(), strict=True))
        del terms[int(found.argmin())]


def read_at(line: Mapping[str, float], sites: float, mb: float) -> float:
    """A fitted line at a number of sites and a size of the weights."""
    return sum(value * TERMS[term](sites, mb) for term, value in line.items())


def misfit(points: Sequence[Point], what: str, line: Mapping[str, float]) -> float:
    """Largest share by which a measured value differs from its line."""
    return max(
        abs(read_at(line, p["sites"], p["mb"]) - p[what]) / max(p[what], 1e-9) for p in points
    )


def polling(federation: Loopback) -> Point:
    """CPU seconds of the server's processes for one question of a site, and a second without any.

    Its last site asks as fast as it is answered; nobody else may be connected.
    """
    begun = time.time()
    time.sleep(IDLE_SECONDS)
    idle = federation.watch.cpu_between(begun, begun + IDLE_SECONDS)
    kit = read_kit(federation.kits / federation.sites[-1], "site")
    connection = connect(f"{kit.host}:{kit.port}", private_key(kit), http_options(kit))
    begun = time.time()
    for _ in range(QUESTIONS):
        connection.receive()
    ended = time.time()
    time.sleep(SAMPLE_SECONDS)
    busy = federation.watch.cpu_between(begun, ended)
    connection.close()
    at_rest = {name: used / IDLE_SECONDS for name, used in idle.items()}
    each = {n: (busy[n] - at_rest[n] * (ended - begun)) / QUESTIONS for n in busy}
    return {"sites": 0.0, "mb": 0.0, "idle": at_rest["superlink"], "question": each["superlink"]}


def measure(wanted: Sequence[tuple[int, list[int]]], known: list[Point], keep: Path | None) -> None:
    """Measures what is wanted, (sites, channels) in rising order, into `known` and a file."""
    most = max(sites for sites, _ in wanted)
    with tempfile.TemporaryDirectory() as folder, loopback(Path(folder), most + 1) as federation:
        if not any("question" in point for point in known):
            known.append(polling(federation) | {"channels": 0})
        for sites, channels in wanted:
            federation.connect(sites)
            known.append(measured(federation, sites, channels) | {"channels": channels[0]})
            print(json.dumps(known[-1]), flush=True)
            if keep:
                keep.write_text(json.dumps(known, indent=1))


def main() -> int:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=list(SITES))
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    parser.add_argument("--points", type=Path, help="keep what was measured; go on from it")
    options = parser.parse_args()
    leave_by_signal()
    known: list[Point] = []
    if options.points and options.points.is_file():
        known = json.loads(options.points.read_text())
    done = {(p["sites"], p["channels"]) for p in known}
    wanted = [(n, c) for n in sorted(options.sites) for c in (SMALL, DEFAULT)]
    wanted = [(n, c) for n, c in wanted if c == SMALL or n <= LARGE_UP_TO]
    wanted = [(n, c) for n, c in wanted if (n, c[0]) not in done]
    if wanted:
        measure(wanted, known, options.points)
    rows = rows_of(known)
    report(rows, options.json)
    return 0


def rows_of(found: Sequence[Point]) -> list[dict[str, Any]]:
    """What was measured at the most sites, and the lines at more of them."""
    points = [p for p in found if p["sites"]]
    lines = {what: fitted(points, what) for what in LINES}
    for what, line in lines.items():
        words = " + ".join(f"{value:.4g} x {term}" for term, value in line.items())
        print(f"{what} = {words}   (misfit at most {misfit(points, what, line):.0%})")
    rows = []
    for size in sorted({p["mb"] for p in points}):
        most = max((p for p in points if p["mb"] == size), key=lambda p: p["sites"])
        about = f"weights of {size:.1f} MB"
        for what, unit in UNITS.items():
            name = what.rpartition("_")[0]
            title = f"federation, {most['sites']:.0f} sites, {size:.0f} MB: {name}"
            rows.append(row(title, most[what], unit, about))
            for sites in FAR:
                title = f"federation, {sites} sites, {size:.0f} MB: {name}, fitted"
                rows.append(row(title, read_at(lines[what], sites, size), unit, about))
    for p in (p for p in found if "question" in p):
        most_sites = (1.0 - p["idle"]) / max(p["question"], 1e-9)
        rows.append(row("federation: a question for a message", 1e3 * p["question"], "ms CPU"))
        rows.append(row("federation: sites that ask each second", most_sites, "sites", FILLED))
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
