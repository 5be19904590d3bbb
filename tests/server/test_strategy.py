"""Aggregation by Flower's other strategies: what a wrong site can do, and what travels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from core.errors import UserError
from core.plan.schema import Guards, Phase, Strategy
from core.plan.validate import check
from core.wire.partition import start_state
from server.dispatch import deadline
from server.strategy import build_strategy, trimmed
from tests.server.conftest import ORGANS, Federated

SITES = ["a", "b", "c", "d", "e"]
Make = Callable[..., Federated]


def moved(federate: Make, make_plan: Callable[..., Any], **strategy: Any) -> float:
    """How far one round moves a weight where one of five sites sends nonsense."""
    plan = make_plan(
        Phase(name="p", sites=SITES, organs=ORGANS, rounds=1),
        strategy=Strategy(**strategy),
        guards=Guards(norm="off"),
    )
    add = {"a": 1.0, "b": 1.1, "c": 0.9, "d": 1.0, "e": 9.0}  # within the bound of one update
    name = f"{strategy['name']}"
    run = federate(plan, folder=name, add=add, cases=dict.fromkeys(SITES, 2))
    run.run()
    start = start_state(plan, plan.phases[0], None)
    last = run.weights("last")
    change = torch.cat([(last[n] - start[n]).flatten() for n in start])
    return float(change.abs().max())


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum"])
def test_one_wrong_site_of_five_does_not_decide(
    federate: Make, make_plan: Callable[..., Any], name: str
) -> None:
    assert moved(federate, make_plan, name=name) < 2.0


def test_the_mean_is_decided_by_it(federate: Make, make_plan: Callable[..., Any]) -> None:
    assert moved(federate, make_plan, name="fedavg") > 2.0


def test_noise_is_that_of_the_clipped_sum_over_the_replies(
    federate: Make, make_plan: Callable[..., Any]
) -> None:
    phase = Phase(name="p", sites=SITES, organs=ORGANS, rounds=1)
    kept = {}
    for multiplier in (0.0, 2.0):
        settings = Strategy(name="dp", clip_norm=1.0, noise_multiplier=multiplier)
        plan = make_plan(phase, strategy=settings)
        run = federate(
            plan,
            folder=f"dp{multiplier}",
            add=dict.fromkeys(SITES, 1e-3),
            cases=dict.fromkeys(SITES, 2),
        )
        run.run()
        kept[multiplier] = run.weights("last")
        assert "strategy dp: all sites weigh equally" in run.notes()
    noise = torch.cat([(kept[2.0][n] - kept[0.0][n]).flatten() for n in kept[0.0]])
    assert float(noise.std()) == pytest.approx(2.0 * 1.0 / len(SITES), rel=0.1)


def test_flowers_own_classes_do_it() -> None:
    names = ("fedavg", "fedprox", "median", "trimmed-mean", "krum", "dp")
    kinds = [type(build_strategy(Strategy(name=n), 5)).__name__ for n in names]
    assert len(set(kinds)) == len(names)


@pytest.mark.parametrize(
    "change",
    [{"name": "mean"}, {"trim": 0.5}, {"malicious": -1}, {"clip_norm": 0.0},
     {"noise_multiplier": -1.0}],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_work(make_plan: Callable[..., Any], change: dict[str, Any]) -> None:
    (key,) = change
    with pytest.raises(UserError, match=f"federation.strategy.{key}"):
        check(make_plan(strategy=replace(Strategy(), **change)))


def test_a_deadline_is_learned_from_the_fourth_round_on(make_plan: Callable[..., Any]) -> None:
    federation = make_plan(round_timeout_s=1000.0, round_timeout_factor=3.0).federation
    assert deadline(federation, [10.0, 20.0]) == 1000.0
    assert deadline(federation, [10.0, 20.0, 90.0]) == 3 * 20.0 + 30.0
    assert deadline(federation, [500.0] * 3) == 1000.0
    off = make_plan(round_timeout_s=1000.0).federation
    assert deadline(off, [1.0] * 9) == 1000.0


def test_only_training_has_a_learned_deadline(
    federate: Make, make_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import server.dispatch

    asked: list[tuple[str, float]] = []
    real = server.dispatch.exchange

    def noting(*arguments: Any, **options: Any) -> Any:
        asked.append((options["kind"], options["timeout_s"]))
        return real(*arguments, **options)

    monkeypatch.setattr(server.dispatch, "exchange", noting)
    phase = Phase(name="p", sites=SITES, organs=ORGANS, rounds=5)
    plan = make_plan(phase, round_timeout_s=1000.0, round_timeout_factor=2.0)
    federate(plan, add=dict.fromkeys(SITES, 0.1), cases=dict.fromkeys(SITES, 2)).run()
    trained = [timeout for kind, timeout in asked if kind == "train"]
    assert trained[:3] == [1000.0] * 3
    assert max(trained[3:]) < 100.0
    assert {timeout for kind, timeout in asked if kind == "evaluate"} == {1000.0}


@pytest.mark.parametrize(
    ("trim", "replies", "cut"),
    [(0.2, 5, 1), (0.2, 4, 1), (0.2, 3, 1), (0.2, 2, 0), (0.2, 6, 2), (0.4, 5, 2), (0.0, 5, 0)],
)
def test_the_trimmed_mean_trims_whenever_it_can(trim: float, replies: int, cut: int) -> None:
    settings = Strategy(name="trimmed-mean", trim=trim)
    assert trimmed(settings, replies) == cut
    assert int(build_strategy(settings, replies).beta * replies) == cut  # type: ignore[union-attr]
