"""Run folders as the tests of `hnfed watch` have them: a journal at a time of our choosing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.journal import JOURNAL, append_event

START = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC).timestamp()
PLAN = {
    "phases": [
        {"name": "pretrain", "sites": ["a", "b"], "organs": ["Brainstem"], "rounds": 4,
         "share": "all"},
        {"name": "personalise", "sites": ["a"], "organs": ["Larynx"], "rounds": 2, "share": "none"},
    ]
}  # fmt: skip


def at(second: float) -> str:
    return datetime.fromtimestamp(START + second, UTC).isoformat(timespec="milliseconds")


def cell(n: int | None, dice: float | None) -> dict[str, Any]:
    told: dict[str, Any] = {"n": n, "missed": 0, "dice": dice, "hd95_mm": None}
    return told | ({"suppressed": True} if n is None else {})


def started(run: Path, *events: tuple[float, Mapping[str, Any]], plan: Any = PLAN) -> Path:
    """A run that began at second 0, whose phase pretrain began at second 1; more events follow."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "plan.json").write_text(json.dumps(plan))
    head: Iterable[tuple[float, Mapping[str, Any]]] = (
        (0, {"event": "run-start", "run": "r-1"}),
        (0.5, {"event": "site-described", "site": "a"}),
        (0.5, {"event": "site-described", "site": "b"}),
        (1, {"event": "phase-start", "phase": "pretrain", "sites": ["a", "b"], "rounds": 4,
             "share": "all"}),
    )  # fmt: skip
    for second, event in (*head, *events):
        append_event(run / JOURNAL, {"time": at(second), **event})
    return run


def sent(site: str, round_: int, kind: str = "train", phase: str = "pretrain") -> dict[str, Any]:
    return {"event": "sent", "phase": phase, "round": round_, "site": site, "kind": kind,
            "bytes": 100}  # fmt: skip


def accepted(site: str, round_: int, seconds: float = 10.0) -> dict[str, Any]:
    return {"event": "accepted", "phase": "pretrain", "round": round_, "site": site,
            "bytes": 90, "seconds": seconds}  # fmt: skip


def rejected(site: str, round_: int, code: str, detail: str = "") -> dict[str, Any]:
    return {"event": "rejected", "phase": "pretrain", "round": round_, "site": site, "code": code,
            "detail": detail}  # fmt: skip


def round_of(number: int, cells: Mapping[str, Mapping[str, Any]], seconds: float = 10.0) -> Any:
    """A round whose cells are by site: organ -> cell."""
    return {
        "event": "round", "phase": "pretrain", "round": number, "scored_round": number - 1,
        "sites": {site: {"val": dict(organs)} for site, organs in cells.items()},
        "mean": {"dice": 0.5}, "best_round": number - 1, "seconds": seconds,
        "bytes_to_sites": 200, "bytes_from_sites": 180, "accepted": list(cells), "rejected": {},
    }  # fmt: skip
