from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.cached_case import Entry, cases_of
from core.data.geometry import Geometry
from core.plan.schema import Phase, Plan, Preprocess, Train, Weighting
from core.wire.messages import Order
from hnfed.guard.floors import distinct, require_apart, require_taken, steps
from hnfed.guard.policy import Policy, PolicyError, require_entries, require_order

GRID = Geometry((8, 8, 8), (1.0, 1.0, 1.0))
ORGANS = ("Brainstem", "Parotid_L")
PHASE = Phase("p", ["nyu"], list(ORGANS))
PLAN = Plan(preprocess=Preprocess(crop=[8, 8, 8]), phases=[PHASE])


def entry(index: int, annotated: tuple[str, ...] = ORGANS, image: str = "") -> Entry:
    return Entry(
        case=f"case_{index}",
        split="train",
        folder=Path("none"),
        organs=ORGANS,
        annotated=frozenset(annotated),
        source=GRID,
        crop=GRID,
        voxels=dict.fromkeys(annotated, 1),
        crop_voxels=512,
        overlap_voxels=0,
        image_sha256=image or f"{index:064x}",
    )


def check(entries: list[Entry], phase: Phase = PHASE, plan: Plan = PLAN, **policy: Any) -> None:
    require_entries(replace(Policy(), **policy), plan, phase, 1, entries)


def test_exactly_the_floors_pass_and_one_case_less_does_not() -> None:
    check([entry(i) for i in range(8)])
    with pytest.raises(PolicyError, match="fewest_cases: 7 distinct"):
        check([entry(i) for i in range(7)])


def test_copies_under_other_names_are_one_case() -> None:
    copies = [entry(i, image="a" * 64) for i in range(20)]
    assert len(distinct(copies)) == 1
    with pytest.raises(PolicyError, match="fewest_cases: 1 distinct"):
        check(copies)


def test_an_organ_that_one_case_annotates_does_not_select_it() -> None:
    """C2: `of_phase` takes the cases of the phase's organs, and ranks by them."""
    entries = [entry(i, ("Brainstem",)) for i in range(7)] + [entry(7)]
    alone = replace(PHASE, organs=["Parotid_L"])
    with pytest.raises(PolicyError, match="fewest_cases: 1 distinct"):
        check(entries, alone)
    with pytest.raises(PolicyError, match="fewest_cases_organ: 1 distinct cases annotate Parotid"):
        check(entries)
    check(entries, replace(PHASE, organs=["Brainstem"]))


def test_a_crop_that_holds_an_organ_of_one_case_alone_does_not_select_it() -> None:
    outside = [replace(entry(i), voxels={"Brainstem": 1}) for i in range(7)]
    with pytest.raises(PolicyError, match="fewest_cases_organ: 1 distinct cases annotate Parotid"):
        check([*outside, entry(7)])
    check([*outside, replace(entry(7), voxels={"Brainstem": 1, "Parotid_L": 0})])


def test_max_cases_does_not_select_one() -> None:
    entries = [entry(i, ("Brainstem",)) for i in range(20)] + [entry(99)]
    with pytest.raises(PolicyError, match="fewest_cases: 1 distinct"):
        check(entries, replace(PHASE, max_cases=1))
    held = [replace(e, split="val") for e in entries]
    with pytest.raises(PolicyError, match="fewest_cases: 0 distinct"):
        check(held)


def test_a_cut_does_not_leave_one_case_between_two_phases() -> None:
    """All of 20 cases in one phase, `max_cases: 19` in the next: the plan cannot tell."""
    entries = [entry(i) for i in range(20)]
    for most, apart in ((12, 0), (13, 7), (19, 1), (20, 0), (50, 0)):
        cut = replace(PHASE, name="cut", max_cases=most)
        kept = cases_of(entries, PLAN, cut, "train")
        for phase, own, others in ((PHASE, entries, {"cut": kept}), (cut, kept, {"p": entries})):
            if apart:
                with pytest.raises(PolicyError, match=f"differ by {apart} distinct"):
                    require_apart(Policy(), phase, own, others)
            else:
                require_apart(Policy(), phase, own, others)


def test_four_of_an_organ_are_enough_and_none_is_no_harm() -> None:
    check([entry(i, ORGANS if i < 4 else ORGANS[:1]) for i in range(8)])
    check([entry(i, ORGANS[:1]) for i in range(8)])
    with pytest.raises(PolicyError, match="fewest_cases_organ: 3"):
        check([entry(i, ORGANS if i < 3 else ORGANS[:1]) for i in range(8)])


def test_steps_are_those_of_what_leaves() -> None:
    entries = [entry(i) for i in range(8)]
    batches = replace(PLAN, train=Train(batch=4))
    with pytest.raises(PolicyError, match="fewest_steps: 2 in round 1"):
        check(entries, plan=batches)
    check(entries, replace(PHASE, local_epochs=4), batches)
    rep = replace(PHASE, local_epochs=4, keep_epochs=3, keep=["head"])
    with pytest.raises(PolicyError, match="fewest_steps: 2"):
        check(entries, rep, batches)
    assert steps(batches, PHASE, 9) == 3


@pytest.mark.parametrize("changes", [{"share": "none"}, {"rounds": 0, "init": "before"}])
def test_what_sends_no_update_needs_no_case(changes: dict[str, Any]) -> None:
    check([entry(0)], replace(PHASE, **changes))


@given(st.lists(st.tuples(st.integers(0, 12), st.sets(st.sampled_from(ORGANS), min_size=1))))
def test_whatever_passes_has_the_floors(rows: list[tuple[int, set[str]]]) -> None:
    entries = [entry(k, tuple(a), image=f"{i:064x}") for k, (i, a) in enumerate(rows)]
    try:
        check(entries)
    except PolicyError:
        return
    assert len({i for i, _ in rows}) >= 8
    for organ in ORGANS:
        assert len({i for i, a in rows if organ in a}) in (0, *range(4, 14))


def order(**changes: Any) -> Order:
    return Order("run", "p", 1, "train", **changes)


def test_an_honest_servers_order_passes() -> None:
    require_order(Policy(), PLAN, PHASE, order())
    honest = order(voxels=[10.0, 0.0], totals=[512.0, 0.0], organ_factors=[0.5, 2.0])
    require_order(Policy(), PLAN, PHASE, honest)


@pytest.mark.parametrize(
    ("taken", "left_out", "key"),
    [(8, 0, ""), (7, 1, "fewest_steps: 7"), (40, 2, ""), (40, 4, "fewest_cases: 4"),
     (40, 24, "fewest_cases"), (11, 0, "")],
)  # fmt: skip
def test_steps_that_were_left_out_make_no_update(taken: int, left_out: int, key: str) -> None:
    """Half precision and a heavy loss leave of eight steps the one that does not overflow."""
    phase = replace(PHASE, local_epochs=4 if taken == 40 else 1)
    entries = [entry(i) for i in range(8)]
    if not key:
        require_taken(Policy(), PLAN, phase, entries, (taken, left_out))
        return
    with pytest.raises(PolicyError, match=key):
        require_taken(Policy(), PLAN, phase, entries, (taken, left_out))


def test_left_out_steps_may_be_all_that_saw_an_organs_cases() -> None:
    entries = [entry(i, ("Brainstem",)) for i in range(16)] + [entry(i) for i in range(16, 20)]
    require_taken(Policy(), PLAN, PHASE, entries, (20, 0))
    with pytest.raises(PolicyError, match="fewest_cases_organ, Parotid_L: 1 steps"):
        require_taken(Policy(), PLAN, PHASE, entries, (19, 1))
    kept = replace(PHASE, local_epochs=2, keep_epochs=1, keep=["norm"])
    with pytest.raises(PolicyError, match="fewest_steps: 7"):
        require_taken(Policy(), PLAN, kept, entries, (27, 0))
    require_taken(Policy(), PLAN, replace(PHASE, share="none"), entries, (1, 19))


@pytest.mark.parametrize(
    "changes",
    [
        {"organ_factors": [1e-9, 1e-9]},
        {"voxels": [0.9999, 0.0], "totals": [1.0, 1.0]},
        {"organ_factors": [1.0, 0.0]},
        {"organ_factors": [1.0, 1e9]},
        {"voxels": [600.0, 1.0], "totals": [512.0, 512.0]},
        {"voxels": [256.0, 256.0], "totals": [512.0, 512.0]},
    ],
)
def test_an_order_that_silences_most_cases_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        require_order(Policy(), PLAN, PHASE, order(**changes))
    require_order(Policy(), PLAN, replace(PHASE, share="none"), order(**changes))


def test_factors_count_with_the_plans_own_weights() -> None:
    weighed = replace(PLAN, weighting=Weighting(organs={"Brainstem": 8.0}))
    with pytest.raises(PolicyError, match="largest_organ_ratio"):
        require_order(Policy(), weighed, PHASE, order(organ_factors=[4.0, 1.0]))
