from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from client import scoring
from client import tasks as work
from client.local_epochs import Task
from core.data.site import Site
from core.plan.schema import Phase, Plan
from tests.client.conftest import order, start, watched

MakePlan = Callable[..., Plan]
MakePhase = Callable[..., Phase]


def test_validate_scores_val_and_writes_nothing(prepared: Site, make_plan: MakePlan) -> None:
    plan = make_plan()
    result = work.evaluate(Task(prepared, plan, plan.phases[0], order(1, "validate")), start(plan))
    assert set(result.scores) == {"val"}
    assert not prepared.phase_folder("p").exists()


def test_test_scores_stay_case_by_case_at_the_site(prepared: Site, make_plan: MakePlan) -> None:
    plan = make_plan()
    site = replace(prepared, overlays=1)
    result = work.evaluate(Task(site, plan, plan.phases[0], order(1, "test")), start(plan))
    assert {o: s.n for o, s in result.scores["test"].items()} == {"Brainstem": 1, "Parotid_L": 1}
    with (site.phase_folder("p") / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["organ"] for r in rows] == ["Brainstem", "Parotid_L"]
    assert {r["case"][-1] for r in rows} == {"4"}
    for row in rows:
        cell = result.scores["test"][row["organ"]]
        assert float(row["dice"]) == pytest.approx(cell.dice, abs=1e-6)
        assert (row["hd95_mm"] == "") == (cell.detected == 0)
        assert (float(row["predicted_ml"]) == 0) == (cell.detected == 0)
        assert 0 <= float(row["surface_dice_2mm"]) <= 1
    pictures = list((site.phase_folder("p") / "overlays").glob("*.png"))
    assert len(pictures) == len(rows)  # of the one case of each organ
    assert all("_only_" in p.name for p in pictures)
    assert not any("DOE" in p.name for p in pictures)
    work.evaluate(Task(site, plan, plan.phases[0], order(1, "test")), start(plan))
    again = list((site.phase_folder("p") / "overlays").glob("*.png"))
    assert len(again) == len(rows), "those of an earlier test are gone"


def test_volumes_are_those_of_the_original_masks_and_stay_at_the_site(
    prepared: Site, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan()
    phase = plan.phases[0]
    drawn: list[npt.NDArray[np.bool_]] = []
    monkeypatch.setattr(scoring, "write_overlay", lambda *args: drawn.append(args[3]))
    site = replace(prepared, overlays=1)
    result = work.evaluate(Task(site, plan, phase, order(1, "test")), start(plan))
    (entry,) = prepared.of_phase(plan, phase, "test")
    voxel_ml = math.prod(entry.source.spacing_mm) / 1000
    with (prepared.phase_folder("p") / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["organ"] for r in rows] == phase.organs
    for label, row in enumerate(rows, start=1):
        true = entry.truth()[row["organ"]].sum() * voxel_ml
        assert float(row["volume_ml"]) == pytest.approx(true, abs=1e-6)
        predicted = drawn[label - 1].sum() * voxel_ml
        assert float(row["predicted_ml"]) == pytest.approx(predicted, abs=1e-6)
    assert any(float(row["predicted_ml"]) > 0 for row in rows)
    sums = {f"test.{name}" for name in ("n", "detected", "dice", "hd95_mm", "penalised_mm")}
    counts = {"cases", "steps", "skipped", "seconds", "startup"}
    assert set(result.to_metrics(phase.organs)) == counts | sums


def test_a_site_draws_nothing_unless_told(prepared: Site, make_plan: MakePlan) -> None:
    plan = make_plan()
    work.evaluate(Task(prepared, plan, plan.phases[0], order(1, "test")), start(plan))
    assert not (prepared.phase_folder("p") / "overlays").exists()


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("share", ["all", "none"])
def test_scores_average_with_the_mirrored_ct_where_the_phase_says_so_and_its_weights_tell_it(
    prepared: Site,
    make_plan: MakePlan,
    make_phase: MakePhase,
    monkeypatch: pytest.MonkeyPatch,
    averaged: bool,
    share: str,
) -> None:
    plan = make_plan(
        make_phase(share=share, organs=["Brainstem"], average_mirrored=averaged),
        make_phase("other", organs=["Parotid_L"]),
    )
    given = watched(monkeypatch, scoring, "validate", lambda *a: a[3].average_mirrored)
    round_ = work.train_personal if share == "none" else work.train_shared
    round_(Task(prepared, plan, plan.phases[0], order()), start(plan))
    assert given == [averaged]
    meta = work.checkpoint_meta(Task(prepared, plan, plan.phases[0], order()))
    assert meta["average_mirrored"] is averaged
