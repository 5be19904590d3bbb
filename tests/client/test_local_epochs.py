from __future__ import annotations

from collections.abc import Callable

from client.local_epochs import frequencies
from core.data.site import Site
from core.plan.schema import Loss, Phase, Plan
from tests.client.conftest import order

MakePlan = Callable[..., Plan]
MakePhase = Callable[..., Phase]


def test_class_weights_come_from_the_federation(prepared: Site, make_plan: MakePlan) -> None:
    plan = make_plan(loss=Loss(class_weight="paper"))
    phase = plan.phases[0]
    entries = prepared.of_phase(plan, phase, "train")
    told = order(voxels=[100.0, 10.0], totals=[1000.0, 1000.0])
    weights = frequencies(plan, phase, told, entries)
    assert weights is not None
    assert len(weights) == 3
    assert weights[2] > weights[1] > weights[0]  # rarer weighs more
    assert frequencies(plan, phase, order(), entries) is None
    none = make_plan(loss=Loss(class_weight="none"))
    assert frequencies(none, phase, told, entries) is None


def test_a_personal_phase_takes_its_own_frequencies(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    plan = make_plan(make_phase(share="none"), loss=Loss(class_weight="paper"))
    phase = plan.phases[0]
    entries = prepared.of_phase(plan, phase, "train")
    own = frequencies(plan, phase, order(), entries)
    told = order(voxels=[1.0, 1.0], totals=[2.0, 2.0])
    assert own is not None
    assert frequencies(plan, phase, told, entries) == own
