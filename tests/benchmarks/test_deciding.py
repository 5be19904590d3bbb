"""The deciding experiment's analysis on made-up cells whose answer is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.deciding import analysis, draw_curves, main, pilot, rates, table
from benchmarks.deciding_cells import Cell, cells_of, collect, read, write
from benchmarks.deciding_statistics import (
    Scatter,
    judged,
    permutation_p,
    power,
    scatter,
    speed,
    steps_to,
)
from core.errors import UserError
from core.plan.load import load, plan_json, read_yaml
from simulations.folds import drawn_splits

STEPS = (96, 336, 672)
STUDY = Path(__file__).resolve().parents[2] / "configs" / "studies" / "deciding.yaml"


def cells(gain: float, *, lr: str = "b", patients: int = 11, luck: float = 0.0) -> list[Cell]:
    """Scratch and frozen, which is `gain` better; `luck` is of single networks."""
    generator = np.random.default_rng(7)
    made = []
    for fold in range(4):
        hard = generator.normal(0.6, 0.08, (patients, 2))
        for seed in range(3):
            for arm, plus in (("scratch", 0.0), ("frozen", gain)):
                own = generator.normal(0, luck)
                test = {
                    k: hard + plus + own + generator.normal(0, 0.01, hard.shape) - drop
                    for k, drop in zip(STEPS, (0.2, 0.05, 0.0), strict=True)
                }
                cases = tuple(f"p{fold}_{i}" for i in range(patients))
                made.append(Cell(arm, str(fold), lr, seed, ("A", "B"), test, cases, 0.5))
    return made


def test_a_known_gain_is_shown_and_none_is_not() -> None:
    text = analysis(cells(0.05))
    primary = text[text.index("PRIMARY: frozen - scratch") :]
    assert "44 patients, after 672 steps: +0.05" in primary
    assert primary.count("shown: better") == 2  # with fold 0 and without
    assert "without fold 0, 3 seeds, 33 patients" in primary
    assert "PRELIMINARY" not in primary
    assert primary.count("0 (+0.0") == 1, "each fold's difference, one a seed"
    assert text.splitlines()[2].split()[-2:] == ["A", "B"]
    nothing = analysis(cells(0.0))
    assert nothing.count("inconclusive") == 2


def test_what_is_missing_is_said() -> None:
    some = [c for c in cells(0.05) if c.seed == 0 and c.fold in "01"]
    text = analysis(some)
    assert "PRELIMINARY" in text
    assert "not known below three folds" in text
    assert "shown for the method" in text  # not shown for it: two folds cannot
    first = analysis([c for c in some if c.fold == "0"])
    assert "without fold 0: nothing to compare yet" in first
    assert "PRELIMINARY" in first
    frozen = [c for c in cells(0.05) if c.arm == "frozen"]
    assert ["scratch", "0", "-", "-", "-", "-", "-"] in map(
        str.split, analysis(frozen).splitlines()
    )
    lone = [c for c in cells(0.05) if c.arm == "scratch" or c.fold == "9"]
    with pytest.raises(UserError, match="nothing to compare yet"):
        table(lone, ("scratch", "frozen"))


def test_only_what_both_arms_have_is_compared() -> None:
    made = [c for c in cells(0.05) if (c.arm, c.fold, c.seed) != ("frozen", "2", 1)]
    dice, folds, seeds, steps = table(made, ("scratch", "frozen"))
    assert (seeds, steps) == ([0, 2], [96, 336, 672])
    assert dice["frozen"].shape == (44, 2, 3)
    assert sorted(set(folds)) == ["0", "1", "2", "3"]
    dice, _, _, _ = table(made, ("scratch", "frozen"), without=("0", "2"))
    assert dice["scratch"].shape == (22, 3, 3)


def test_the_rate_is_chosen_on_validation_of_fold_0_and_seed_0() -> None:
    low, high = cells(0.0, lr="a"), cells(0.0, lr="c")
    best = [Cell(**{**vars(c), "val": 0.9 if (c.fold, c.seed) == ("0", 0) else 0.0}) for c in high]
    flattering = [
        Cell(**{**vars(c), "val": 0.5 if (c.fold, c.seed) == ("0", 0) else 1.0}) for c in low
    ]
    assert rates([*flattering, *best]) == {"scratch": "c", "frozen": "c"}


def test_the_permutation_is_that_of_all_exchanges() -> None:
    """Of 2^6 exchanges 2 are as far from 0 as six equal signs, 1 / 32."""
    assert permutation_p(np.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.4])) == pytest.approx(
        2 / 64, abs=2e-3
    )
    assert permutation_p(np.array([0.1, -0.1])) == 1.0
    assert permutation_p(np.zeros(5)) == 1.0


def test_a_verdict_of_the_method_needs_the_folds_too() -> None:
    """Every patient of a fold has its networks' luck: patients agree, folds do not."""
    folds = [k for k in "0123" for _ in range(11)]
    luck = np.repeat([0.09, 0.01, 0.10, -0.02], 11)
    found = judged(luck + np.random.default_rng(0).normal(0, 0.01, 44), folds)
    assert found.p < 0.05
    assert found.fold_p is not None
    assert found.fold_p > 0.05
    assert "better for these trained networks; not shown for the method" in found.verdict
    assert found.low < found.mean < found.high


def test_steps_to_a_level_are_between_the_points() -> None:
    curve = np.array([0.2, 0.4, 0.6])
    assert steps_to(curve, STEPS, 0.1) == pytest.approx(48)
    assert steps_to(curve, STEPS, 0.5) == pytest.approx((336 + 672) / 2)
    assert steps_to(curve, STEPS, 0.7) == np.inf


def test_half_the_steps_are_a_ratio_of_a_half() -> None:
    """Scratch is at 95 % of its end after 500 steps, the arm after 250."""
    steps = (250, 500, 750, 1000)
    scratch = np.tile(np.array([0.475, 0.57, 0.585, 0.6]), (8, 3, 1))
    arm = np.tile(np.array([0.57, 0.6, 0.6, 0.6]), (8, 3, 1))
    found = speed(arm, scratch, steps, ["0"] * 4 + ["1"] * 4)
    assert (found.steps, found.scratch, found.ratio) == pytest.approx((250, 500, 0.5))
    assert (found.low, found.high, found.missed) == pytest.approx((0.5, 0.5, 0.0))
    never = speed(arm * 0.5, scratch, steps, ["0"] * 8)
    assert (never.ratio, never.missed) == (np.inf, 1.0)


def test_the_sources_of_scatter_are_told_apart() -> None:
    generator = np.random.default_rng(1)
    tables = [
        generator.normal(0, 0.05, (200, 1))
        + generator.normal(0, 0.02, (1, 40))
        + generator.normal(0, 0.03, (200, 40))
        for _ in range(8)
    ]
    found = scatter(tables)
    assert (found.patient, found.model, found.rest) == pytest.approx((0.05, 0.02, 0.03), rel=0.1)
    assert pilot(cells(0.5, luck=0.03)).rest < 0.02  # no gain, however large, is scatter


def test_the_power_is_the_level_where_nothing_is_and_grows() -> None:
    sizes = (11, 11, 11, 10)
    quiet = Scatter(patient=0.05, model=0.0, rest=0.03)
    for p in power(quiet, 0.0, sizes, 3):
        assert 0.02 < p < 0.08
    exchanged, by_fold = power(quiet, 0.04, sizes, 3, studies=300)
    assert exchanged > 0.95
    assert exchanged > by_fold > 0.7
    lucky = Scatter(patient=0.05, model=0.04, rest=0.03)
    too_often, sound = power(lucky, 0.0, sizes, 3)
    assert too_often > 0.15  # why the verdict asks the folds too
    assert sound < 0.08


# ----------------------------------------------------------------------------------- protocol


def test_the_page_has_the_draw_of_the_study() -> None:
    config, _ = load("openkbp-deciding", [])
    names = config.simulation.sites["clinic"].splits["train"]
    study = read_yaml(STUDY)["folds"]
    folds = drawn_splits(
        names, study["count"], train=study["train"], val=study["val"], seed=study["seed"]
    )
    page = (STUDY.parents[2] / "docs" / "deciding.md").read_text(encoding="utf-8")
    for k, fold in enumerate(folds):
        lists = (" ".join(sorted(fold[s], key=int)) for s in ("test", "train", "val"))
        assert f"| {k} | {' | '.join(lists)} |" in page


# ------------------------------------------------------------------------------- cells as files


def write_cell(folder: Path, name: str, arm: str, dice: float) -> None:
    config, _ = load("openkbp-deciding", [])
    cell = folder / name
    phase = cell / "sites" / "clinic" / "personalise"
    phase.mkdir(parents=True)
    splits = {"train": [str(i) for i in range(12)], "val": ["20"], "test": ["30", "31"]}
    record = {
        "variant": arm, "axes": {"fold": "0", "lr": "0.002"}, "seed": 0, "seconds": 9.5,
        "commit": "abc", "fingerprints": ["f"], "plan": plan_json(config.plan),
        "simulation": {"sites": {"clinic": {"splits": splits}}},
    }  # fmt: skip
    (cell / "cell.json").write_text(json.dumps(record))
    cells = {"Larynx": {"n": 1, "dice": 0.5}, "Esophagus": {"n": 1, "dice": 0.6}}
    block = {"sites": {"clinic": {"val": cells}}}
    (cell / "metrics.json").write_text(json.dumps({"status": "completed", "phases": [block]}))
    with (phase / "rounds.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("round", "case", "organ", "dice"))
        for round_ in (2, 14):
            for case in ("31", "30"):
                for i, organ in enumerate(("Larynx", "Esophagus")):
                    writer.writerow((round_, case, organ, dice + i / 10))


def test_cells_become_one_small_file_and_come_back(tmp_path: Path) -> None:
    write_cell(tmp_path / "study", "scratch-fold0-lr0.002-seed0", "scratch", 0.5)
    unfinished = tmp_path / "study" / "frozen-fold0-lr0.002-seed0"
    write_cell(tmp_path / "study", unfinished.name, "frozen", 0.6)
    (unfinished / "metrics.json").unlink()
    file = tmp_path / "results" / "deciding.json"
    assert main(["collect", str(tmp_path / "study"), str(file)]) == 0
    (cell,) = cells_of(read(file))
    assert (cell.arm, cell.fold, cell.lr, cell.seed) == ("scratch", "0", "0.002", 0)
    assert cell.cases == ("30", "31")
    assert list(cell.test) == [96, 672]  # 2 and 14 rounds of 4 epochs of 12 cases
    assert cell.test[96].tolist() == [[0.5, 0.6], [0.5, 0.6]]
    assert cell.val == pytest.approx(0.55)


def test_cells_that_were_collected_before_stay(tmp_path: Path) -> None:
    write_cell(tmp_path / "first", "scratch-fold0-lr0.002-seed0", "scratch", 0.5)
    write_cell(tmp_path / "second", "frozen-fold0-lr0.002-seed0", "frozen", 0.6)
    file = tmp_path / "deciding.json"
    for folder in ("first", "second"):
        assert main(["collect", str(tmp_path / folder), str(file)]) == 0
    assert {c.arm for c in cells_of(read(file))} == {"scratch", "frozen"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no finished cell"):
        collect(tmp_path / "empty")
    assert main(["analyse", str(tmp_path / "nothing.json")]) == 1


def test_a_whole_study_is_below_300_kb(tmp_path: Path) -> None:
    """76 cells of 8 numbers of steps and 11 test patients."""
    dice = {str(k): [[0.6543, 0.4321]] * 11 for k in range(48, 432, 48)}
    cases = ["okbp_001"] * 11
    one: dict[str, Any] = {"variant": "frozen-federated", "axes": {"fold": "0", "lr": "0.002"}}
    one |= {"seed": 0, "seconds": 300.0, "commit": "0" * 40, "fingerprints": ["0" * 64]}
    one |= {"organs": ["Larynx", "Esophagus"], "val": 0.51234567, "cases": cases, "dice": dice}
    path = tmp_path / "all.json"
    write(path, {"schema": 1, "cells": {f"cell{i}": one for i in range(76)}})
    assert path.stat().st_size < 300_000


def test_the_power_command_draws_its_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.deciding.EFFECTS", (0.0, 0.1))
    figure = tmp_path / "power.svg"
    arguments = ["power", "--scatter", "0.05", "0.01", "0.03", "--figure", str(figure)]
    assert main(arguments) == 0
    assert "power 0.8 from a difference of 0.100" in capsys.readouterr().out
    assert "<svg" in figure.read_text()
    assert main(["power"]) == 1


def test_the_analysis_draws_its_curves(tmp_path: Path) -> None:
    draw_curves(cells(0.05), tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    assert text.count("<path") > 2 * 12, "a line a cell"


def test_the_committed_pilot_has_the_scatter_that_the_page_tells() -> None:
    found = pilot(list(cells_of(read(STUDY.parents[2] / "docs/results/deciding-pilot.json"))))
    page = (STUDY.parents[2] / "docs" / "deciding.md").read_text(encoding="utf-8")
    for value in (found.patient, found.model, found.rest):
        assert f"{value:.3f} of a" in page or f"{value:.3f} of the rest" in page
