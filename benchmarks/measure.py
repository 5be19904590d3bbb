"""Interleaved timing in one process, and the rows of `benchmarks.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

KEYS = ("name", "value", "unit", "against", "ratio", "target", "met")


def seconds(
    variants: Mapping[str, Callable[[], object]], repeats: int = 3, *, cpu: bool = False
) -> dict[str, float]:
    """Runs the variants in turn (A, B, A, B, ...) after a warm-up; returns each one's minimum.

    Args:
        variants: name -> what to run.
        repeats: timed runs of each.
        cpu: CPU seconds of this process instead of wall seconds: steadier on a shared machine.
    """
    clock = time.process_time if cpu else time.perf_counter
    best = dict.fromkeys(variants, float("inf"))
    for run in variants.values():
        run()
    for _ in range(repeats):
        for name, run in variants.items():
            start = clock()
            run()
            best[name] = min(best[name], clock() - start)
    return best


class AtMost(float):
    """A target that is not to be exceeded."""


def row(
    name: str,
    value: float,
    unit: str,
    against: str = "",
    ratio: float | None = None,
    target: float | None = None,
) -> dict[str, Any]:
    """Returns one row; `met` says whether `ratio` is at least (`AtMost`: at most) `target`."""
    met = None
    if ratio is not None and target is not None:
        met = ratio <= target if isinstance(target, AtMost) else ratio >= target
    return dict(zip(KEYS, (name, value, unit, against, ratio, target, met), strict=True))


def unmeasured(name: str, reason: str) -> dict[str, Any]:
    """Returns the row of what could not be measured here, with the reason."""
    return dict(zip(KEYS, (name, None, "", reason, None, None, None), strict=True))


def show(rows: Iterable[Mapping[str, Any]]) -> None:
    """Prints the rows as a table."""
    print(f"{'benchmark':<44} {'value':>12} {'unit':<6} {'ratio':>8} {'target':>7} met  against")
    for r in rows:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        target = "" if r["target"] is None else f"{r['target']:g}"
        met = {None: "", True: "yes", False: "NO"}[r["met"]]
        value = "not measured" if r["value"] is None else f"{r['value']:.6g}"
        print(
            f"{r['name']:<44} {value:>12} {r['unit']:<6} {ratio:>8} {target:>7} {met:<4} "
            f"{r['against']}"
        )


def save(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the rows into a `benchmarks.json`, replacing rows of the same name in it."""
    known: dict[str, Mapping[str, Any]] = {}
    if path.exists():
        known = {r["name"]: r for r in json.loads(path.read_text())}
    known |= {r["name"]: r for r in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(known.values()), indent=1) + "\n")


def report(rows: Sequence[Mapping[str, Any]], path: Path | None) -> int:
    """Prints the rows, merges them into a `benchmarks.json`; 1 where a target is not met."""
    show(rows)
    if path:
        save(path, rows)
    return 1 if any(r["met"] is False for r in rows) else 0
