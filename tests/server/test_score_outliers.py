"""A site whose labels differ from everybody's is told of; five alike are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.metrics.scores import OrganSum
from core.plan.schema import Phase
from server.score_outliers import repeated, standing_out, words
from tests.server.conftest import Federated

SITES = ["a", "b", "c", "d", "e"]
PAIR = ["Parotid_L", "Parotid_R"]


def sums(**dice: float) -> dict[str, dict[str, OrganSum]]:
    return {s: {o: OrganSum(2, 2, 2 * d, 4.0, 4.0) for o in PAIR} for s, d in dice.items()}


def test_the_odd_one_is_named_with_its_organs() -> None:
    assert standing_out(sums(a=0.8, b=0.75, c=0.1, d=0.82, e=0.79)) == {"c": PAIR}


def test_two_sites_cannot_say_which_is_odd() -> None:
    assert standing_out(sums(a=0.8, b=0.1)) == {}


def test_an_untrained_model_flags_nobody() -> None:
    assert standing_out(sums(a=0.2, b=0.25, c=0.0, d=0.22, e=0.2)) == {}


def test_sites_that_differ_among_themselves_flag_nobody() -> None:
    assert standing_out(sums(a=0.9, b=0.75, c=0.5, d=0.6, e=0.8)) == {}


def test_a_site_without_cases_counts_for_nothing() -> None:
    found = sums(a=0.8, b=0.75, c=0.1)
    found["b"] = {o: OrganSum() for o in PAIR}
    assert standing_out(found) == {}


@given(st.lists(st.floats(0.6, 0.8), min_size=3, max_size=8))
def test_sites_within_the_smallest_gap_are_never_odd(dice: list[float]) -> None:
    assert standing_out(sums(**{f"s{i}": d for i, d in enumerate(dice)})) == {}


def test_only_what_repeats_is_told() -> None:
    assert repeated({"c": ["Parotid_L"]}, {"c": PAIR, "d": PAIR}) == {"c": ["Parotid_L"]}


def test_of_few_cases_only_the_site_is_told(
    federate: Callable[..., Federated], make_plan: Callable[..., Any]
) -> None:
    plan = make_plan(Phase(name="p", sites=SITES, organs=PAIR, rounds=3), min_cell=11)
    dice = {(s, r): 0.1 if s == "c" else 0.7 for s in SITES for r in range(4)}
    run = federate(plan, add=dict.fromkeys(SITES, 0.1), cases=dict.fromkeys(SITES, 2), dice=dice)
    run.run()
    assert [(e["site"], e["organs"]) for e in run.events("flagged")] == [("c", [])]
    assert "c stands out (on which organs is not told" in run.notes()
    assert "swapped" not in run.notes()


def test_the_words_ask_the_right_question() -> None:
    assert "left and right swapped" in words("c", PAIR)
    assert "swapped" not in words("c", ["Parotid_L"])


@pytest.mark.parametrize("odd", ["c", ""])
def test_a_run_flags_the_site_in_its_second_round(
    federate: Callable[..., Federated], make_plan: Callable[..., Any], odd: str
) -> None:
    plan = make_plan(Phase(name="p", sites=SITES, organs=PAIR, rounds=4))
    dice = {(s, r): 0.1 if s == odd else 0.7 for s in SITES for r in range(5)}
    run = federate(plan, add=dict.fromkeys(SITES, 0.1), cases=dict.fromkeys(SITES, 2), dice=dice)
    run.run()
    told = run.events("flagged")
    assert [(e["site"], e["round"], e["organs"]) for e in told] == ([("c", 2, PAIR)] if odd else [])
    assert ("swapped" in run.notes()) == bool(odd)
    said = [{k: v for k, v in e.items() if k != "time"} for e in told]
    assert not any("0.1" in str(e) for e in said), "no score is published"
