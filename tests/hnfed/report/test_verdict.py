"""The verdict in words, contributions, intervals, the configuration's sources; of made-up runs."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.plan.load import load, to_yaml
from hnfed.report.cases import organ_rows, spread
from hnfed.report.page import write_report
from hnfed.report.references import human, networks, of_organs, references
from hnfed.report.run import read_run
from hnfed.report.settings import settings
from hnfed.report.verdict import judged
from hnfed.report.view import view
from tests.hnfed.report.test_page import Page, make_run


def seen(run: Path) -> dict[str, Any]:
    shown: dict[str, Any] = view(read_run(run))["verdict"]
    return shown


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("verdict") / "demo")


def test_says_what_was_trained_on_how_many_cases_of_whom(run: Path) -> None:
    first, second = seen(run)["trained"]
    assert first == (
        "pretrain: res3dunet (1\u202f204\u202f880 weights) learnt 9 organs on 32 training cases: "
        "16 of miccai and 16 of nyu; from scratch, 40 of 40 rounds."
    )
    assert second == (
        "personalise: res3dunet (1\u202f204\u202f880 weights) learnt 3 organs on 16 training cases "
        "of nyu; from the weights of pretrain, with the encoder frozen, 30 of 30 rounds. Its "
        "weights stay at the site."
    )


def test_says_what_is_weak_what_failed_and_what_is_next(run: Path) -> None:
    told = seen(run)
    assert any("Few test cases (5" in line for line in told["trust"])
    assert told["failed"][0].startswith(
        "pretrain: 1 of nyu's replies not used (E_NONFINITE: training"
    )
    left_out = (
        "Left out at nyu, before training: E_LABEL_OFF_GRID (2) and the CT cannot be read (1)."
    )
    assert left_out in told["failed"]
    assert any("Nothing left this machine" in line for line in told["left"])
    assert any("weights, counts of cases and sums of scores" in line for line in told["left"])
    assert any("The weights are not masked" in line for line in told["left"])
    commands = [command for _, command in told["next"]]
    assert "hnfed export demo -o bundle" in commands
    assert "hnfed check ARCHIVE" in commands


def test_the_name_of_a_foreign_folder_runs_no_command(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "x$(touch PWNED)")
    found = view(read_run(tmp_path / "x$(touch PWNED)"))
    commands = [command for _, command in found["verdict"]["next"]]
    assert "hnfed export 'x$(touch PWNED)' -o bundle" in commands
    named = [command for command in commands if "PWNED" in command]
    assert len(named) > 1
    assert all(shlex.split(command).count("x$(touch PWNED)") == 1 for command in named)


def test_a_phase_that_was_best_at_its_end_is_to_go_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    metrics = run / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"best_round": 37', '"best_round": 40'))
    told = seen(run)
    assert "pretrain was best in its last round: it may not be through." in told["trust"]
    assert ("Train pretrain longer.", "phases.pretrain.rounds=80") in told["next"]


def test_a_failed_run_says_why_and_how_to_go_on(tmp_path: Path) -> None:
    told = seen(make_run(tmp_path / "run", stop="failed"))
    assert "fewer than 2 sites answered" in told["failed"][0]
    assert "--resume" in told["next"][0][0]
    assert "no test score" in told["trust"][0]


def test_synthetic_patients_are_called_so(tmp_path: Path, run: Path) -> None:
    assert "synthetic" not in " ".join(seen(run)["trust"])
    other = make_run(tmp_path / "run")
    config, _ = load("demo")
    (other / "config.yaml").write_text(to_yaml(config))
    told = seen(other)
    assert "nothing about real CTs" in told["trust"][0]
    shutil.rmtree(other / "sites")  # a federation's plan may list sites of a simulation
    assert "synthetic" not in " ".join(seen(other)["trust"])
    assert "Nothing left this machine" not in " ".join(seen(other)["left"])
    words = {row["word"].partition(",")[0] for table in told["organs"] for row in table["rows"]}
    assert words <= {"learnt", "poor", "withheld: few cases"}


def row(dice: float | None, n: int = 40, high: float | None = None, **more: Any) -> dict[str, Any]:
    values = {"organ": "Brainstem", "dice": dice, "n": n, "high": high, "withheld": False}
    return values | more


def test_an_organ_is_judged_beside_readers_and_networks() -> None:
    known = of_organs(["Brainstem", "OpticChiasm"])
    assert human("Brainstem", known) == 0.895
    assert human("OpticChiasm", known) is None
    assert max(networks("OpticChiasm", known)) == pytest.approx(0.557)
    words = {
        "as good as a second reader": row(0.90),
        "not told apart from a second reader": row(0.88, high=0.90),
        "a little below a second reader": row(0.86, high=0.88),
        "below a second reader": row(0.7, high=0.75),
        "poor": row(0.3, high=0.4),
        "as good as networks": row(0.6, organ="OpticChiasm"),
        "no reference known": row(0.6, organ="Cochlea_L"),
        "as good as a second reader, on 4 cases": row(0.9, n=4),
        "withheld: few cases": row(None, withheld=True),
        "not scored": row(None),
    }
    for expected, values in words.items():
        assert judged(values, known, False)[0] == expected


def test_every_reference_names_its_source() -> None:
    assert len(references()) >= 6
    for reference in references():
        assert len(reference.source) > 40
        assert all(0 < value < 1 for value in reference.dice.values())
    chiasm = next(r for r in references() if r.name == "paper" and "OpticChiasm" in r.dice)
    assert chiasm.dice["OpticChiasm"] == 0.53


def test_intervals_and_surface_dice_are_of_single_cases() -> None:
    dice = {"Brainstem": {"a": [0.8, 0.9], "b": [0.7]}}
    (cell,) = organ_rows(["Brainstem"], {"Brainstem": {"n": 3, "dice": 0.8}}, dice, {})
    assert cell["low"] < 0.8 < cell["high"]
    assert (cell["median"], cell["worst"], cell["surface"]) == (0.8, 0.7, None)
    (cell,) = organ_rows(["Brainstem"], {"Brainstem": {"n": 3, "dice": 0.8}}, dice, dice)
    assert cell["surface"] == pytest.approx(0.8)
    assert spread([0.5])["low"] is None
    assert spread([0.1, 0.2, 0.3])["quartiles"] == pytest.approx([0.15, 0.25])


def test_a_servers_report_has_neither_intervals_nor_cases(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shutil.rmtree(run / "sites")
    told = seen(run)
    rows = [row for table in told["organs"] for row in table["rows"]]
    assert rows
    assert all(
        row["low"] is row["median"] is row["worst"] is row["surface"] is None for row in rows
    )
    assert any("There are no intervals" in line for line in told["trust"])
    assert not any("Nothing left this machine" in line for line in told["left"])
    page = Page(write_report(run))
    assert "img" not in page.tags
    assert "[0." not in page.text


def test_who_contributed_what(run: Path) -> None:
    page = Page(write_report(run))
    text = page.text.split("Who contributed what")[-1].split("What was left out")[0]
    assert "pretrain miccai 16 9 of 9 40 of 40 none" in text
    assert "pretrain nyu 16 9 of 9 40 of 40 1 × E_NONFINITE" in text
    assert "personalise nyu 16 3 of 3 30 of 30 none" in text


def test_each_value_has_its_source(run: Path) -> None:
    config = view(read_run(run))["config"]
    rows = {r["key"]: r for g in settings(config, {}) for r in g["rows"]}
    assert rows["seed"]["source"] == "set"  # 7
    assert rows["train.lr"]["source"] == "default"
    assert rows["phases.0.patience"]["source"] == "default"
    assert rows["phases.1.freeze"]["value"] == '"encoder"'
    assert rows["phases.1.freeze"]["set"]
    told = {"seed": "override", "train.lr": "demo.yaml", "phases.1.freeze": "default"}
    rows = {r["key"]: r for g in settings(config, told) for r in g["rows"]}
    assert [rows[key]["source"] for key in told] == list(told.values())
    (run / "sources.json").write_text(json.dumps(told))
    text = Page(write_report(run)).text
    assert "seed 7 override" in text
    (run / "sources.json").write_text("[broken")
    assert "not in the folder" in Page(write_report(run)).text
