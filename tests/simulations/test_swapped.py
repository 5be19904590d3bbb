"""One of five sites swaps left and right: flagged within two rounds; five clean sites never.

Swapped contours lie on the wrong side of the CT, and the site's own check leaves them out (see
`core.archives.contour_qa`). Here that check is off at all sites, as if one of them ran without it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.journal import read_events
from hnfed.cli.main import main
from simulations.phantom.cases import SIGNATURES, Cohort, write_site

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2400)]
SITES = ("a", "b", "c", "d", "e")
ORGANS = ["Brainstem", "Bone_Mandible", "Parotid_L", "Parotid_R"]
SEEDS = range(5)


def plan(archives: Path, *, rounds: int, epochs: int, init: str, seed: int) -> dict[str, Any]:
    sites = {s: {"root": str(archives / s)} for s in SITES}
    return {
        "preprocess": {"spacing_mm": [8.0, 6.0, 6.0], "crop": [32, 32, 48]},
        "model": {"channels": [8, 16, 32]},
        "train": {"threads": 1},
        "augment": {"enabled": False},
        "phases": [
            {"name": "p", "sites": list(SITES), "organs": ORGANS, "rounds": rounds,
             "local_epochs": epochs, "init": init, "test": False},
        ],
        "federation": {"min_cell": 1},
        "tracking": {"mode": "disabled"},
        "seed": seed,
        "simulation": {"engine": "inline", "overlays": 0, "sites": sites},
    }  # fmt: skip


def run(folder: Path, name: str, cache: Path, values: dict[str, Any]) -> Path:
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(values))
    out = folder / name
    words = ["simulate", str(config), "--out", str(out), f"simulation.cache={cache}"]
    assert main(words) == 0
    return out


def swap(archive: Path) -> None:
    """Left becomes right in every case's contours of the parotids; some cases have only one."""
    for folder in {path.parent for path in archive.rglob("Parotid_?.nrrd")}:
        left, right, aside = (folder / f"{n}.nrrd" for n in ("Parotid_L", "Parotid_R", "aside"))
        for source, target in ((left, aside), (right, left), (aside, right)):
            if source.is_file():
                source.rename(target)


def test_a_swapped_site_is_flagged_and_clean_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.archives.contour_qa.WRONG_SIDE_MM", 1e6)
    archives = tmp_path / "clean"
    for i, site in enumerate(SITES):
        signature = SIGNATURES["nyu" if i % 2 else "miccai"]
        write_site(archives / site, Cohort(signature, 5, i, spacing_mm=(6.0, 4.5, 4.5)), workers=2)
    first = plan(archives, rounds=3, epochs=8, init="scratch", seed=0)
    trained = run(tmp_path, "trained", tmp_path / "cache", first)
    flagged, false = 0, 0
    for seed in SEEDS:
        odd = SITES[seed]
        wrong = tmp_path / f"wrong{seed}"
        shutil.copytree(archives, wrong)
        swap(wrong / odd)
        init = str(trained / "checkpoints" / "p" / "best.safetensors")
        for name, root in ((f"swapped{seed}", wrong), (f"clean{seed}", archives)):
            values = plan(root, rounds=2, epochs=1, init=init, seed=seed)
            events = read_events(
                run(tmp_path, name, tmp_path / "cache" / name, values) / "journal.jsonl"
            )
            told = [e for e in events if e["event"] == "flagged"]
            if root == archives:
                false += len(told)
            else:
                sides = {organ for e in told for organ in e["organs"]}  # one, where few annotate
                flagged += [e["site"] for e in told] == [odd] and sides <= set(ORGANS[2:])
            print(name, [(e["site"], e["round"], e["organs"]) for e in told])
    print(f"flagged within two rounds in {flagged} of {len(SEEDS)} seeds; {false} false flags")
    assert flagged == len(SEEDS)
    assert false == 0
