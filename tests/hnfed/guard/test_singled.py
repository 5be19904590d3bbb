"""What no floor meets: weights made so that one case alone moves them. docs/privacy.md says so.

These tests hold the figures of that page: if one fails because less is shown, the page may promise
more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

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
from core.wire.messages import Order
from core.wire.partition import load_state, network, parts_of, start_state, state_hash
from core.wire.state import packed
from hnfed.guard.order import Asked
from hnfed.guard.policy import (
    Policy,
    PolicyError,
    require_entries,
    require_order,
    require_plan,
)
from hnfed.guard.weights import WeightsError, require_weights
from hnfed.guard.weights_record import record_of


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return patients(tmp_path_factory.mktemp("patients"), CASES, CROP)


def moved(reply: Reply) -> float:
    name = f"{KERNEL}.weight"
    return (reply.after[name] - reply.before[name]).norm().item()


def test_weights_that_single_a_case_out_pass_every_floor_and_show_it(own: list[Entry]) -> None:
    plan = singling_plan(LEAST)
    phase = plan.phases[0]
    require_plan(plan, "site", Policy(weights="any"))
    require_entries(Policy(), plan, phase, 1, own)
    require_order(Policy(), plan, phase, order_of(plan, FREQUENCIES))
    last = max(openings(plan, own))  # found by asking, from above
    reply = reply_of(plan, own, singling(plan, last), weights_of(plan))
    truths = images_of(own, plan)
    found = [likeness(voxels_of(reply), truths[i : i + 1]) for i in range(len(own))]
    assert max(found) > 0.8, found
    shut = reply_of(plan, own, singling(plan, last + 0.1), weights_of(plan))
    assert moved(shut) < 0.2 * moved(reply), "which tells that no case opened"


def test_the_default_policy_refuses_them_with_sums_and_without(
    own: list[Entry], tmp_path: Path
) -> None:
    """A site that derives the weights itself works with none that were made for it."""
    plan = singling_plan(LEAST)
    with pytest.raises(PolicyError, match=r"^weights: agreed"):
        require_plan(plan, "site", Policy())
    phase = replace(plan.phases[0], sites=["north", "site", "west"])
    sums = replace(plan.federation, secure_aggregation=True)
    plan = replace(plan, phases=[phase], federation=sums)
    require_plan(plan, "site", Policy())
    parts = parts_of(network(plan, phase), plan, phase)

    def sent(state: Mapping[str, Tensor]) -> bool:
        base = {n: state[n] for n in parts.base}
        order = Order("r", phase.name, 1, "train", base_hash=state_hash(base))
        asked = Asked("train", "site", "r", plan, order, phase)
        records = {"arrays": packed({n: state[n] for n in parts.shared}), "base": packed(base)}
        return require_weights(asked, records, None, record_of(tmp_path, "r", print))

    with pytest.raises(WeightsError, match="not what the plan's seed gives"):
        sent(singling(plan, max(openings(plan, own))))
    assert sent(start_state(plan, phase, None))


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
