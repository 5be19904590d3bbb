"""A plan is approved once, and answered so often and no more."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import UserError
from core.plan.load import plan_hash
from core.wire.messages import Order
from hnfed.guard.answers import FOLDER, note_answer, require_unanswered
from hnfed.guard.order import Asked
from hnfed.guard.pins import plan_of, read_pin
from hnfed.guard.rules import Policy, PolicyError
from tests.client.conftest import tiny_phase, tiny_plan
from tests.hnfed.guard.conftest import LENIENT, ORGANS, Hospital

PLAN = tiny_plan(tiny_phase(organs=list(ORGANS), rounds=2))
POLICY = Policy(most_answers=2)


def asked(task: str = "train", round_: int = 1, run: str = "r-1") -> Asked:
    order = Order(run, "p", round_, task)
    return Asked("train", "north", run, PLAN, order, PLAN.phases[0])


def test_rounds_and_runs_of_a_plan_share_what_there_is(tmp_path: Path) -> None:
    digest = plan_hash(PLAN)
    for i in range(6):  # twice for two rounds and the start
        one = asked(round_=1 + i % 2, run=f"r-{i}")
        require_unanswered(tmp_path, POLICY, digest, one)
        note_answer(tmp_path, digest, one)
    with pytest.raises(PolicyError, match="most_answers: train of phase p was answered 6 times"):
        require_unanswered(tmp_path, POLICY, digest, asked(run="r-9"))
    require_unanswered(tmp_path, POLICY, digest, asked("validate"))
    require_unanswered(tmp_path, POLICY, "f" * 64, asked())
    require_unanswered(tmp_path, replace(POLICY, most_answers=3), digest, asked())


@pytest.mark.parametrize("text", ["", "[]", '{"p": 3}', '{"p": {"train": "x"}}'])
def test_under_a_damaged_count_nothing_is_answered(tmp_path: Path, text: str) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / f"{plan_hash(PLAN)}.json").write_text(text)
    with pytest.raises(UserError):
        require_unanswered(tmp_path, POLICY, plan_hash(PLAN), asked())


def test_the_guard_counts_over_runs_and_answers_no_more(
    tmp_path: Path, patients: Path, own_bundle: bytes
) -> None:
    """One round, and the start: two answers, in whatever run."""
    plan = tiny_plan(tiny_phase(organs=list(ORGANS), rounds=1))
    hospital = Hospital(tmp_path, patients, own_bundle, plan)
    hospital.policy(*LENIENT, "most_answers: 1")
    for run in ("r-000001", "r-000002"):
        hospital.wire.config = hospital.settings(hospital.plan, run)
        query = {"run": run, "fingerprint": hospital.order()["fingerprint"]}
        assert hospital.ask("query", query).code == "OK", hospital.log
        told = hospital.ask("train", hospital.order(run=run), arrays=hospital.start())
        assert told.code == "OK", hospital.log
    hospital.wire.config = hospital.settings(hospital.plan, "r-000002")
    told = hospital.ask("train", hospital.order(run="r-000002"), arrays=hospital.start())
    assert (told.code, told.parcel) == ("E_POLICY", b"")
    assert "most_answers" in hospital.log
    scored = hospital.order(task="test", run="r-000002")
    assert hospital.ask("evaluate", scored, arrays=hospital.start()).code == "OK", hospital.log
    pin = read_pin(hospital.state / "guard", "r-000002")
    assert pin is not None
    assert plan_of(hospital.state / "guard", pin) == plan, "kept for the site's own report"
    pictures = list((hospital.state / "r-000002" / "p" / "overlays").glob("*_only_*.png"))
    assert len(pictures) == len(ORGANS), "drawn behind the walls, of the one test case"


@pytest.mark.slow
def test_a_split_does_not_change_behind_an_answer(
    tmp_path: Path, patients: Path, own_bundle: bytes
) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(patients, archive)
    plan = tiny_plan(tiny_phase(organs=list(ORGANS)))
    hospital = Hospital(tmp_path, archive, own_bundle, plan)

    def listed(*splits: str) -> None:
        rows = [f"DOE_Jane_{i},{split}" for i, split in enumerate(splits)]
        (archive / "cases.csv").write_text("\n".join(["case,split", *rows]) + "\n")

    assert hospital.ask("query").code == "OK", hospital.log
    listed("train", "train", "val", "val", "test")
    assert hospital.ask("query").code == "OK", "nothing was answered from the old one"
    told = hospital.ask("train", hospital.order(), arrays=hospital.start())
    assert (told.code, told.metrics["cases"]) == ("OK", 2), hospital.log
    listed("train", "train", "train", "val", "test")
    assert hospital.ask("query").code == "E_POLICY"
    assert "begins a new run" in hospital.log
    listed("train", "train", "val", "val", "test")
    assert hospital.ask("query").code == "OK", hospital.log
