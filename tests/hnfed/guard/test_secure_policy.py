from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import UserError
from core.plan.schema import Federation, Phase, Plan
from hnfed.guard.policy import Policy, PolicyError, read_policy, require_plan


def secure_plan(*, secure: bool, sites: int = 3) -> Plan:
    names = [f"s{i}" for i in range(sites)]
    phase = Phase(name="p", sites=names, organs=["Brainstem"])
    return Plan(phases=[phase], federation=Federation(secure_aggregation=secure, min_cell=11))


def test_sums_can_be_forced() -> None:
    forced = Policy(secure_aggregation="required")
    require_plan(secure_plan(secure=True), "s0", forced)
    require_plan(secure_plan(secure=False), "s0", Policy(weights="any"))
    with pytest.raises(PolicyError, match=r"secure_aggregation: required.*the coordinator"):
        require_plan(secure_plan(secure=False), "s0", forced)


def test_sums_over_too_few_sites_are_refused_before_anything_is_told() -> None:
    asks = Policy(secure_aggregation="required", secure_aggregation_sites=5)
    require_plan(secure_plan(secure=True, sites=5), "s0", asks)
    with pytest.raises(PolicyError, match="secure_aggregation_sites: 5, and the plan has 4"):
        require_plan(secure_plan(secure=True, sites=4), "s0", asks)


@pytest.mark.parametrize("text", ["secure_aggregation: yes please", "secure_aggregation_sites: 2"])
def test_sums_of_two_or_another_word_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="secure_aggregation"):
        read_policy(path)
