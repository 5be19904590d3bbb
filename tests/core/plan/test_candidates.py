"""Candidates become phases: all that they take over, and no test case."""

from __future__ import annotations

import pytest

from core.errors import UserError
from core.plan.candidates import expand
from core.plan.load import load, plan_from_json, plan_hash, plan_json
from core.plan.schema import Phase

CHOICE = "phases.personalise.candidates=[local, fine-tuned, frozen]"


def test_one_phase_for_each_candidate_in_order() -> None:
    shared = Phase(name="p", sites=["a"], organs=["Brainstem"])
    choice = Phase(
        name="c", sites=["a"], organs=["Brainstem"], init="p", share="none", freeze="decoder",
        thaw={"head": 2}, head_init="mean", rounds=3, lr=0.5,
        candidates=["global", "frozen", "local", "fine-tuned"],
    )  # fmt: skip
    found = expand([shared, choice])
    assert [(i, p.name) for i, p in found] == [
        (0, "p"), (1, "c-frozen"), (1, "c-local"), (1, "c-fine-tuned"),
    ]  # fmt: skip
    frozen, local, tuned = (p for _, p in found[1:])
    assert (frozen.freeze, frozen.init, frozen.thaw, frozen.head_init) == (
        "decoder", "p", {"head": 2}, "mean",
    )  # fmt: skip
    assert (local.freeze, local.init, local.thaw, local.head_init) == (
        "none", "scratch", {}, "random",
    )  # fmt: skip
    assert (tuned.freeze, tuned.init, tuned.thaw, tuned.head_init) == ("none", "p", {}, "mean")
    assert {(p.rounds, p.lr, p.test, tuple(p.candidates)) for p in (frozen, local, tuned)} == {
        (3, 0.5, False, ())
    }


def test_frozen_means_the_encoder_where_the_phase_does_not_say() -> None:
    phase = Phase(name="c", init="p", share="none", candidates=["frozen"])
    assert expand([phase])[0][1].freeze == "encoder"


def test_a_plan_reads_as_its_phases_and_names_where_each_value_comes_from() -> None:
    config, sources = load("smoke", [CHOICE])
    names = ["pretrain", "personalise-local", "personalise-fine-tuned", "personalise-frozen"]
    assert [p.name for p in config.phases] == names
    assert sources["phases.1.candidates"] == sources["phases.3.candidates"] == "override"
    assert sources["phases.3.organs"] == "smoke.yaml" or "smoke" in sources["phases.3.organs"]
    again = plan_from_json(plan_json(config))
    assert again.phases == config.phases
    assert plan_hash(again) == plan_hash(config)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["phases.personalise.candidates=[best]"], ["candidates", "best", "frozen"]),
        (["phases.personalise.candidates=[local, local]"], ["candidates", "once"]),
        (["phases.personalise.candidates=[global]"], ["candidates", "beside"]),
        ([CHOICE, "phases.personalise.share=all"], ["share", "none"]),
        ([CHOICE, "phases.personalise.init=scratch"], ["init", "scratch"]),
        (
            ["phases.personalise.candidates=[global, local]"],
            ["global", "pretrain", "Musc_Constrict_S"],
        ),
    ],
)
def test_what_cannot_be_offered_is_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load("smoke", overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)
