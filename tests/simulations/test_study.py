from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import UserError
from core.models.build import build
from core.models.stages import stage_of
from core.plan.load import load
from core.plan.schema import Config
from hnfed.cli.main import main
from simulations.run import resolve
from simulations.study import Study, read_study, shipped_studies

PRETRAIN = "pretrain: {phases: [pretrain]}"
INIT = "{pretrain}/checkpoints/pretrain/best.safetensors"
ReadText = Callable[..., Study]


@pytest.fixture
def read(tmp_path: Path) -> ReadText:
    def reader(text: str, *overrides: str) -> Study:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return read_study(str(path), overrides, tmp_path / "out")

    return reader


def values_of(overrides: tuple[str, ...]) -> dict[str, Any]:
    return {k: json.loads(v) for k, _, v in (o.partition("=") for o in overrides)}


def test_every_combination_of_axes_and_seed_is_a_cell(read: ReadText, tmp_path: Path) -> None:
    study = read(
        "config: smoke\n"
        "set: {train.lr: 0.5, simulation.engine: inline}\n"
        "cells:\n"
        "  tuned:\n"
        "    needs: pretrain\n"
        "    phases: [personalise]\n"
        "    axes:\n"
        "      cases:\n"
        "        1: {phases.personalise.max_cases: 1}\n"
        "        3: {phases.personalise.max_cases: 3}\n"
        "      lr: {low: {train.lr: 0.1}}\n"
        f"    set: {{train.lr: 0.7, phases.personalise.init: '{INIT}'}}\n"
        f"  {PRETRAIN}\n",
        "seeds=[4,1]",
        "train.batch=2",
    )
    assert [c.name for c in study.cells] == [
        f"{n}-seed{s}"
        for s in (4, 1)
        for n in ("pretrain", "tuned-cases1-lrlow", "tuned-cases3-lrlow")
    ]
    cell = study.cells[5]
    assert (cell.variant, cell.seed, cell.needs) == ("tuned", 1, ("pretrain-seed1",))
    assert cell.values == {"cases": "3", "lr": "low"}
    config, _ = load("smoke", cell.overrides)
    folder = tmp_path / "out" / "pretrain-seed1"
    assert [p.name for p in config.phases] == ["personalise"]
    assert config.phases[0].init == f"{folder}/checkpoints/pretrain/best.safetensors"
    assert (config.phases[0].max_cases, config.phases[0].freeze) == (3, "encoder")
    assert (config.seed, config.train.batch) == (1, 2)
    assert config.train.lr == 0.1  # axis over cell over study
    assert load("smoke", study.cells[0].overrides)[0].train.lr == 0.5
    (last,) = read(
        f"config: smoke\nset: {{train.lr: 0.5}}\ncells: {{{PRETRAIN}}}", "train.lr=0.3"
    ).cells
    assert load("smoke", last.overrides)[0].train.lr == 0.3  # the command line over all


def test_a_needed_cell_has_the_same_values_of_shared_axes(read: ReadText) -> None:
    axis = "axes: {n: {a: {train.batch: 1}, b: {train.batch: 2}}}"
    study = read(
        f"config: smoke\ncells:\n  one: {{{axis}}}\n"
        f"  two: {{needs: [one], {axis}, set: {{tracking.project: '{{one}}'}}}}\n"
    )
    assert {c.name: c.needs for c in study.cells if c.variant == "two"} == {
        "two-na-seed0": ("one-na-seed0",),
        "two-nb-seed0": ("one-nb-seed0",),
    }
    projects = [values_of(c.overrides)["tracking.project"] for c in study.cells[2:]]
    assert [Path(p).name for p in projects] == ["one-na-seed0", "one-nb-seed0"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("config: smoke\nseed: [1]\ncells: {a: {}}", "did you mean seeds"),
        ("config: smoke\ncells: {a: {axis: {}}}", "did you mean axes"),
        ("config: smoke\ncells: {}", "at least one cell"),
        ("cells: {a: {}}", "name the base configuration"),
        ("config: smoke\ncells: {a: {needs: b}}", "name a cell of this study"),
        ("config: smoke\ncells: {a: {needs: b}, b: {needs: a}}", "break the circle"),
        ("config: smoke\ncells: {a: {needs: a}}", "break the circle"),
        ("config: smoke\ncells: {a: {}, b: {set: {train.amp: '{a}'}}}", "needs: a"),
        ("config: smoke\ncells: {b: {set: {train.amp: '{x}'}}}", "{x} is not needed"),
        ("config: smoke\ncells: {a: {axes: {n: {1: {}}}}, b: {needs: a}}", "the axis 'n'"),
        ("config: smoke\ncells: {a: {axes: {n: [1, 2]}}}", "VALUE: {KEY: VALUE}"),
        ("config: smoke\ncells: {a: {axes: {n: {a b: {}}}}}", "use letters"),
        ("config: smoke\ncells: {a: {phases: [nope]}}", "['pretrain', 'personalise']"),
        ("config: smoke\ncells: {a: {set: {seed: 1}}}", "under 'seeds'"),
        ("config: smoke\nseeds: [1, 1]\ncells: {a: {}}", "each once"),
        ("config: smoke\nfolds: 4\ncells: {a: {}}", "list the patients"),
        ("config: smoke\nfolds: many\ncells: {a: {}}", "whole number"),
        ("config: smoke\ncells: {a: {axes: {b-c: {1: {}}}}, a-b: {axes: {-c: {1: {}}}}}", "axes"),
        ("config: smoke\ncells: {a: {axes: {b: {1: {}}}}, a-b1: {}}", "two cells"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said(read: ReadText, text: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        read(text)
    assert told in str(caught.value)


def test_a_seed_on_the_command_line_is_a_cell(read: ReadText) -> None:
    with pytest.raises(UserError, match="seeds="):
        read("config: smoke\ncells: {a: {}}", "seed=1")
    with pytest.raises(UserError, match="seeds"):
        read("config: smoke\ncells: {a: {}}", "seeds=x")


def test_an_unknown_study_has_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean transfer\?"):
        read_study("transfr", [], tmp_path)


# ------------------------------------------------------------------------------ studies that ship


def resolved(study: str, data: Path) -> dict[str, Config]:
    read = read_study(study, [f"simulation.data={data}"], data / "out")
    return {c.name: resolve(read.config, c.overrides)[1] for c in read.cells}


@pytest.mark.parametrize("study", shipped_studies())
def test_every_shipped_study_resolves(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cells"
    few = [f"simulation.data={tmp_path}", "seeds=[0]"]
    arguments = ["grid", study, *few, "--list", "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    names = [c.name for c in read_study(study, few, out).cells]
    assert len(names) > 2
    assert all(name in printed for name in names)
    assert f"{len(names)} cells, 0 done" in printed
    assert not out.exists()


def test_the_cells_of_the_transfer_take_equal_steps(tmp_path: Path) -> None:
    plans = resolved("transfer", tmp_path)
    variants: dict[str, set[int]] = {}
    for name, config in plans.items():
        if name.startswith("pretrain"):
            continue
        (phase,) = config.phases
        assert phase.max_cases is not None
        epochs = phase.rounds * phase.local_epochs
        assert phase.patience >= epochs
        variants.setdefault(name.split("-cases")[0], set()).add(epochs * phase.max_cases)
    assert variants == {v: {7 * 48} for v in ("scratch", "none", "encoder", "last-layers")}
    freezes = {n.split("-cases")[0]: c.phases[0].freeze for n, c in plans.items()}
    assert (freezes["none"], freezes["encoder"], freezes["last-layers"]) == (
        "none", "encoder", "decoder",
    )  # fmt: skip


def test_without_means_without_the_partially_annotated_cases(tmp_path: Path) -> None:
    plans = resolved("partial", tmp_path)
    lists = {n: c.simulation.sites["site_b"].splits for n, c in plans.items()}
    whole, part = lists["pooled-with-seed0"], lists["pooled-without-seed0"]
    partial = {"15", "27", "42", "126", "127", "199", "215", "216"}  # of the data's cases.csv
    assert set(whole["train"]) - set(part["train"]) == partial
    assert set(part["train"]) < set(whole["train"])
    assert (part["val"], part["test"]) == (whole["val"], whole["test"])
    for name in ("alone-without", "pooled-without-epochs", "alone-without-epochs"):
        assert lists[f"{name}-seed0"] == part
    steps = {
        n: len(s["train"]) * c.phases[0].local_epochs
        for (n, s), c in zip(lists.items(), plans.values(), strict=True)
    }
    assert steps["alone-with-seed0"] == steps["alone-without-seed0"]
    for cases in ("pooled", "alone"):
        same = [plans[f"{cases}-{n}-seed0"].phases[0] for n in ("with", "without-epochs")]
        assert len({p.rounds * p.local_epochs for p in same}) == 1


def test_each_network_of_the_models_study_takes_a_step(tmp_path: Path) -> None:
    for name, config in resolved("models", tmp_path).items():
        crop = config.preprocess.crop
        assert crop == [112, 48, 48]
        model = build(config.model, 4, crop)
        assert set(stage_of(model, config.model).values()) == {"encoder", "decoder", "head"}, name
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
        logits = model(torch.randn(1, 1, *crop))
        assert logits.shape == (1, 5, *crop), name
        logits.square().mean().backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimiser.step()
        assert any(not p.equal(b) for p, b in zip(model.parameters(), before, strict=True)), name


def test_a_choice_binds_each_cell_to_its_own_rivals(read: ReadText) -> None:
    axes = "{lr: {a: {train.lr: 0.1}, b: {train.lr: 0.2}}, n: {1: {train.batch: 1}, 2: {}}}"
    study = read(
        "config: smoke\nseeds: [0, 1]\nchoose: {axis: lr, at: {seed: 0}}\n"
        f"cells: {{x: {{axes: {axes}}}, y: {{}}}}\n"
    )
    cells = {c.name: c for c in study.cells}
    assert study.choice == "lr"
    assert cells["x-lra-n1-seed0"].rivals == ()
    assert cells["y-seed1"].rivals == ()
    assert cells["x-lra-n2-seed1"].rivals == ("x-lra-n2-seed0", "x-lrb-n2-seed0")
    assert cells["x-lra-n2-seed1"].needs == cells["x-lra-n2-seed1"].rivals


@pytest.mark.parametrize(
    ("choose", "told"),
    [
        ("{axis: lr, at: {seed: 5}}", "give values that cells have"),
        ("{axis: rate, at: {seed: 0}}", "name an axis"),
        ("{axis: lr}", "name fold and seed"),
        ("{axis: lr, on: {seed: 0}}", "unknown key"),
    ],
)
def test_a_choice_that_makes_no_sense_is_said(read: ReadText, choose: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        read(f"config: smoke\nchoose: {choose}\ncells: {{x: {{axes: {{lr: {{a: {{}}}}}}}}}}")
    assert told in str(caught.value)


def test_the_deciding_arms_differ_in_nothing_but_start_and_freezing(tmp_path: Path) -> None:
    study = read_study("deciding", [f"simulation.data={tmp_path}", "seeds=[0]"], tmp_path / "out")
    cells = {c.name: c for c in study.cells}
    plans = {
        arm: resolve(study.config, cells[f"{arm}-fold3-lr0.002-seed0"].overrides)[1]
        for arm in ("scratch", "frozen", "norms", "tuned")
    }
    phases = {arm: plan.phases[0] for arm, plan in plans.items()}
    assert {arm: (p.freeze, p.thaw) for arm, p in phases.items()} == {
        "scratch": ("none", {}), "frozen": ("encoder", {}), "norms": ("encoder", {"norm": 1}),
        "tuned": ("none", {}),
    }  # fmt: skip
    assert [arm for arm, p in phases.items() if p.init == "scratch"] == ["scratch"]
    alike = [replace(p, freeze="none", thaw={}, init="scratch") for p in phases.values()]
    assert alike == alike[:1] * 4
    for arm, plan in plans.items():
        splits = plan.simulation.sites["clinic"].splits
        assert [len(splits[s]) for s in ("train", "val", "test")] == [12, 6, 10], arm
        phase = phases[arm]
        steps = [r * phase.local_epochs * 12 for r in phase.test_rounds]
        assert {96, 336, 672} <= set(steps)
        assert steps[-1] == phase.rounds * phase.local_epochs * 12
        assert (plan.train.schedule, plan.train.lr, phase.lr) == ("constant", 0.002, None)
        assert phase.patience >= phase.rounds * phase.local_epochs  # no cell stops early
    assert cells["pretrain-seed0"].values == {}  # one pretraining for all folds
    clinic = set(plans["scratch"].simulation.sites["clinic"].splits["train"])
    others = resolve(study.config, cells["pretrain-seed0"].overrides)[1].simulation.sites["others"]
    assert not clinic & set(others.splits["train"])
