"""What no floor meets: weights made so that one case alone moves them. docs/privacy.md says so.

These tests hold the figures of that page: if one fails because less is shown, the page may promise
more.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.inversion import CASES, LEAST
from benchmarks.inversion_attacks import (
    Reply,
    images_of,
    likeness,
    order_of,
    patients,
    reply_of,
)
from benchmarks.inversion_singled import (
    CROP,
    FREQUENCIES,
    KERNEL,
    openings,
    singling,
    singling_plan,
    voxels_of,
    weights_of,
)
from core.data.cached_case import Entry
from core.metrics.scores import organ_sums
from core.training.engine import validate
from core.wire.partition import load_state, network
from hnfed.guard.policy import Policy, require_entries, require_order, require_plan


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return patients(tmp_path_factory.mktemp("patients"), CASES, CROP)


def moved(reply: Reply) -> float:
    name = f"{KERNEL}.weight"
    return (reply.after[name] - reply.before[name]).norm().item()


def test_weights_that_single_a_case_out_pass_every_floor_and_show_it(own: list[Entry]) -> None:
    plan = singling_plan(LEAST)
    phase = plan.phases[0]
    require_plan(plan, "site", Policy())
    require_entries(Policy(), plan, phase, 1, own)
    require_order(Policy(), plan, phase, order_of(plan, FREQUENCIES))
    last = max(openings(plan, own))  # found by asking, from above
    reply = reply_of(plan, own, singling(plan, last), weights_of(plan))
    truths = images_of(own, plan)
    found = [likeness(voxels_of(reply), truths[i : i + 1]) for i in range(len(own))]
    assert max(found) > 0.8, found
    shut = reply_of(plan, own, singling(plan, last + 0.1), weights_of(plan))
    assert moved(shut) < 0.2 * moved(reply), "which tells that no case opened"


def test_share_none_and_no_scores_is_what_meets_them(own: list[Entry]) -> None:
    """Of a sum of Dice over cases one alone is left, so `min_cell` does not meet them either."""
    plan = singling_plan(LEAST)
    plain = replace(plan, augment=replace(plan.augment, enabled=False))
    low, high = sorted(openings(plain, own))[-2:]
    model = network(plan, plan.phases[0])
    load_state(model, singling(plan, (low + high) / 2))
    organ = plan.phases[0].organs[:1]
    scores = validate(model, own, plan, plan.phases[0], "cpu")
    total = organ_sums(scores, organ)[organ[0]]
    each = [s.dice for s in scores if s.organ == organ[0]]
    assert total.n == len(own)
    assert total.detected == 1
    assert total.dice == max(each) > 0
