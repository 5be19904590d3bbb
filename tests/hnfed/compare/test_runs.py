from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import UserError
from core.metrics.scores import SUPPRESSED, OrganSum, pool_sites
from hnfed.compare.runs import _pooled, read_member
from tests.traps import TRAPS, within

SUMS = {
    "x": {"A": OrganSum(4, 3, 2.3, 6.0, 106.0)},
    "y": {"A": OrganSum(4, 4, 2.0, 16.0, 16.0)},
    "z": {"A": OrganSum(1, 1, 0.1, 9.0, 9.0)},
}


def test_published_cells_pool_like_the_sums_behind_them() -> None:
    cells = {s: pool_sites({s: sums}, ["A"], 3)["organs"] for s, sums in SUMS.items()}
    assert cells["z"]["A"] == SUPPRESSED
    exact = pool_sites(SUMS, ["A"], 3)
    assert _pooled(cells, ["A"])["organs"]["A"] == pytest.approx(exact["organs"]["A"])
    assert _pooled({"z": cells["z"]}, ["A"])["organs"]["A"] == SUPPRESSED


def test_misses_that_one_site_does_not_publish_are_of_no_pool() -> None:
    cells = {s: pool_sites({s: sums}, ["A"], 4)["organs"] for s, sums in SUMS.items()}
    assert cells["x"]["A"]["missed"] is None
    pooled = _pooled(cells, ["A"])
    assert (pooled["n"], pooled["missed"], pooled["hd95_mm"]) == (8, None, None)
    assert pooled["dice"] == pytest.approx(4.3 / 8)


CASES = "case,organ,dice,hd95_mm\np1,A,0.8,3.0\n"


def run_folder(run: Path) -> Path:
    phase = run / "sites" / "x" / "p"
    phase.mkdir(parents=True)
    (phase / "cases.csv").write_text(CASES)
    (run / "metrics.json").write_text(
        json.dumps({"status": "completed", "phases": [{"name": "p", "organs": ["A"]}]})
    )
    (run / "sites" / "x" / "split.hmac").write_text("ab12\n")
    return run


def test_a_run_folder_is_read_with_its_splits(tmp_path: Path) -> None:
    found = read_member(str(run_folder(tmp_path / "run")))
    assert len(found.phases["p"].scores) == 1
    assert found.splits == {"x": "ab12"}


def test_scores_and_splits_of_another_folder_are_none_of_this_run(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    for name, text in (("p/cases.csv", CASES), ("split.hmac", "cd34")):
        other, place = tmp_path / Path(name).name, run / "sites" / "x" / name
        other.write_text(text)
        place.unlink()
        place.symlink_to(other)
    found = read_member(str(run))
    assert (found.phases["p"].scores, found.splits) == ({}, {})
    assert any("sites/x/p/cases.csv is left out: a link" in note for note in found.notes)
    with pytest.raises(UserError, match="a link out of the folder"):
        read_member(str(run / "sites" / "x"))


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", ["p/cases.csv", "split.hmac"])
def test_pipes_and_devices_hold_no_comparison_up(
    tmp_path: Path, trap: Callable[[Path], None], name: str
) -> None:
    run = run_folder(tmp_path / "run")
    trap(run / "sites" / "x" / name)
    with within():
        found = read_member(str(run))
    assert (found.splits == {}) == (name == "split.hmac")
    assert (found.phases["p"].scores == {}) == (name == "p/cases.csv")


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", ["p/best.json", "split.hmac"])
def test_pipes_and_devices_of_a_sites_own_run(
    tmp_path: Path, trap: Callable[[Path], None], name: str
) -> None:
    state = tmp_path / "r-000001"
    (state / "p").mkdir(parents=True)
    (state / "p" / "cases.csv").write_text(CASES)
    trap(state / name)
    with within():
        found = read_member(str(state))
    assert len(found.phases["p"].scores) == 1
    assert bool(found.notes) == (name == "p/best.json")
