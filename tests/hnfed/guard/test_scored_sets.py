"""Scores of personal phases, one taken from the other, tell of no few patients."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.data.cached_case import Entry
from core.data.geometry import Geometry
from core.metrics.scores import OrganSum
from core.plan.schema import Phase, Plan, Preprocess
from core.wire.messages import WITHHELD, Order, Result
from core.wire.partition import start_state, state_hash
from core.wire.state import packed
from hnfed.guard import exit, scored_sets
from hnfed.guard.order import Asked
from hnfed.guard.policy import Policy, hidden
from hnfed.guard.scored_sets import FILE, cells_of, remember_scores, tells_of_few, too_near
from tests.client.conftest import tiny_phase, tiny_plan, write_case
from tests.hnfed.guard.conftest import LENIENT, ORGANS, Hospital

GRID = Geometry((8, 8, 8), (1.0, 1.0, 1.0))


def entries(*numbers: int, organs: tuple[str, ...] = ("Larynx",)) -> list[Entry]:
    return [
        Entry(
            case=f"case_{i}_{n}", split="val", folder=Path("none"), organs=organs,
            annotated=frozenset(organs), source=GRID, crop=GRID, voxels={}, crop_voxels=512,
            overlap_voxels=0, image_sha256=f"{i:064x}",
        )
        for n, i in enumerate(numbers)
    ]  # fmt: skip


def leave(folder: Path, *numbers: int, split: str = "val", cell: int = 11) -> bool:
    """Whether the score of Larynx over these cases leaves; then it is remembered."""
    cells = cells_of(split, ["Larynx"], entries(*numbers))
    near = too_near(folder, cell, cells)
    n = 0 if near else len(numbers)
    remember_scores(folder, cells, ["Larynx"], {f"{split}.n": [n]})
    return not near


def test_one_case_more_keeps_the_score_back(tmp_path: Path) -> None:
    assert leave(tmp_path, *range(12))
    assert leave(tmp_path, *range(12))
    assert not leave(tmp_path, *range(13))
    assert not leave(tmp_path, *range(11))
    assert not leave(tmp_path, *range(1, 13))
    assert leave(tmp_path, *range(13), split="test")
    assert not leave(tmp_path, *range(22))
    assert leave(tmp_path, *range(23)), "eleven more hide each other"
    assert (tmp_path / FILE).read_text().count("{") == 3


def test_a_copy_of_a_case_is_one_more(tmp_path: Path) -> None:
    assert leave(tmp_path, *range(12))
    assert not leave(tmp_path, *range(12), 11)


def test_sums_of_sums_are_looked_through_too(tmp_path: Path) -> None:
    """Each differs from each by eleven or more: all less the halves is one case."""
    assert leave(tmp_path, *range(11))
    assert leave(tmp_path, *range(11, 22))
    assert not leave(tmp_path, *range(23))
    assert leave(tmp_path, *range(22, 40))


def test_a_case_that_was_taken_out_does_not_bar_a_site_for_ever(tmp_path: Path) -> None:
    assert leave(tmp_path, *range(20))
    assert not leave(tmp_path, *range(1, 20))
    assert leave(tmp_path, *range(1, 31)), "the difference is of twelve"
    assert not leave(tmp_path, *range(31))


def test_many_small_groups_are_taken_as_too_near() -> None:
    sets = [frozenset(map(str, [*range(100, 200), *range(i, i + 2)])) for i in range(14)]
    assert tells_of_few(sets, 11)
    assert not tells_of_few([frozenset("abc")], 3)


def test_the_file_has_a_bound_and_a_torn_line_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scored_sets, "MOST_SETS", 2)
    assert leave(tmp_path, *range(11))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"split": "val", "cases": [')
    assert not leave(tmp_path, *range(12))
    assert leave(tmp_path, *range(30, 50))
    assert leave(tmp_path, *range(11))
    assert not leave(tmp_path, *range(60, 80)), "full: nothing is forgotten"


OWN = Phase("o", ["nyu"], ["Brainstem", "Larynx"], share="none")
PLAN = Plan(preprocess=Preprocess(crop=[8, 8, 8]), phases=[OWN])
SUM = OrganSum(12, 12, 9.0, 40.0, 40.0)


def test_such_a_score_is_as_one_of_few_cases_and_others_stay() -> None:
    scores = {split: dict.fromkeys(OWN.organs, SUM) for split in ("val", "test")}
    metrics = Result(seconds=1.0, scores=scores).to_metrics(OWN.organs)
    asked = Asked("evaluate", "nyu", "run", PLAN, Order("run", "o", 3, "test"), OWN)
    near = frozenset({("val", "Larynx")})
    told = Result.from_metrics(hidden(Policy(), asked, metrics, near), OWN.organs).scores
    assert told["val"] == {"Brainstem": SUM, "Larynx": WITHHELD}
    assert told["test"] == scores["test"]
    header = {
        "site": "nyu", "run": "run", "phase": "o", "round": 3, "code": "OK", "stopped": False,
        "best_round": 0,
    }  # fmt: skip
    reply = exit.Reply(header, metrics)
    left = exit.release(reply, asked, Policy(), exit.Known(near=near))
    assert left.metrics["val.n"] == [12.0, -1.0]


def test_a_validation_case_more_does_not_tell_its_score(
    tmp_path: Path, patients: Path, own_bundle: bytes
) -> None:
    """Two runs of one plan, the archive a patient larger for the second: n 2, then 3."""
    plan = tiny_plan(tiny_phase(organs=list(ORGANS), share="none", rounds=1))
    plan = replace(plan, federation=replace(plan.federation, min_cell=2))
    archive = tmp_path / "archive"
    lines = ["case,split", "DOE_Jane_0,train", "DOE_Jane_1,train", "DOE_Jane_2,val"]
    for i in range(3):
        write_case(archive / f"DOE_Jane_{i}", i, ORGANS)

    def grow(i: int) -> None:
        write_case(archive / f"DOE_Jane_{i}", i, ORGANS)
        lines.append(f"DOE_Jane_{i},val")
        (archive / "cases.csv").write_text("\n".join(lines) + "\n")

    grow(3)
    hospital = Hospital(tmp_path, archive, own_bundle, plan)
    hospital.policy(*LENIENT[:1], "min_cell: 2", *LENIENT[2:])
    start = start_state(plan, plan.phases[0], None)
    base, digest = packed(start), state_hash(start)

    def scored(run: str) -> list[Any]:
        hospital.wire.config = hospital.settings(plan, run)
        fingerprint = hospital.order()["fingerprint"]
        assert hospital.ask("query", {"run": run, "fingerprint": fingerprint}).code == "OK"
        told = hospital.ask("train", hospital.order(base_hash=digest) | {"run": run}, base=base)
        assert told.code == "OK", hospital.log
        return list(told.metrics["val.n"])

    assert scored("r-000001") == [2.0, 2.0]
    grow(4)
    assert scored("r-000002") == [-1.0, -1.0]
    assert "kept back: val of Brainstem, val of Parotid_L" in hospital.log
    assert any("scores kept back" in line for line in hospital.said)
    grow(5)
    assert scored("r-000003") == [4.0, 4.0]
    assert "DOE" not in (hospital.house.guard / FILE).read_text()
    known = [
        json.loads(line) for line in (hospital.house.guard / FILE).read_text().split("\n") if line
    ]
    assert [len(one["cases"]) for one in known] == [2, 2, 4, 4]
