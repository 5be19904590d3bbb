from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.metrics.scores import OrganSum
from core.models.stages import head_rows
from core.plan.schema import Federation, Model, Phase, Plan, Preprocess
from core.secure.hello import Hello
from core.secure.layout import (
    Opened,
    closed_organs,
    flat,
    following,
    number_segments,
    numbers,
    shaped,
    summed,
    summed_sites,
    tallied,
    tally,
    travelling,
    weight_segments,
)
from core.wire.messages import Result
from core.wire.partition import network, start_state

SITES = ["a", "b", "c", "d"]
ORGANS = ["Brainstem", "Larynx"]


def made(**changes: object) -> Plan:
    values = {"name": "p", "sites": SITES, "organs": ORGANS} | changes
    return Plan(
        preprocess=Preprocess(crop=[16, 16, 16]),
        model=Model(channels=[4, 8]),
        phases=[Phase(**values)],  # type: ignore[arg-type]
        federation=Federation(secure_aggregation=True),
    )


def hello(site: str, train: str, *, scores: bool = True) -> Hello:
    return Hello(site, "r", "", "", "0" * 64, train, "11", "11", 3, counts=True, scores=scores)


def test_what_is_frozen_in_a_round_stays_whatever_a_site_added() -> None:
    plan = made(freeze="encoder", thaw={"encoder": 2}, rounds=2)
    phase = plan.phases[0]
    what = travelling(plan, phase)
    state = {n: t for n, t in start_state(plan, phase, None).items() if n in what.shapes}
    segments = weight_segments(plan, phase, {s: hello(s, "11") for s in SITES}, what)
    found = Opened(np.full(flat(state, what).size, 0.5), [4.0] * 3, [4] * 3)
    early, late = (following(r, state, what, segments, found)[0] for r in (1, 2))
    still = [n for n in state if torch.equal(early[n], state[n])]
    assert sorted(still) == sorted(what.thaws)
    assert 0 < len(still) < len(state)
    assert all(torch.equal(late[n], state[n] + 0.5) for n in state)


@pytest.mark.parametrize("changes", [{}, {"freeze": "encoder"}, {"keep": ["head"]}])
def test_a_vector_is_the_tensors_again(changes: dict[str, object]) -> None:
    plan = made(**changes)
    what = travelling(plan, plan.phases[0])
    state = {n: t for n, t in start_state(plan, plan.phases[0], None).items() if n in what.shapes}
    again = shaped(flat(state, what), what)
    assert set(again) == set(state)
    for name, tensor in state.items():
        assert torch.equal(again[name].float(), tensor), name
    hellos = {s: hello(s, "11") for s in SITES}
    segments = weight_segments(plan, plan.phases[0], hellos, what)
    assert sum(s.length for s in segments) == sum(t.numel() for t in state.values())


def test_rows_of_the_head_belong_to_the_sites_that_annotate_the_organ() -> None:
    plan = made()
    hellos = {s: hello(s, "1" + str(int(s in "abc"))) for s in SITES}
    what = travelling(plan, plan.phases[0])
    body, first, second = weight_segments(plan, plan.phases[0], hellos, what)
    assert body.members == first.members == set(SITES)
    assert second.members == {"a", "b", "c"}
    heads = set(head_rows(network(plan, plan.phases[0])))
    state = {n: torch.zeros(s) for n, s in what.shapes.items()}
    for name in heads:
        state[name][2] = 1.0
    vector = flat(state, what)
    assert vector[-second.length :].all()
    assert not vector[: -second.length].any()
    assert closed_organs(plan, plan.phases[0], hellos) == []
    del hellos["a"]
    assert closed_organs(plan, plan.phases[0], hellos) == ["Larynx"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=3, max_size=3), st.floats(0, 1))
def test_the_sum_of_numbers_is_the_number_of_sums(cases: list[int], dice: float) -> None:
    plan = made()
    phase, vectors = plan.phases[0], []
    for n in cases:
        cell = OrganSum(n, n, dice * n, 3.0 * n, 4.0 * n)
        result = Result(n, (n, 0), (1.0, 2.0, 3.0, 4.0, 5.0), 7, 1, 2.5, 0.0,
                        {"val": dict.fromkeys(ORGANS, cell)})  # fmt: skip
        vectors.append(numbers(phase, "train", result, 4.0, n > 20))
    found = summed(phase, "train", np.sum(vectors, axis=0))
    total = sum(cases)
    assert (found.result.cases, found.result.annotated) == (total, (total, 0))
    assert found.result.loss == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert (found.square, found.shortened) == (12.0, sum(n > 20 for n in cases))
    if total:
        assert found.result.scores["val"]["Larynx"].n == total
        assert found.result.scores["val"]["Larynx"].dice == pytest.approx(dice * total)


def test_a_site_that_keeps_its_scores_closes_them_for_all() -> None:
    plan = made()
    hellos = {s: hello(s, "11", scores=s != "b") for s in SITES}
    segments = number_segments(plan, plan.phases[0], hellos, "test")
    assert [s.members for s in segments] == [frozenset(), frozenset()]


def test_a_tally_comes_back() -> None:
    vector = tally((9, 2, 3), (4, 5), (40.0, 50.0), (400.0, 500.0))
    cases, rows = tallied(vector * 2)
    assert cases == [18.0, 4.0, 6.0]
    assert rows == {"annotated": [8, 10], "voxels": [80, 100], "totals": [800, 1000]}
    assert tallied(tally((9, 2, 3), (4, 5), (), ()))[1]["voxels"] == [0, 0]


def test_sites_of_the_sums_are_those_of_the_shared_phases() -> None:
    assert summed_sites(made()) == ("a", "b", "c", "d")
    assert summed_sites(made(share="none")) == ()
