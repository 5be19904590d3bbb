"""A small share of the 10,000: `python -m benchmarks.mutations` reads them all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import mutations
from benchmarks.mutate import mutated
from benchmarks.mutation_worker import KINDS, read_one, write_clean


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    write_clean(folder)
    return folder


@pytest.mark.parametrize("kind", list(KINDS))
def test_undamaged_files_are_read_and_damaged_ones_refused_in_words(
    kind: str, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [str(read_one(kind, seed, clean, tmp_path / "w")["outcome"]) for seed in range(8)]
    assert set(outcomes) <= {"read", "refused"}
    assert "refused" in outcomes
    monkeypatch.setattr("benchmarks.mutation_worker.mutated", lambda data, seed, text: data)
    assert read_one(kind, 0, clean, tmp_path / "w")["outcome"] == "read"


def test_a_seed_is_one_damage(clean: Path) -> None:
    data = (clean / "nrrd image" / "c1" / "img.nrrd").read_bytes()
    assert mutated(data, 5, text=False) == mutated(data, 5, text=False)
    assert len({mutated(data, seed, text=False) for seed in range(40)}) > 30


def test_crashes_hangs_and_loss_of_words_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that reads, fails, dies at seed 2, and then hangs."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys, time\n"
        "for seed in range(int(sys.argv[3]), 9):\n"
        "    if seed == 2: os._exit(139)\n"
        "    if seed == 4: time.sleep(60)\n"
        "    outcome = 'unhandled' if seed == 1 else 'read'\n"
        "    print(json.dumps({'kind': 'k', 'seed': seed, 'outcome': outcome}), flush=True)\n"
    )
    real = mutations.subprocess.Popen
    monkeypatch.setattr(
        mutations.subprocess,
        "Popen",
        lambda command, **options: real([sys.executable, script, *command[2:]], **options),
    )
    monkeypatch.setattr(mutations, "HANG_SECONDS", 1.5)
    readings = list(mutations.run(("k",), 0, 5, tmp_path / "f"))
    told = [(r.seed, r.outcome, r.bad) for r in readings]
    assert told == [
        (0, "read", False),
        (1, "unhandled", True),
        (2, "crash", True),
        (3, "read", False),
        (4, "hang", True),
    ], json.dumps(told)
    slow = mutations.Reading("k", 0, "read", seconds=3.0)
    large = mutations.Reading("k", 0, "read", megabytes=2000.0)
    assert slow.bad
    assert large.bad
