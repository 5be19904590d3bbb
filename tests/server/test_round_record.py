from __future__ import annotations

from unittest.mock import Mock

import pytest

from core.plan.schema import Loss, Phase, Plan, Weighting
from core.wire.messages import Header, Result
from server.exchange import Exchange
from server.guards import Accepted
from server.progress import Progress
from server.round_record import Replies, published_weights, round_event, round_line, told_mean


@pytest.mark.parametrize(
    ("computed", "answered", "expected"),
    [
        ({"a": 10.0, "b": 4.0}, {"a": 14.5, "b": 14.5}, (14.0, 0.5, 1.5)),  # in turn
        ({"a": 10.0, "b": 4.0}, {"a": 10.25, "b": 14.5}, (14.0, 0.5, 1.5)),
        ({"a": 10.0, "b": 8.0}, {"a": 11.0, "b": 9.0}, (11.0, 0.0, 5.0)),  # side by side
        ({"a": 3.0}, {"a": 5.0}, (3.0, 2.0, 11.0)),
        ({}, {}, (0.0, 0.0, 16.0)),
    ],
)
def test_waiting_is_never_another_sites_computing(
    computed: dict[str, float],
    answered: dict[str, float],
    expected: tuple[float, float, float],
) -> None:
    phase = Phase(name="p", sites=["a", "b"], organs=["Brainstem"])
    good = {
        site: Accepted(Header(site, "r", "p", 1), Result(seconds=seconds), {}, Mock())
        for site, seconds in computed.items()
    }
    event = round_event(
        phase,
        Replies(Exchange(seconds=answered, lasted=max(answered.values(), default=0.0)), good, {}),
        Progress(round=1),
        scored=0,
        seconds=16.0,
        min_cell=1,
    )
    found = tuple(event[f"seconds_{part}"] for part in ("compute", "waiting", "transport"))
    assert found == expected
    assert sum(found) == event["seconds"]


def test_in_deployment_the_slowest_site_stands_for_the_round() -> None:
    good = {
        site: Accepted(Header(site, "r", "p", 1), Result(seconds=s, startup=6.0), {}, Mock())
        for site, s in {"a": 10.0, "b": 4.0}.items()
    }
    event = round_event(
        Phase(name="p", sites=["a", "b"], organs=["Brainstem"]),
        Replies(Exchange(seconds={"a": 19.0, "b": 12.0}, moving=1.0, lasted=19.0), good, {}),
        Progress(round=1),
        scored=0,
        seconds=19.5,
        min_cell=1,
    )
    parts = ("compute", "startup", "waiting", "transport")
    assert [event[f"seconds_{part}"] for part in parts] == [10.0, 6.0, 2.0, 1.5]


def test_a_site_that_is_lost_is_waited_for() -> None:
    good = {"a": Accepted(Header("a", "r", "p", 1), Result(seconds=8.0), {}, Mock())}
    event = round_event(
        Phase(name="p", sites=["a", "b"], organs=["Brainstem"]),
        Replies(Exchange(seconds={"a": 10.0}, lasted=3600.0), good, {"b": "E_LOST"}),
        Progress(round=1),
        scored=0,
        seconds=3600.5,
        min_cell=1,
    )
    parts = ("compute", "waiting", "transport")
    assert [event[f"seconds_{part}"] for part in parts] == [8.0, 3592.0, 0.5]


def test_a_round_tells_the_weights_it_trained_with() -> None:
    phase = Phase(name="p", sites=["a"], organs=["X", "Y"], rounds=4)
    weighting = Weighting(terms="shift", shift_end=1.0, by="dice", organs={"Y": 2.0})
    plan = Plan(phases=[phase], weighting=weighting, loss=Loss(ce=0.5, focal=2.0))
    event = {"round": 2, "sites": {"a": {"val": {"X": {"n": 3, "dice": 0.5}}}}}
    weights = published_weights(plan, phase, Progress(), event, [0.5, 1.5])
    assert weights["terms"]["ce"] == pytest.approx(0.5 * 0.75)
    assert weights["terms"]["focal"] == pytest.approx(2.0 * 0.25)
    assert weights["organs"] == {"X": 0.5, "Y": 3.0}


def test_a_line_calls_withheld_what_is_withheld() -> None:
    phase = Phase(name="p", sites=["a"], organs=["X"], rounds=4)
    event = {"round": 2, "mean": {"dice": None}, "loss": {}, "scored_round": 1, "best_round": 1,
             "accepted": ["a"], "rejected": {}, "seconds": 1.0}  # fmt: skip
    cell = {"n": None, "dice": None, "suppressed": True}
    line = round_line(phase, event | {"sites": {"a": {"val": {"X": cell}}}}, 2.0)
    assert "val Dice withheld (few cases)" in line
    assert "val Dice -" in round_line(phase, event | {"sites": {"a": {"val": {}}}}, 2.0)


def test_weights_that_follow_a_withheld_score_are_withheld() -> None:
    phase = Phase(name="p", sites=["a"], organs=["X"], rounds=4)
    event = {"round": 2, "sites": {}}  # not validated; the weights are of the round before
    told = Plan(phases=[phase], weighting=Weighting(by="dice"))
    few = Progress(of_few=True)
    assert published_weights(told, phase, few, event, [1.0])["organs"] == {}
    assert published_weights(told, phase, Progress(), event, [1.0])["organs"] == {"X": 1.0}
    static = Plan(phases=[phase], weighting=Weighting(organs={"X": 2.0}))
    assert published_weights(static, phase, few, event, [])["organs"] == {"X": 2.0}


def test_without_a_test_case_nothing_is_withheld() -> None:
    block = {"mean": {"dice": None}, "mean_val": {"dice": 0.5}, "sites": {"a": {"test": {}}}}
    assert told_mean(block, "val") == "0.500"
    assert told_mean(block, "test") == "- (no test score was told)"
    block["sites"] = {"a": {"test": {"Brainstem": {"n": 0}}}}
    assert told_mean(block, "test") == "- (no test score was told)"
    block["sites"]["b"] = {"test": {"Brainstem": {"suppressed": True}}}
    assert told_mean(block, "test") == "withheld (few cases)"
