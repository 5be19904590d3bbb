"""Two hundred short rounds of five sites: memory, open files and disk stay what they were."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.plan.schema import Phase
from server.rounds import PhaseRun
from tests.server.conftest import ORGANS, Federated, tiny_plan

SITES = ["a", "b", "c", "d", "e"]
FROM = 50  # rounds until everything that is kept is kept
DICE = {(s, r): 0.5 for s in SITES for r in range(201)}


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def figures(folder: Path) -> dict[str, float]:
    gc.collect()
    kept = [p for p in folder.rglob("*") if p.is_file() and p.name != "journal.jsonl"]
    return {
        "memory_mb": resident_mb(),
        "open_files": len(os.listdir("/proc/self/fd")),
        "files": len(kept),
        "disk_kb": sum(p.stat().st_size for p in kept) / 1e3,
    }


def soaked(
    federate: Callable[..., Federated], monkeypatch: pytest.MonkeyPatch, rounds: int, first: int
) -> tuple[dict[str, float], dict[str, float]]:
    plan = tiny_plan(Phase(name="p", sites=SITES, organs=ORGANS, rounds=rounds, patience=10**6))
    run = federate(
        plan,
        add=dict.fromkeys(SITES, 0.001),
        dice=DICE,
        cases={s: i + 1 for i, s in enumerate(SITES)},
    )
    seen: dict[int, dict[str, float]] = {}
    real = PhaseRun._round

    def watched(self: PhaseRun, state: Any, progress: Any) -> Any:
        new = real(self, state, progress)
        run.fakes.seen.clear()
        if progress.round in (first, rounds):
            seen[progress.round] = figures(run.out)
        return new

    monkeypatch.setattr(PhaseRun, "_round", watched)
    run.run()
    return seen[first], seen[rounds]


def test_files_do_not_pile_up(
    federate: Callable[..., Federated], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = soaked(federate, monkeypatch, 12, 6)
    assert after["open_files"] == before["open_files"]
    assert after["files"] == before["files"]


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_two_hundred_rounds(
    federate: Callable[..., Federated], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = soaked(federate, monkeypatch, 200, FROM)
    print(f"round {FROM}: {before}\nround 200: {after}")
    assert after["memory_mb"] <= 1.05 * before["memory_mb"]
    assert after["open_files"] == before["open_files"]
    assert after["files"] == before["files"]
    assert after["disk_kb"] <= 1.05 * before["disk_kb"]
