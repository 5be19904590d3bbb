from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.journal import read_events
from core.plan.load import load, plan_hash
from core.processes import Stopped
from core.wire.checkpoint import load as load_checkpoint
from hnfed.cli import main as cli
from hnfed.cli.main import main
from hnfed.predict.model_files import resolve_model
from tests.conftest import lose_a_signal

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True, scope="module")
def _signals() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@dataclass(frozen=True)
class Smoke:
    out: Path
    status: int
    printed: str

    def metrics(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "metrics.json").read_text())
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [dict(e) for e in read_events(self.out / "journal.jsonl") if e["event"] == kind]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """The plan `smoke`, as shipped, once; without Ray."""
    from flwr.supercore.task_identity import TaskIdentity

    names = ("run_id", "task_id", "node_id")
    before = {n: getattr(TaskIdentity, f"_{n}", None) for n in names}
    out = tmp_path_factory.mktemp("smoke") / "run"
    printed = StringIO()
    with redirect_stdout(printed):
        status = main(["simulate", "smoke", "simulation.engine=inline", "--out", str(out)])
    for name, value in before.items():
        setattr(TaskIdentity, f"_{name}", value)
    return Smoke(out, status, printed.getvalue())


# ------------------------------------------------------------------------------ the run folder


def test_it_completes_and_says_where_the_report_is(smoke: Smoke) -> None:
    assert smoke.status == 0
    assert f"report: {smoke.out / 'report.html'}" in smoke.printed
    assert "hnfed|" not in smoke.printed
    assert "pretrain 2/2" in smoke.printed
    assert "completed in" in smoke.printed


def test_the_folder_holds_what_it_should_and_nothing_else(smoke: Smoke) -> None:
    assert {p.name for p in smoke.out.iterdir()} == {
        ".start.lock",
        "config.yaml",
        "run_id",
        "plan.json",
        "sources.json",
        "journal.jsonl",
        "metrics.json",
        "checkpoints",
        "sites",
        "state",
        "report.html",
    }


def test_metrics_follow_the_schema(smoke: Smoke) -> None:
    metrics = smoke.metrics()
    assert (metrics["schema"], metrics["status"]) == (1, "completed")
    assert re.fullmatch(r"run-[0-9a-f]{6}", metrics["run"])
    assert [p["name"] for p in metrics["phases"]] == ["pretrain", "personalise"]
    for phase in metrics["phases"]:
        assert {
            "name",
            "organs",
            "rounds",
            "best_round",
            "seconds",
            "bytes_to_sites",
            "bytes_from_sites",
            "sites",
            "mean",
        } <= set(phase)
        assert phase["rounds"] == 2
        assert 0 <= phase["best_round"] <= 2
        assert phase["seconds"] > 0
        assert phase["bytes_to_sites"] > phase["bytes_from_sites"] > 0
        for site in phase["sites"].values():
            for split in ("test", "val"):
                assert set(site[split]) == set(phase["organs"])
                for cell in site[split].values():
                    assert {"n", "missed", "dice", "hd95_mm"} <= set(cell)
                    assert 0 <= cell["missed"] <= cell["n"]
                    assert cell["dice"] is None or 0 <= cell["dice"] <= 1
        assert {"dice", "hd95_mm"} <= set(phase["mean"])
    assert set(metrics["phases"][0]["sites"]) == {"nyu", "miccai"}
    assert set(metrics["phases"][1]["sites"]) == {"nyu"}


def test_the_resolved_configuration_is_the_plan_that_ran(smoke: Smoke) -> None:
    config, _ = load(str(smoke.out / "config.yaml"))
    assert config.simulation.engine == "inline"
    assert plan_hash(config) == plan_hash(load("smoke", ["federation.min_cell=1"])[0])
    (start,) = smoke.events("run-start")
    assert start["plan_hash"] == plan_hash(config)


def test_the_journal_tells_the_run(smoke: Smoke) -> None:
    events = read_events(smoke.out / "journal.jsonl")
    assert events[0]["event"] == "run-start"
    assert events[-1]["event"] == "run-end"
    assert events[-1]["status"] == "completed"
    assert all("time" in e for e in events)
    assert {e["site"] for e in smoke.events("site-described")} == {"nyu", "miccai"}
    assert [(e["phase"], e["round"]) for e in smoke.events("round")] == [
        ("pretrain", 1),
        ("pretrain", 2),
        ("personalise", 1),
        ("personalise", 2),
    ]
    for event in smoke.events("round"):
        assert set(event["loss"]) == {"total", "ce", "focal", "dice", "gdice"}
        assert event["rejected"] == {}
    assert len(smoke.events("phase-start")) == len(smoke.events("phase-end")) == 2
    assert smoke.events("rejected") == []
    accepted = [e for e in smoke.events("accepted") if e["phase"] == "personalise"]
    assert accepted
    assert all(e["bytes"] < 1000 for e in accepted)  # numbers, no weights


def test_checkpoints_of_a_shared_and_of_a_personal_phase(smoke: Smoke) -> None:
    shared = smoke.out / "checkpoints" / "pretrain"
    assert {p.name for p in shared.iterdir()} == {
        f"{stem}.{suffix}" for stem in ("best", "last") for suffix in ("safetensors", "json")
    }
    for stem in ("best", "last"):
        _, meta = load_checkpoint(shared / f"{stem}.safetensors")
        assert {
            "run",
            "phase",
            "round",
            "organs",
            "preprocess",
            "model",
            "plan_hash",
            "splits",
            "sha256",
            "versions",
        } <= set(meta)
        assert meta["preprocess"]["crop"] == [32, 32, 40]
        assert set(meta["splits"]) == {"nyu", "miccai"}
    personal = smoke.out / "checkpoints" / "personalise"
    assert [p.name for p in personal.iterdir()] == ["best.json"]
    own = smoke.out / "sites" / "nyu" / "personalise"
    assert (own / "best.safetensors").is_file()
    assert not (smoke.out / "sites" / "miccai" / "personalise").exists()
    assert resolve_model(smoke.out) == own / "best.safetensors"
    assert resolve_model(smoke.out, phase="pretrain") == shared / "best.safetensors"


def test_cases_are_listed_at_the_site_only(smoke: Smoke) -> None:
    for phase, sites in (("pretrain", ("nyu", "miccai")), ("personalise", ("nyu",))):
        for site in sites:
            with (smoke.out / "sites" / site / phase / "cases.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            assert rows
            assert set(rows[0]) == {
                "case", "organ", "dice", "hd95_mm", "surface_dice_2mm", "volume_ml", "predicted_ml",
            }  # fmt: skip
            names = {r["case"] for r in rows}
            for public in ("journal.jsonl", "metrics.json"):
                text = (smoke.out / public).read_text()
                assert not any(n in text for n in names)


def test_no_path_of_the_machine_in_what_may_be_shown(smoke: Smoke) -> None:
    for name in ("journal.jsonl", "metrics.json", "checkpoints/pretrain/best.json"):
        assert str(smoke.out.parent) not in (smoke.out / name).read_text()


def test_config_show_of_a_run(smoke: Smoke, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", str(smoke.out / "config.yaml")]) == 0
    assert "simulation.engine" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ exit codes


def one_screen(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert 0 < len(captured.err.splitlines()) <= 25
    assert captured.err.startswith("hnfed: error:")
    assert "remedy:" in captured.err
    return captured.err


def test_a_users_error_is_one_screen_and_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "smoke", "train.lrr=1", "--out", str(tmp_path / "x")]) == 1
    assert "'lr'" in one_screen(capsys)
    assert main(["simulate", "smokee", "--out", str(tmp_path / "x")]) == 1
    assert "did you mean smoke" in one_screen(capsys)
    assert not (tmp_path / "x").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    from core.errors import UserError

    for arguments in (["--debug", "simulate", "smokee"], ["simulate", "smokee", "--debug"]):
        with pytest.raises(UserError):
            main(arguments)


def test_a_run_that_fails_is_1_and_says_how_to_go_on(
    tmp_path: Path,
    task_identity: None,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from client import tasks as work

    def fail(*_: Any) -> Any:
        raise RuntimeError("Jane Doe")

    monkeypatch.setattr(work, "train_shared", fail)
    out = tmp_path / "x"
    assert main(["simulate", "smoke", *tiny, "--out", str(out)]) == 1
    captured = capsys.readouterr()
    again = shlex.split(captured.err.splitlines()[-1])
    assert again == ["hnfed", "simulate", "smoke", *tiny, "--out", str(out), "--resume"]
    assert "client.log" in captured.err
    assert "Traceback" not in captured.err
    assert "E_INTERNAL" in captured.err
    assert "Jane" in captured.err, "a simulation's sites are on the researcher's own machine"
    assert "Jane" not in (out / "journal.jsonl").read_text()
    assert "Jane" in (out / "sites" / "nyu" / "client.log").read_text()
    assert json.loads((out / "metrics.json").read_text())["status"] == "failed"
    assert (out / "report.html").is_file()


def test_something_unexpected_is_one_screen_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> int:
        raise ZeroDivisionError("y" * 10_000)

    monkeypatch.setattr("simulations.run.simulate", fail)
    assert main(["simulate", "smoke"]) == 1
    error = one_screen(capsys)
    assert "ZeroDivisionError" in error
    assert "--debug" in error
    assert len(error) < 1500


@pytest.mark.usefixtures("leaving")
def test_interrupt_and_termination(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    def terminate(*_: Any, **__: Any) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr("simulations.run.simulate", interrupt)
    assert main(["simulate"]) == 130
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.setattr("simulations.run.simulate", terminate)
    with pytest.raises(SystemExit) as caught:
        main(["simulate"])
    assert caught.value.code == 143

    def lose(*_: Any, **__: Any) -> int:
        lose_a_signal()
        raise UserError("config.yaml", "line 3", "mend the YAML")

    monkeypatch.setattr("simulations.run.simulate", lose)
    with pytest.raises(SystemExit) as caught:
        main(["simulate"])
    assert caught.value.code == 143

    def stop(*_: Any, **__: Any) -> int:
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr("simulations.run.simulate", stop)
    assert main(["simulate"]) == 130


@pytest.mark.parametrize("arguments", [["simulat"], ["simulate", "--ouut", "x"], ["config"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_without_a_command_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "hnfed simulate demo" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["simulate"]])
def test_help_has_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "example" in capsys.readouterr().out


def test_what_is_given_reaches_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def simulate(*given: Any, **options: Any) -> int:
        calls.append((*given, options["resume"]))
        return 0

    monkeypatch.setattr("simulations.run.simulate", simulate)
    main(["simulate"])
    main(["simulate", "train.lr=1", "seed=2"])
    main(["simulate", "smoke", "seed=2", "--out", "x", "--resume"])
    assert calls == [
        ("demo", [], None, False),
        ("demo", ["train.lr=1", "seed=2"], None, False),
        ("smoke", ["seed=2"], Path("x"), True),
    ]


def test_help_does_not_load_the_heavy_libraries() -> None:
    code = (
        "import sys\n"
        "from hnfed.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'flwr', 'ray', 'monai', 'wandb'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "RAY_USAGE_STATS_ENABLED")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    cli._quiet_environment()
    assert [os.environ[n] for n in names] == ["0", "1", "0"]


def test_overrides_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "smoke", "seed=3"]) == 0
    first = capsys.readouterr().out
    assert main(["config", "show", "smoke", "train.lr=0.5", "--debug", "seed=4"]) == 0
    second = capsys.readouterr().out
    assert first != second
    assert "0.5" in second
    for wrong in (["config", "show", "smoke", "--debug", "lr"], ["report", "x", "a=b"]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2
