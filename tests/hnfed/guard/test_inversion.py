"""C2: a patient's CT out of one reply, and the policy that refuses the plans it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.inversion import (
    CASES,
    CROP,
    FEWEST,
    LIMIT,
    LONG,
    floor_plan,
)
from benchmarks.inversion_attacks import (
    RES3DUNET,
    UNETR,
    attack_plan,
    blocks,
    images_of,
    likeness,
    patches,
    patients,
    placed,
    reply_of,
)
from core.data.cached_case import Entry
from core.data.dataset import CropDataset
from core.plan.schema import Plan, Train
from hnfed.guard.policy import Policy, PolicyError, require_entries, require_plan


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return patients(tmp_path_factory.mktemp("patients"), CASES, CROP)


def refusals(plan: Plan, entries: list[Entry]) -> str:
    """The key for which the kit's policy refuses the plan, "" where it does not."""
    try:
        require_plan(plan, "site", Policy(weights="any"))
        require_entries(Policy(), plan, plan.phases[0], 1, entries)
    except PolicyError as error:
        return str(error).partition(":")[0]
    return ""


def test_one_reply_of_unetr_holds_the_ct_and_its_plan_is_refused(own: list[Entry]) -> None:
    plan = attack_plan(UNETR, CROP)
    plan = replace(plan, phases=[replace(plan.phases[0], max_cases=1)])
    found = patches(reply_of(plan, own[:1]))
    assert likeness(found, images_of(own[:1], plan)) > 0.99
    assert refusals(plan, own) == "models"
    assert refusals(floor_plan(UNETR), own) == "models", "nor at the floors: it shows the mean head"


def test_long_strides_give_voxels_away_and_are_refused(own: list[Entry]) -> None:
    plan = attack_plan(LONG, CROP, lr=10.0)
    found = blocks(reply_of(plan, own[:1], placed(plan)))
    assert likeness(found, images_of(own[:1], plan)) > 0.9
    assert refusals(plan, own) == "largest_stride"
    assert refusals(floor_plan(LONG), own) == "largest_stride"


@pytest.mark.parametrize("lr", [Policy().smallest_lr, Policy().largest_lr])
def test_at_the_floors_the_weights_that_tell_most_show_no_case(own: list[Entry], lr: float) -> None:
    plan = floor_plan(FEWEST, lr=lr)
    assert refusals(plan, own) == ""
    found = blocks(reply_of(plan, own, placed(plan)))
    assert likeness(found, images_of(own, plan)) <= LIMIT


def test_the_floor_plan_stands_exactly_at_the_floors(own: list[Entry]) -> None:
    """One step below any of them the policy refuses."""
    plan = floor_plan(FEWEST)
    assert refusals(plan, own) == ""
    assert refusals(plan, own[:-1]) == "fewest_cases"
    assert refusals(replace(plan, train=replace(plan.train, batch=2)), own) == "fewest_steps"
    slower = replace(plan.train, lr=plan.train.lr * 0.99)
    assert refusals(replace(plan, train=slower), own).startswith("smallest_lr")
    longer = replace(plan.train, clip_norm=plan.train.clip_norm * 1.01)
    assert refusals(replace(plan, train=longer), own) == "largest_clip_norm"
    weaker = replace(plan.augment, rotate_deg=[3.9, 4.0, 4.0])
    assert refusals(replace(plan, augment=weaker), own) == "least_augmentation"
    rarer = replace(plan.augment, probability=0.49)
    assert refusals(replace(plan, augment=rarer), own) == "least_augmentation"
    stronger = replace(plan.augment, elastic_mm=12.1)
    assert refusals(replace(plan, augment=stronger), own) == "largest_augmentation"
    wider = replace(FEWEST, channels=[4, 5])
    assert refusals(replace(plan, model=wider), own) == "fewest_voxels_channel"
    plain = Train(optimizer="sgd", lr=0.01)
    assert refusals(replace(plan, train=plain), own) == "optimizers"
    one = replace(own[0], annotated=frozenset({"Brainstem"}))
    few = [replace(e, annotated=one.annotated) for e in own[:5]] + own[5:]
    assert refusals(plan, few) == "fewest_cases_organ"


@pytest.mark.parametrize("freeze", ["none", "encoder", "decoder", "all-but-head"])
def test_share_none_sends_nothing_to_invert(own: list[Entry], freeze: str) -> None:
    plan = attack_plan(RES3DUNET, CROP, freeze)
    phase = replace(plan.phases[0], share="none", max_cases=1)
    assert refusals(replace(plan, phases=[phase]), own[:1]) == ""
    from core.wire.partition import network, parts_of

    assert parts_of(network(plan, phase), plan, phase).shared == ()


def test_an_augmentation_that_erases_all_cases_but_one_is_refused(own: list[Entry]) -> None:
    """A plan's seed decides who is moved out of the crop; no weights are needed for that."""
    plan = floor_plan(FEWEST)
    far = replace(plan.augment, translate_mm=[500.0] * 3)
    phase, window = plan.phases[0], plan.preprocess.window_hu
    left = []
    for seed in range(100):
        epoch = CropDataset(own, phase.organs, far, window, seed)
        images = [epoch[i]["image"] for i in range(len(epoch))]
        left.append(sum(bool((image > -1).any()) for image in images))
    assert 1 in left
    assert refusals(replace(plan, augment=far), own) == "largest_augmentation"
