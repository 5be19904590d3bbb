from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import UserError
from core.journal import read_events
from core.plan.load import load, plan_hash
from core.wire.checkpoint import load as load_checkpoint
from core.wire.checkpoint import save as save_checkpoint
from hnfed.cli.main import main
from server.record import Recorder
from server.run_folder import held_folder
from simulations.run import simulate

RunTiny = Callable[..., Path]
WEIGHTS = (
    "checkpoints/pretrain/best.safetensors",
    "checkpoints/pretrain/last.safetensors",
    "sites/nyu/personalise/best.safetensors",
)


class Stop(BaseException):
    """The process dies; nothing catches this."""


def die_at(patch: pytest.MonkeyPatch, run: Callable[[], object], **at: Any) -> None:
    """Runs until the server has written the event described by `at`."""
    say = Recorder.say

    def dying(self: Recorder, event: Mapping[str, Any]) -> None:
        if not run_is_over[0] and all(event.get(k) == v for k, v in at.items()):
            run_is_over[0] = True
            raise Stop
        say(self, event)

    run_is_over = [False]
    with patch.context() as now:
        now.setattr(Recorder, "say", dying)
        with pytest.raises(Stop):
            run()


def test_a_run_that_died_twice_gives_the_weights_of_an_undisturbed_one(
    run_tiny: RunTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_tiny("whole")
    died = {"event": "sent", "phase": "pretrain", "round": 2, "kind": "train"}
    die_at(monkeypatch, lambda: run_tiny("r"), **died)
    out = tmp_path / "r"
    assert json.loads((out / "metrics.json").read_text())["status"] == "interrupted"
    died |= {"phase": "personalise"}
    die_at(monkeypatch, lambda: run_tiny("r", resume=True), **died)
    run_tiny("r", resume=True)
    for path in WEIGHTS:
        assert (out / path).read_bytes() == (whole / path).read_bytes(), path
    events = read_events(out / "journal.jsonl")
    rounds = [(e["phase"], e["round"]) for e in events if e["event"] == "round"]
    assert rounds == [(p, r) for p in ("pretrain", "personalise") for r in (1, 2)]
    assert [e["resumed"] for e in events if e["event"] == "run-start"] == [False, True, True]
    blocks = [json.loads((f / "metrics.json").read_text())["phases"] for f in (whole, out)]
    for run in blocks:
        for block in run:
            del block["seconds"], block["bytes_to_sites"], block["bytes_from_sites"]
    assert blocks[0] == blocks[1]


@pytest.mark.parametrize("name", ["run 1", "lr=0.01 lauf-ä:b", "x" * 200])
def test_a_run_of_any_name_goes_from_start_to_end_and_on(
    name: str, run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = {"event": "sent", "phase": "personalise", "round": 1}
    die_at(monkeypatch, lambda: run_tiny(name), **died)
    out = run_tiny(name, resume=True)
    assert json.loads((out / "metrics.json").read_text())["status"] == "completed"
    assert len({e["run"] for e in read_events(out / "journal.jsonl") if "run" in e}) == 1


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("simulation.sites.nyu.exclude=['999']", "999"),
        ("simulation.sites.nyu.splits={train: ['1', '2'], val: ['3'], test: ['77']}", "77"),
    ],
)
def test_a_listed_case_that_does_not_exist_ends_a_run_before_it_begins(
    override: str, value: str, run_tiny: RunTiny, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no such case") as caught:
        run_tiny("r", override)
    assert caught.value.field.startswith("simulation.sites.nyu.")
    assert caught.value.value == value
    assert not (tmp_path / "r" / "journal.jsonl").exists()


def test_a_site_that_lost_its_disk_takes_part_again(
    run_tiny: RunTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = {"event": "sent", "phase": "personalise", "round": 1}
    die_at(monkeypatch, lambda: run_tiny("r"), **at)
    shutil.rmtree(tmp_path / "r" / "sites")
    out = run_tiny("r", resume=True)
    assert (out / WEIGHTS[2]).is_file()


def test_encoder_and_base_stay_as_pretraining_left_them(run_tiny: RunTiny) -> None:
    out = run_tiny("x", "phases.0.rounds=1")
    before, _ = load_checkpoint(out / WEIGHTS[0])
    after, meta = load_checkpoint(out / WEIGHTS[2])
    (event,) = [
        e
        for e in read_events(out / "journal.jsonl")
        if e["event"] == "phase-start" and e["phase"] == "personalise"
    ]
    same = sum(v.numel() for k, v in after.items() if v.equal(before.get(k, v.new_empty(0))))
    assert event["frozen"] <= same < event["parameters"]
    assert meta["organs"] == ["Musc_Constrict_S", "Musc_Constrict_M"]
    assert not list((out / "checkpoints" / "personalise").glob("*.safetensors"))


def test_a_plan_may_start_from_a_checkpoint_file(
    run_tiny: RunTiny, tiny: list[str], tmp_path: Path
) -> None:
    first = run_tiny("first", "phases.0.rounds=1", "phases.1.rounds=1")
    source = tmp_path / "moved" / "weights.safetensors"
    source.parent.mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy((first / WEIGHTS[0]).with_suffix(suffix), source.with_suffix(suffix))
    overrides = (f"phases.0.init={source}", "phases.0.rounds=1", "phases.1.rounds=1")
    second = run_tiny("second", *overrides)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    (first_event,) = [e for e in read_events(second / "journal.jsonl") if e["event"] == "run-start"]
    words = [*tiny, *overrides[1:], f"phases.0.init=sha256:{digest}", "federation.min_cell=1"]
    config, _ = load("smoke", words)
    assert first_event["plan_hash"] == plan_hash(config)  # by its hash, not by its path
    assert (second / "init" / f"{digest}.safetensors").read_bytes() == source.read_bytes()
    assert str(tmp_path) not in json.dumps(
        json.loads((second / "checkpoints" / "pretrain" / "best.json").read_text())
    )
    start, _ = load_checkpoint(second / "state" / "pretrain" / "round-00000.safetensors")
    given, _ = load_checkpoint(source)
    assert all(start[k].equal(v) for k, v in given.items())
    run_tiny("second", *overrides, resume=True)


def test_a_checkpoint_of_another_split_is_refused(
    run_tiny: RunTiny, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_tiny("first", "phases.0.rounds=1", "phases.1.rounds=1")
    source = first / WEIGHTS[0]
    weights, meta = load_checkpoint(source)
    meta["splits"]["nyu"] = "0" * 64
    save_checkpoint(source.parent, source.stem, weights, meta)
    out = tmp_path / "second"
    assert simulate("smoke", [*tiny, f"phases.0.init={source}"], out) == 1
    assert "another split of site nyu" in capsys.readouterr().err


def test_a_checkpoint_of_another_plan_is_refused(
    run_tiny: RunTiny, tiny: list[str], tmp_path: Path
) -> None:
    source = run_tiny("first", "phases.0.rounds=1", "phases.1.rounds=1") / WEIGHTS[0]
    coarser = "preprocess={spacing_mm: [14.0, 12.0, 12.0], crop: [16, 16, 16]}"
    with pytest.raises(UserError, match=r"preprocess.spacing_mm is \[12"):
        simulate("smoke", [*tiny, coarser, f"phases.0.init={source}"], tmp_path / "second")


@pytest.mark.parametrize(("given", "used"), [([], 1), (["federation.min_cell=7"], 7)])
def test_a_simulation_publishes_every_cell_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], used: int
) -> None:
    monkeypatch.setattr("simulations.run.site_map", lambda *_: {"sites": []})
    monkeypatch.setattr("simulations.run.prepare_sites", lambda *_, **__: {})
    monkeypatch.setattr("simulations.run._launch", lambda *_: 1)
    simulate("smoke", given, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert stored["federation"]["min_cell"] == used


def test_resume_wants_the_plan_of_the_run(run_tiny: RunTiny, tiny: list[str]) -> None:
    out = run_tiny("x", "phases.0.rounds=1", "phases.1.rounds=1")
    with pytest.raises(UserError, match="another plan"):
        simulate("smoke", [*tiny, "phases.0.rounds=1", "phases.1.rounds=5"], out, resume=True)
    elsewhere = ["phases.0.rounds=1", "phases.1.rounds=1", "tracking.project=other"]
    assert simulate("smoke", [*tiny, *elsewhere], out, resume=True) == 0


def test_a_second_start_changes_nothing_of_the_first(
    run_tiny: RunTiny, tiny: list[str], tmp_path: Path
) -> None:
    """Refused before and while it works, even where it begins while the first makes phantoms."""
    files = ("plan.json", "config.yaml", "run_id", "metrics.json", "journal.jsonl")
    overrides = ("phases.0.rounds=1", "phases.1.rounds=1")
    out = run_tiny("x", *overrides)
    before = {name: (out / name).read_bytes() for name in files}
    other = [*tiny, *overrides, "train.lr=0.05"]
    with pytest.raises(UserError, match="not empty"):
        simulate("smoke", other, out)
    with pytest.raises(UserError, match=r"train\.lr was 0\.002, is 0\.05"):
        simulate("smoke", other, out, resume=True)
    with held_folder("x", out, resume=True), pytest.raises(UserError, match="at work"):
        simulate("smoke", [*tiny, *overrides], out, resume=True)
    assert {name: (out / name).read_bytes() for name in files} == before


def test_a_completed_run_stays_so(
    run_tiny: RunTiny, tiny: list[str], phantom_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it could not be run again: its archives are gone."""
    overrides = ("phases.0.rounds=1", "phases.1.rounds=1")
    out = run_tiny("x", *overrides)
    before = {n: (out / n).read_bytes() for n in ("metrics.json", "journal.jsonl", "config.yaml")}
    gone = "simulation.sites.nyu={root: /nowhere}"
    assert simulate("smoke", [*tiny, *overrides, gone], out, resume=True) == 0
    assert "completed before" in capsys.readouterr().out
    assert {name: (out / name).read_bytes() for name in before} == before


def test_a_folder_in_use_is_not_written_into(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="--resume"):
        simulate("smoke", tiny, tmp_path)
    with pytest.raises(UserError, match="earlier run"):
        simulate("smoke", tiny, tmp_path / "none", resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("simulation.sites.nyu={root: /nowhere}", "simulation.sites.nyu.root"),
        ("simulation.sites.nyu={root: '{data}/a'}", "simulation.data"),
        ("simulation.sites.nyu={phantom: elsewhere, cases: 5}", "simulation.sites.nyu.phantom"),
        ("simulation.sites.nyu={phantom: nyu, cases: 2}", "simulation.sites.nyu.cases"),
        ("phases.0.init=/nowhere/x.safetensors", "phases.pretrain.init"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(
    tiny: list[str], tmp_path: Path, override: str, field: str
) -> None:
    with pytest.raises(UserError) as caught:
        simulate("smoke", [*tiny, override], tmp_path / "x")
    assert caught.value.field == field
    assert not (tmp_path / "x" / "journal.jsonl").exists()


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("preprocess.crop=[81, 40, 48]", "preprocess.crop"),
        ("model={name: UNet, args: {strides: [2]}}", "model.args"),
        ("phases.pretrain.freeze=[engine]", "phases.pretrain.freeze"),
    ],
)
def test_a_network_that_cannot_be_is_refused_before_any_archive_is_made(
    tiny: list[str], tmp_path: Path, override: str, field: str
) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(UserError) as caught:
        simulate("smoke", [*tiny, f"simulation.cache={cache}", override], tmp_path / "x")
    assert field in caught.value.field
    assert list(tmp_path.iterdir()) == []


def test_run_folders_without_a_name_get_numbers(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("simulations.run._launch", lambda *a: 0)
    for _ in range(2):
        assert simulate("smoke", tiny, None) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["smoke", "smoke-2"]


def test_ray_gets_the_same_apps_and_plan(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulations import launch

    given: dict[str, Any] = {}

    def run_flower(
        app: Path, run_config: Mapping[str, str], clients: launch.Clients, **options: Any
    ) -> int:
        given.update(options, config=dict(run_config), app=app, **asdict(clients))
        options["on_line"]("INFO : hnfed| hello")
        return 3

    monkeypatch.setattr(launch, "run_flower", run_flower)
    out = tmp_path / "x"
    assert simulate("smoke", [*tiny, "simulation.engine=ray"], out) == 3
    assert given["sites"] == 2
    assert set(given["config"]) == {"plan", "run_id", "out", "resume", "tracking", "local"}
    plan = json.loads(given["config"]["plan"])
    assert not {"simulation", "tracking"} & set(plan)
    assert set(json.loads(given["config"]["local"])["sites"]) == {"nyu", "miccai"}
    again, _ = load(str(out / "config.yaml"))
    assert replace(again.simulation, engine="ray") == again.simulation


def test_a_site_is_offered_what_it_may_use_and_no_test_case_is_opened(
    run_tiny: RunTiny, phantom_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_tiny(
        "offered",
        "phases.pretrain.rounds=1",
        "phases.personalise.rounds=1",
        "phases.personalise.organs=[Brainstem]",
        "phases.personalise.candidates=[global, local, fine-tuned, frozen]",
    )
    advice = json.loads((run / "advice.json").read_text())["advice"]
    assert [e["site"] for e in advice] == ["nyu"]
    kinds = ["global", "local", "fine-tuned", "frozen"]
    assert [o["kind"] for o in advice[0]["options"]] == kinds
    assert advice[0]["choice"] in kinds
    own = sorted(p.parent.name for p in (run / "sites" / "nyu").glob("*/best.safetensors"))
    assert own == ["personalise-fine-tuned", "personalise-frozen", "personalise-local"]
    assert sorted(p.parent.name for p in (run / "sites").glob("*/*/cases.csv")) == ["pretrain"] * 2
    assert "What each site should use" in (run / "report.html").read_text()
    assert main(["advise", str(run), "--json", str(run / "again" / "advice.json")]) == 0
    assert json.loads((run / "again" / "advice.json").read_text())["advice"] == advice
    assert advice[0]["phase"] in capsys.readouterr().out


def test_a_run_without_a_choice_gives_no_advice(
    run_tiny: RunTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_tiny("plain", "phases.pretrain.rounds=1", "phases.personalise.rounds=1")
    assert not (run / "advice.json").exists()
    assert main(["advise", str(run)]) == 1
    assert "candidates" in capsys.readouterr().err


def test_weights_are_scored_as_often_as_the_plan_says_and_train_the_same(
    run_tiny: RunTiny,
) -> None:
    """Round 0 and every third one, and the last; what is not the best of these is not chosen."""
    more = ("phases.pretrain.rounds=5", "phases.personalise.rounds=1")
    every = run_tiny("every", *more)
    third = run_tiny("third", *more, "phases.pretrain.validate_every=3")
    rounds = [
        e
        for e in read_events(third / "journal.jsonl")
        if e["event"] == "round" and e["phase"] == "pretrain"
    ]
    scored = [e["scored_round"] for e in rounds if e["sites"]]
    assert scored == [0, 3]
    assert {e["best_round"] for e in rounds} <= {0, 3}
    last = [load_checkpoint(run / WEIGHTS[1])[0] for run in (every, third)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    block = json.loads((third / "metrics.json").read_text())["phases"][0]
    assert block["best_round"] in (0, 3, 5)
    assert block["mean_val"]["dice"] is not None


def test_control_scores_without_hd95_choose_and_train_the_same(run_tiny: RunTiny) -> None:
    few = ("phases.pretrain.rounds=2", "phases.personalise.rounds=1")
    off = tuple(f"phases.{name}.validate_hd95=false" for name in ("pretrain", "personalise"))
    whole, alone = run_tiny("whole", *few), run_tiny("alone", *few, *off)
    for name in WEIGHTS:
        one, other = (load_checkpoint(run / name)[0] for run in (whole, alone))
        assert all(torch.equal(one[n], other[n]) for n in one)
    told = [json.loads((run / "metrics.json").read_text())["phases"] for run in (whole, alone)]
    for one, other in zip(*told, strict=True):
        assert other["mean_val"]["dice"] == one["mean_val"]["dice"]
        assert other["mean_val"]["hd95_mm"] is other["mean_val"]["hd95_mm_penalised"] is None
        assert one["mean_val"]["hd95_mm_penalised"] is not None
        assert other["mean"] == one["mean"]  # test cases have their HD95
