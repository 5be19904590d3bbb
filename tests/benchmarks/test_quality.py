"""Networks train for their CPU minutes; none is scored on a case that trains."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import quality
from core.plan.load import find_config
from simulations.phantom.cases import SIGNATURES, Cohort, write_site


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quality") / "archive"
    write_site(root, Cohort(SIGNATURES["nyu"], 9, 3, (8.0, 6.0, 6.0)))  # some lack an organ
    return root


@pytest.fixture
def options(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    for name, count in (("SCORED", 2), ("VALIDATED", 1)):
        monkeypatch.setattr(quality, name, count)
    plan = tmp_path / "small.yaml"
    text = find_config("smoke").read_text().replace("[32, 32, 40]", "[32, 32, 48]")
    plan.write_text(text)
    return Namespace(
        archive=[archive],
        out=tmp_path,
        networks=list(quality.LR),
        minutes=[0.001],
        seed=0,
        amp="off",
        lr=None,
        set=[],
        cases=None,
        validate=False,
        config=str(plan),
    )


@pytest.mark.parametrize("name", quality.LR)
def test_a_network_trains_and_is_scored(
    name: str, options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = quality.validate
    seen = []

    def once(model, entries, plan, phase, device):  # type: ignore[no-untyped-def]
        seen.append(phase.average_mirrored)
        return scored(model, entries, plan, phase, device)

    monkeypatch.setattr(quality, "validate", once)
    options.set = ["phases.pretrain.average_mirrored=true"]
    told = quality.one(options, name, options.minutes[0])
    assert told["precision"] == "float32"
    assert told["lr"] == (quality.LR[name] or 2e-3)
    assert [len(dice) for dice in told["dice"]] == [4, 4]
    assert json.loads(json.dumps(told)) == told
    assert seen == [False], "all are scored in one way"


class Clock:
    """CPU time that passes in steps of a second, one a reading."""

    def __init__(self) -> None:
        self.now = 0.0

    def process_time(self) -> float:
        self.now += 1
        return self.now


def test_our_rate_falls_to_zero_within_the_budget(
    options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    options.set = ["phases.pretrain.local_epochs=5", "phases.pretrain.lr=0.1"]
    plan = quality.plan_of(options)
    assert plan.train.lr == 0.1
    clock, rates = Clock(), []

    def train(model, entries, plan, phase, device, span):  # type: ignore[no-untyped-def]
        # A reading makes it 10 seconds an epoch; the last takes one and leaves room for another.
        clock.now += 9 if span.first < 6 else 0
        total = phase.rounds * phase.local_epochs
        rates.append(quality.learning_rate(plan.train, span.first + 0.99, total))
        return None, {}

    monkeypatch.setattr(quality, "train", train)
    monkeypatch.setattr(quality, "weights_of", lambda *_: None)
    monkeypatch.setattr(quality, "time", clock)
    _, run = quality.our_training(plan, plan.phases[0], 0)
    assert run(torch.nn.Identity(), [], 73.0) == 7
    assert len(rates) == 7
    assert rates[0] > 0.09
    assert rates[-1] < 0.01 < rates[-2]


@pytest.mark.parametrize(
    "name", ["unet", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dynunet", "dynunet-sgd"))]
)
def test_the_others_stop_with_their_budget(
    name: str, options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, parts = Clock(), []
    rate = quality.learning_rate
    monkeypatch.setattr(quality, "time", clock)

    def noted(settings, epoch, total):  # type: ignore[no-untyped-def]
        parts.append(epoch / total)
        return rate(settings, epoch, total)

    monkeypatch.setattr(quality, "learning_rate", noted)
    told = quality.one(options, name, 0.1)  # six readings of the clock
    assert parts == pytest.approx([i / 6 for i in range(6)])
    assert told["epochs"] == pytest.approx(6 / told["cases"])


def test_cases_that_lack_an_organ_train_ours_alone(
    options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    samples = quality.naive_samples

    def checked(entries, organs, settings):  # type: ignore[no-untyped-def]
        seen.extend(entries)
        return samples(entries, organs, settings)

    monkeypatch.setattr(quality, "naive_samples", checked)
    told = [
        quality.one(options, name, options.minutes[0]) for name in ("ours", "unet", "ours-whole")
    ]
    assert told[0]["cases"] == 7
    assert told[1]["cases"] == told[2]["cases"]
    assert 0 < told[1]["cases"] < 7
    assert len({entry.case for entry in seen}) == told[1]["cases"]
    organs = {"Brainstem", "Bone_Mandible", "Parotid_L", "Parotid_R"}
    assert all(entry.annotated >= organs for entry in seen)


def test_fewer_cases_are_some_of_more_and_a_cell_of_their_own(
    options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = quality.our_training, []

    def our_training(plan, phase, seed):  # type: ignore[no-untyped-def]
        model, run = real(plan, phase, seed)

        def taught(model, entries, seconds):  # type: ignore[no-untyped-def]
            drawn.append({entry.case for entry in entries})
            return run(model, entries, seconds)

        return model, taught

    monkeypatch.setattr(quality, "our_training", our_training)
    paths = set()
    for options.cases in (2, 4, None):
        assert quality.one(options, "ours", 0.001)["cases"] == len(drawn[-1])
        paths.add(quality.cell_path(options, "ours", 15))
    assert [len(cases) for cases in drawn[:2]] == [2, 4]
    assert drawn[0] < drawn[1] < drawn[2]
    assert len(paths) == 3


def test_validation_leaves_the_scored_patients_alone(options: Namespace) -> None:
    class Case(Namespace):
        pass

    organs = ("a", "b")
    cases = [Case(case=f"{i}", annotated=frozenset(organs if i % 3 else "a")) for i in range(12)]
    trained, scored = quality.divided(cases, organs, False)
    less, validated = quality.divided(cases, organs, True)
    names = [{case.case for case in part} for part in (trained, scored, less, validated)]
    assert names[0] | names[1] == {case.case for case in cases}
    assert not names[0] & names[1]
    assert names[3] == names[0] - names[2]
    assert (len(scored), len(validated)) == (2, 1)


def test_deep_supervision_halves_each_further_head() -> None:
    def mean(said: Tensor, label: Tensor) -> Tensor:
        return said.mean()

    heads = torch.stack([torch.full((1, 2, 3, 3, 3), float(v)) for v in (7, 14, 28)], 1)
    label = torch.zeros(1, 1, 3, 3, 3)
    assert float(quality.deeply(mean, heads, label)) == pytest.approx((7 + 7 + 7) / 1.75)
    assert float(quality.deeply(mean, heads[:, 0], label)) == 7


def test_cells_are_run_once_and_compared_by_patient(
    options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(command: list[str], **_: object) -> Namespace:
        name = command[command.index("--one") + 1]
        ran.append(name)
        dice = [{"a": 0.8, "b": 0.6}, {"a": 0.9, "b": 0.7}]
        more = {"unet": -0.1, "dynunet": 0.2, "dynunet-sgd": -0.5}.get(name, 0.0)
        dice = [{organ: d + more for organ, d in case.items()} for case in dice]
        told = {"cpu_minutes": 1.0, "epochs": 1, "cases": 2, "lr": 0.1, "precision": "float32"}
        return Namespace(stdout=b"noise\n" + json.dumps(told | {"dice": list(dice)}).encode())

    monkeypatch.setattr(quality.subprocess, "run", run)
    rows = list(quality.measured(options))
    assert ran == list(quality.LR)
    assert list(quality.measured(options)) == rows
    assert ran == list(quality.LR), "each cell is kept"
    about = {row["name"]: row["against"] for row in rows}
    assert "1.0 epochs of 2 cases" in about["ours, 0.001 CPU minutes: Dice"]
    values = {row["name"].partition(",")[0]: row["value"] for row in rows}
    assert values["ours"] == pytest.approx(0.75)
    assert values["unet"] == pytest.approx(0.65)
    assert values["ours - unet"] == pytest.approx(0.1)
    met = [row["met"] for row in rows if row["ratio"] is not None]
    assert met == [None, True, False, True], "ours-whole has no target, dynunet has 0.2 more"


def test_another_plan_or_learning_rate_is_another_cell(
    options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {quality.cell_path(options, "ours", 1)}
    options.set = ["model.channels=[2,4]"]
    paths.add(quality.cell_path(options, "ours", 1))
    options.validate = True
    paths.add(quality.cell_path(options, "ours", 1))
    monkeypatch.setitem(quality.LR, "ours", 0.05)
    paths.add(quality.cell_path(options, "ours", 1))
    options.lr = 0.1
    paths.add(quality.cell_path(options, "ours", 1))
    assert len(paths) == 5
    told = quality.one(options, "ours", options.minutes[0])
    assert told["set"] == options.set
