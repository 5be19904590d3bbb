from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import UserError
from core.plan.load import plan_hash
from core.plan.schema import Federation, Model, Phase, Plan, Preprocess
from core.wire.partition import start_state
from core.wire.state import packed, unpacked
from hnfed.guard import persons, plans
from hnfed.guard.persons import Confirmation, different
from hnfed.guard.plan_words import in_words
from hnfed.guard.policy import Policy, PolicyError

SHARED = Phase("pretrain", ["nyu", "miccai"], ["Brainstem", "Parotid_L"], rounds=4, local_epochs=5)
OWN = Phase("own", ["nyu"], ["Larynx"], init="pretrain", freeze="encoder", share="none", rounds=2)
PLAN = Plan(
    preprocess=Preprocess(crop=[32, 16, 16], spacing_mm=[3.0, 6.0, 6.0]),
    model=Model(channels=[4, 8]),
    phases=[SHARED, OWN],
)
APPROVED = Policy(plans="approved")


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_the_words_count_the_tensors_that_leave(bits: int) -> None:
    plan = replace(PLAN, federation=Federation(update_bits=bits))
    leaves = unpacked(packed(start_state(plan, SHARED, None), bits))
    numbers = sum(t.numel() for t in leaves.values())
    megabytes = sum(t.numel() * t.element_size() for t in leaves.values()) * SHARED.rounds / 1e6
    told = "\n".join(in_words(plan, "nyu", Policy(weights="any")))
    assert f"each round {len(leaves)} tensors of {numbers:,} numbers" in told
    assert f"{megabytes:,.1f} MB" in told


def test_any_plan_may_run_where_the_policy_says_so(tmp_path: Path) -> None:
    plans.require_agreed(tmp_path, PLAN, Policy())
    assert not plans.waiting(tmp_path)


def test_a_plan_that_nobody_approved_waits_and_one_that_was_runs(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="approved by 0 of 1"):
        plans.require_agreed(tmp_path, PLAN, APPROVED)
    assert plans.waiting(tmp_path) == [PLAN]
    digest = plan_hash(PLAN)
    plans.agree(tmp_path, digest, persons.now("Ada"))
    plans.settled(tmp_path, digest)
    plans.require_agreed(tmp_path, PLAN, APPROVED)
    assert not plans.waiting(tmp_path)
    with pytest.raises(PolicyError):
        plans.require_agreed(tmp_path, replace(PLAN, seed=1), APPROVED)
    assert plans.withdraw(tmp_path, digest)
    assert not plans.withdraw(tmp_path, digest)
    with pytest.raises(PolicyError):
        plans.require_agreed(tmp_path, PLAN, APPROVED)


def test_two_persons_are_two_names(tmp_path: Path) -> None:
    two, digest = replace(APPROVED, approvers=2), plan_hash(PLAN)
    for name in ("Ada", " ada ", "ADA"):
        plans.agree(tmp_path, digest, persons.now(name))
    assert len(plans.agreed(tmp_path)[0].persons) == 1
    with pytest.raises(PolicyError, match="approved by 1 of 2"):
        plans.require_agreed(tmp_path, PLAN, two)
    done = plans.agree(tmp_path, digest, persons.now("Grace"))
    plans.require_agreed(tmp_path, PLAN, two)
    assert persons.one_account(done.persons), "this test has one account: it is said"


@pytest.mark.parametrize("name", ["x" * 101, "a\x1b[2Jb", "\u202eevil"])
def test_a_name_is_printable(name: str) -> None:
    with pytest.raises(UserError, match="--as"):
        persons.now(name)


@pytest.mark.parametrize("text", ["{", '[{"sha256": "a"}]', '[{"persons": [{}], "sha256": "a"}]'])
def test_a_damaged_list_approves_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "plans.json").write_text(text)
    with pytest.raises(UserError, match=r"plans\.json"):
        plans.require_agreed(tmp_path, PLAN, APPROVED)


def test_what_waits_is_bounded_and_is_what_its_name_says(tmp_path: Path) -> None:
    small = replace(APPROVED, pending_mb=0.006)
    for seed in range(6):
        with pytest.raises(PolicyError):
            plans.require_agreed(tmp_path, replace(PLAN, seed=seed), small)
    assert 1 <= len(plans.waiting(tmp_path)) < 6
    assert plans.waiting(tmp_path)[-1].seed == 5
    files = list((tmp_path / "pending").glob("*.plan.json"))
    assert sum(p.stat().st_size for p in files) <= 6000
    for path in files:
        path.write_text(path.read_text().replace('"seed":', '"seed":1'))
    assert plans.waiting(tmp_path) == []
    (tmp_path / "pending" / f"{'0' * 64}.plan.json").write_text("{")
    assert plans.waiting(tmp_path) == []


def test_the_words_say_what_leaves_in_numbers() -> None:
    lines = in_words(PLAN, "nyu", Policy(weights="any"))
    text = "\n".join(lines)
    assert plan_hash(PLAN) in lines[0]
    assert "policy.yaml allows it" in text
    assert "phase pretrain, with miccai: 4 rounds of 5 epochs, 20 in all" in text
    assert "phase own, this site alone" in text
    assert "organs: Brainstem, Parotid_L" in text
    from core.models.stages import unique_state
    from core.wire.partition import network

    state = unique_state(network(PLAN, SHARED))
    numbers = sum(t.numel() for t in state.values())
    assert f"each round {len(state)} tensors of {numbers:,} numbers" in text
    assert f"{4 * len(state)} tensors, {4 * numbers:,} numbers" in text
    assert "leaves: no weight; scores by organ, emptied where fewer than 11 cases" in text
    assert "weights trained here for here" in text
    norms = replace(SHARED, freeze="encoder", thaw={"norm": 1})
    told = "\n".join(in_words(replace(PLAN, phases=[norms]), "nyu", Policy(weights="any")))
    assert "frozen: encoder, norm trains from round 1 on" in told
    assert "policy.yaml refuses it: organs" in "\n".join(
        in_words(PLAN, "nyu", Policy(weights="any", organs=("Larynx",)))
    )


def test_the_words_say_whose_weights_are_worked_with() -> None:
    trusting = "\n".join(in_words(PLAN, "nyu", Policy(weights="any")))
    assert "make a reply show one CT (policy.yaml: weights: any" in trusting
    own = "\n".join(in_words(PLAN, "nyu", Policy()))
    assert "policy.yaml refuses it: weights: agreed" in own
    assert "no weights but those that this machine derives itself" in own


def test_words_of_a_plan_do_not_reach_the_terminal_as_they_are() -> None:
    nasty = replace(PLAN, model=replace(PLAN.model, name="res3dunet\x1b[2J"))
    with pytest.raises(UserError):
        in_words(nasty, "nyu", Policy())
    frozen = replace(PLAN, phases=[replace(SHARED, freeze=["down"])])
    assert all(line.isprintable() for line in in_words(frozen, "nyu", Policy()))


def test_the_file_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    plans.agree(tmp_path, plan_hash(PLAN), persons.now("Ada"))
    (entry,) = json.loads((tmp_path / "plans.json").read_text())
    assert entry["persons"][0]["person"] == "Ada"
    assert set(entry["persons"][0]) == {"person", "account", "behind", "at"}


def test_a_name_in_another_encoding_is_the_same_person() -> None:
    who = Confirmation("Jos\u00e9  Diaz", "a", "", "")
    again = replace(who, person="Jose\u0301 DIAZ")
    wide = replace(who, person="\uff2a\uff4f\uff53\u00e9 Diaz")
    assert different([who, again, wide]) == 1


def test_an_agreement_without_a_name_is_no_second_person() -> None:
    nobody, somebody = Confirmation("(unnamed)", "", "", ""), Confirmation("Ann", "a", "", "")
    assert different([nobody]) == 1
    assert different([nobody, somebody]) == 1
