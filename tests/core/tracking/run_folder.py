"""A run folder that grows as a run does, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.journal import JOURNAL, append_event

PHASES = [
    {"name": "pretrain", "rounds": 2, "init": "scratch", "sites": ["a", "b"]},
    {"name": "more", "rounds": 1, "init": "pretrain", "sites": ["a", "b"]},
]


def cell(n: int | None, dice: float | None) -> dict[str, Any]:
    told: dict[str, Any] = {"n": n, "missed": 0, "dice": dice, "hd95_mm": dice}
    return told | ({"suppressed": True} if n is None else {})


def begun(folder: Path, run: str = "r-1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run_id").write_text(run)
    plan = {"phases": PHASES, "seed": 3, "model": {"args": {"weights": "/home/someone/w"}}}
    (folder / "plan.json").write_text(json.dumps(plan))
    append_event(folder / JOURNAL, {"event": "run-start", "run": run})
    return folder


def round_of(folder: Path, number: int, phase: str = "pretrain") -> None:
    append_event(
        folder / JOURNAL,
        {
            "event": "round", "phase": phase, "round": number, "scored_round": number - 1,
            "loss": {"total": 2.0 / number},
            "sites": {"a": {"val": {"Brainstem": cell(3, 0.5)}},
                      "b": {"val": {"Brainstem": cell(None, None)}}},
            "mean": {"dice": 0.5, "hd95_mm": None}, "best_round": number, "seconds": 1.5,
            "bytes_to_sites": 20, "bytes_from_sites": 10, "accepted": ["a"],
            "rejected": {"b": "E_TIME"}, "clipped": {"a": 0.5},
            "updates": {"a": {"norm": 1.25, "cosine": 0.75}},
        },
    )  # fmt: skip


def refused(folder: Path, site: str = "b", code: str = "E_TIME") -> None:
    append_event(
        folder / JOURNAL,
        {"event": "rejected", "phase": "pretrain", "round": 1, "site": site, "code": code,
         "detail": "why"},
    )  # fmt: skip


def through(folder: Path, *names: str, weights: bool = True) -> None:
    blocks = []
    for name in names:
        path = folder / "checkpoints" / name / "best.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        if weights:
            path.write_bytes(b"weights of " + name.encode())
        cells = {"a": {"test": {"Brainstem": cell(3, 0.6)}, "val": {}},
                 "b": {"test": {"Brainstem": cell(None, None)}, "val": {}}}  # fmt: skip
        blocks.append({"name": name, "best_round": 2, "sites": cells,
                       "mean": {"dice": 0.6, "organs": {"Brainstem": cell(3, 0.6)}},
                       "mean_val": {"dice": 0.5, "organs": {}}})  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps({"phases": blocks}))


def ended(folder: Path, status: str = "completed") -> None:
    append_event(folder / JOURNAL, {"event": "run-end", "status": status, "seconds": 3.0})
