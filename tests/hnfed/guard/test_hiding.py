from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.metrics.scores import OrganSum
from core.plan.schema import Loss, Phase, Plan, Preprocess
from core.wire.messages import WITHHELD, Description, Order, Result, withhold
from hnfed.guard.order import Asked
from hnfed.guard.outbox import NUMBERS
from hnfed.guard.policy import Policy, hidden

ORGANS = ["Brainstem", "Larynx"]
SHARED = Phase("s", ["nyu", "miccai"], ["Brainstem"])
OWN = Phase("o", ["nyu"], ["Larynx"], share="none", init="s")
PLAN = Plan(preprocess=Preprocess(crop=[8, 8, 8]), phases=[SHARED, OWN])
SUMS = {"Brainstem": OrganSum(20, 16, 15.0, 64.0, 90.0), "Larynx": OrganSum(3, 3, 2.0, 9.0, 9.0)}


def description() -> dict[str, Any]:
    return Description(
        "nyu", "f", "s", (12, 3, 4), (12, 5), (100.0, 50.0), (6144.0, 2560.0), {"E_X": 2}, {}
    ).to_records()[1]


def result(organs: list[str] = ORGANS) -> dict[str, Any]:
    scores = {split: {o: SUMS[o] for o in organs} for split in ("val", "test")}
    told = Result(12, tuple([12, 5][: len(organs)]), (1.0,) * 5, 40, 2, 9.5, 1.5, scores)
    return told.to_metrics(organs)


def asked(kind: str, plan: Plan, phase: Phase | None) -> Asked:
    return Asked(kind, "nyu", "run", plan, Order("run", phase.name if phase else "", 3, ""), phase)


def test_nothing_is_hidden_of_a_shared_phase_by_default() -> None:
    metrics = result(["Brainstem"])
    assert hidden(Policy(), asked("train", PLAN, SHARED), metrics) == metrics


def test_organs_of_personal_phases_are_not_counted_in_a_query() -> None:
    metrics = hidden(Policy(), asked("query", PLAN, None), description())
    assert metrics["annotated"] == [12, 0]
    assert metrics["voxels"] == [100.0, 0.0]
    assert metrics["totals"] == [6144.0, 0.0]
    assert metrics["cases"] == [12, 3, 4]


@pytest.mark.parametrize(("plans", "site_s"), [(1, 11), (11, 1), (1, 1)])
def test_the_larger_cell_counts(plans: int, site_s: int) -> None:
    """M1: counts of few cases left with the plan's own `min_cell: 1`."""
    alone = replace(PLAN, federation=replace(PLAN.federation, min_cell=plans))
    alone = replace(alone, phases=[replace(SHARED, sites=["miccai"]), OWN])
    policy = Policy(min_cell=site_s)
    metrics = hidden(policy, asked("query", alone, None), description())
    few = -1 if max(plans, site_s) == 11 else None
    assert metrics["cases"] == [12, few or 3, few or 4]
    assert metrics["left_out.E_X"] == (few or 2)
    assert metrics["annotated"] == [0, 0]
    told = hidden(policy, asked("train", alone, OWN), result(["Larynx"]))
    scores = Result.from_metrics(told, ["Larynx"]).scores["val"]["Larynx"]
    assert scores == (WITHHELD if few else SUMS["Larynx"])


def test_no_count_of_a_personal_phase_leaves() -> None:
    told = hidden(Policy(min_cell=1), asked("train", PLAN, OWN), result(["Larynx"]))
    assert (told["cases"], told["steps"], told["skipped"]) == (0, 0, 0)
    assert "annotated" not in told


def test_no_loss_of_a_personal_phase_leaves() -> None:
    """Of plans that differ by one training case alone, `12 a - 11 b` was the loss of that case."""
    for policy in (Policy(), Policy(min_cell=1), Policy(counts=False)):
        assert "loss" not in hidden(policy, asked("train", PLAN, OWN), result(["Larynx"]))
    assert "loss" in hidden(Policy(), asked("train", PLAN, SHARED), result(["Brainstem"]))


@pytest.mark.parametrize(("found", "leaves"), [(0, True), (1, False), (10, False), (11, True)])
def test_sums_over_few_found_cases_do_not_leave_a_personal_phase(found: int, leaves: bool) -> None:
    """Of 12 cases with a contour of one HD95 was that patient's."""
    sums = OrganSum(12, found, 0.4 * found, 17.25 * found, 17.25 * found + 200.0 * (12 - found))
    metrics = Result(scores={"val": {"Larynx": sums}}).to_metrics(["Larynx"])
    told = hidden(Policy(), asked("train", PLAN, OWN), metrics)
    got = Result.from_metrics(told, ["Larynx"]).scores["val"]["Larynx"]
    assert got == (sums if leaves else WITHHELD)
    assert withhold({"Larynx": sums}, 11) == {"Larynx": got}


def test_scores_of_which_no_count_is_told_do_not_leave() -> None:
    """A reply without `val.n` showed the sums of two cases, whatever `min_cell`."""
    metrics = {k: v for k, v in result(["Larynx"]).items() if k not in ("val.n", "test.n")}
    for policy in (Policy(), Policy(counts=False)):
        told = hidden(policy, asked("train", PLAN, OWN), metrics)
        assert not [k for k in told if k.partition(".")[0] in ("val", "test")]


def test_frequencies_leave_only_where_the_loss_needs_them() -> None:
    for loss in (Loss(class_weight="none"), Loss("one_vs_rest", class_weight="prediction")):
        told = hidden(Policy(), asked("query", replace(PLAN, loss=loss), None), description())
        assert not {"voxels", "totals"} & set(told)


COUNTED = {"cases", "steps", "skipped", "annotated", "voxels", "totals", "seconds"}


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in metrics.items() if k not in ("startup",)}


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_without_counts_no_field_depends_on_a_number_of_cases(kind: str) -> None:
    """M9: `val.n` told them. Here the same means over ten times the cases leave the same reply."""
    policy, phase = Policy(counts=False), None if kind == "query" else SHARED
    if kind == "query":
        one = description()
        many = {k: _times(v, 10) for k, v in one.items()}
    else:
        one = result(["Brainstem"])
        many = {k: v if k in ("loss", "startup") else _times(v, 10) for k, v in one.items()}
    first = hidden(policy, asked(kind, PLAN, phase), one)
    second = hidden(policy, asked(kind, PLAN, phase), many)
    assert first.keys() == second.keys()
    for key in first:
        assert first[key] == pytest.approx(second[key]), key
    assert set(first) <= {*NUMBERS, "left_out.E_X"}


def _times(value: Any, factor: int) -> Any:
    return [v * factor for v in value] if isinstance(value, list) else value * factor


def test_means_stay_and_the_server_can_read_them() -> None:
    policy = Policy(counts=False)
    told = hidden(policy, asked("evaluate", PLAN, SHARED), result(["Brainstem"]))
    assert Result.from_metrics(told, ["Brainstem"]).scores["test"]["Brainstem"] == OrganSum(
        1, 1, 0.75, 4.0, 4.5
    )
    assert (told["cases"], told["steps"], told["skipped"], told["seconds"]) == (0, 0, 0, 0.0)
    empty = result(["Brainstem"]) | {"val.n": [0.0], "val.detected": [0.0]}
    assert hidden(policy, asked("train", PLAN, SHARED), empty)["val.n"] == [0.0]


def test_without_scores_no_loss_leaves_either() -> None:
    """M9: the loss terms are scores too, the Dice term to the letter."""
    for phase in (SHARED, OWN):
        told = hidden(Policy(scores=False), asked("train", PLAN, phase), result())
        assert not {k for k in told if k.startswith(("val.", "test.", "loss"))}
    assert hidden(Policy(scores=False), asked("query", PLAN, None), description())["cases"]
