from __future__ import annotations

from typing import Any

import pytest

from core.errors import UserError
from core.plan.load import load
from core.plan.schema import Federation, Guards, Phase, Plan, Strategy
from core.plan.validate import check

SITES = ["a", "b", "c"]


def plan(*phases: Phase, **federation: Any) -> Plan:
    chosen = phases or (Phase(name="p", sites=SITES, organs=["Brainstem"]),)
    return Plan(
        phases=list(chosen), federation=Federation(**{"secure_aggregation": True} | federation)
    )


def test_a_plan_of_three_sites_passes() -> None:
    check(plan())
    check(plan(min_sites=3, strategy=Strategy(name="fedprox"), guards=Guards(norm="off")))
    own = Phase(name="own", sites=["a"], organs=["Brainstem"], init="p", share="none")
    check(plan(Phase(name="p", sites=SITES, organs=["Brainstem"]), own))


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum", "dp", "fedadam", "fedavgm"])
def test_strategies_that_need_each_update_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"federation\.strategy\.name = {name}(.|\n)*fedavg"):
        check(plan(strategy=Strategy(name=name)))
    check(plan(strategy=Strategy(name=name), secure_aggregation=False))


@pytest.mark.parametrize(
    ("made", "key"),
    [
        (plan(guards=Guards(norm="reject")), r"federation\.guards\.norm"),
        (plan(min_sites=2), r"federation\.min_sites"),
        (plan(update_bits=16), r"federation\.update_bits"),
        (plan(update_bits=8), r"federation\.update_bits"),
        (plan(Phase(name="p", sites=["a", "b"], organs=["Larynx"])), r"phases\.p\.sites"),
        (plan(Phase(name="p", sites=[*SITES, "all-sites"], organs=["Larynx"])), "all-sites"),
        (plan(Phase(name="p", sites=SITES, organs=["Larynx"], max_cases=3)), r"max_cases"),
        (
            plan(
                Phase(name="p", sites=[*SITES, "d"], organs=["Larynx"]),
                Phase(name="q", sites=SITES, organs=["Larynx"], init="p"),
            ),
            r"phases\.q\.sites",
        ),
    ],
)
def test_what_a_sum_cannot_give_is_refused_with_the_remedy(made: Plan, key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}(.|\n)*remedy"):
        check(made)


def test_the_default_is_off() -> None:
    assert load("demo", [])[0].federation.secure_aggregation is False
