"""A run is tracked from beside it: each tracker's own files are read back, and nobody waits."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.journal import JOURNAL, read_events
from core.plan.load import load
from core.plan.schema import Tracking
from core.tracking import follow as following
from core.tracking.follow import FILE, MODES, Follower, follow, open_, require_mode, tracked
from core.tracking.numbers import alert_of, first_steps, model_of, round_values, tables_of
from tests.core.tracking.run_folder import PHASES, begun, ended, refused, round_of, through

EXPECTED = {
    "loss/total": 2.0, "val/dice/Brainstem/a": 0.5, "val/hd95_mm/Brainstem/a": 0.5,
    "val/mean_dice": 0.5, "seconds": 1.5, "best_round": 1.0, "bytes/to_sites": 20.0,
    "bytes/from_sites": 10.0, "accepted": 1.0, "rejected": 1.0, "reply/a": 1.0, "reply/b": 0.0,
    "clipped/a": 0.5, "update/norm/a": 1.25, "update/cosine/a": 0.75,
}  # fmt: skip


def whole(folder: Path, mode: str, **settings: Any) -> list[str]:
    """Tracks a run of two rounds and a phase, from its start to its end; what was said."""
    said: list[str] = []
    begun(folder)
    over = threading.Event()
    thread = threading.Thread(
        target=follow, args=(folder, Tracking(mode=mode, **settings), over, said.append)
    )
    thread.start()
    round_of(folder, 1)
    refused(folder)
    round_of(folder, 2)
    through(folder, "pretrain")
    ended(folder)
    over.set()
    thread.join(120)
    assert not thread.is_alive()
    return said


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'hnfed[{package}]'")


def test_numbers_of_a_round(tmp_path: Path) -> None:
    round_of(begun(tmp_path), 1)
    event = read_events(tmp_path / JOURNAL)[-1]
    assert round_values(event) == EXPECTED
    del event["updates"]
    assert not [key for key in round_values(event) if key.startswith("update/")]


def test_tables_models_and_alerts(tmp_path: Path) -> None:
    through(begun(tmp_path), "pretrain", "more")
    first, second = json.loads((tmp_path / "metrics.json").read_text())["phases"]
    long, wide = tables_of(first)
    assert long.rows == [
        ["a", "Brainstem", 3, 0, 0.6, 0.6],
        ["b", "Brainstem", None, 0, None, None],
    ]
    assert (wide.columns, wide.rows) == (["organ", "a", "b", "all sites"],
                                         [["Brainstem", 0.6, None, 0.6]])  # fmt: skip
    model = model_of("r-1", tmp_path, second, PHASES)
    assert model is not None
    assert (model.name, model.uses, model.about["began_from"]) == (
        "r-1-more",
        *["r-1-pretrain"] * 2,
    )
    through(tmp_path / "other", "more", weights=False)
    assert model_of("r-1", tmp_path / "other", second, PHASES) is None, "weights that stay (D7)"
    assert first_steps(PHASES) == {"pretrain": 0, "more": 3}
    alerts = [{"event": "rejected", "site": "b", "code": "E_TIME", "phase": "p", "round": 1},
              {"event": "flagged", "site": "a", "organs": []},
              {"event": "run-end", "status": "failed"}]  # fmt: skip
    assert all(alert_of(event) for event in alerts)
    assert alert_of({"event": "run-end", "status": "completed"}) is None


def test_jsonl(tmp_path: Path) -> None:
    assert whole(tmp_path, "jsonl") == []
    events = read_events(tmp_path / "tracking.jsonl")
    kinds = [event["event"] for event in events]
    # A phase's tables come when metrics.json has them, maybe before the journal is read on.
    assert sorted(kinds[:-1]) == ["alert", "model", "round", "round", "table", "table"]
    assert (kinds[0], kinds[-1]) == ("round", "end")
    assert events[0]["values"] == EXPECTED
    assert events[kinds.index("model")]["path"] == "checkpoints/pretrain/best.safetensors"
    assert events[-1]["status"] == "completed"
    assert json.loads((tmp_path / FILE).read_text())["phases"] == ["pretrain"]


def test_tensorboard_reads_its_file(tmp_path: Path) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert whole(tmp_path, "tensorboard") == []
    (file,) = (tmp_path / "tensorboard").iterdir()
    name = socket.gethostname()
    assert len(name) < 4 or name not in file.name
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    told = {tag: read.Scalars(tag)[0].value for tag in read.Tags()["scalars"]}
    for key, value in EXPECTED.items():
        assert told[f"pretrain/{key}"] == pytest.approx(value)
    assert [(e.step, e.value) for e in read.Scalars("pretrain/round")] == [(1, 1.0), (2, 2.0)]
    table = read.Tensors("table/pretrain/test")[0].tensor_proto.string_val[0].decode()
    assert "| a | Brainstem | 3 | 0 | 0.6 | 0.6 |" in table


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # of SQLAlchemy, in MLflow
def test_mlflow_reads_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert whole(tmp_path, "mlflow", project="p") == []
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("p")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("r-1", "FINISHED")
    for key, value in EXPECTED.items():
        history = client.get_metric_history(run.info.run_id, f"pretrain/{key}")
        assert [m.step for m in history] == [1, 2]
        assert history[0].value == pytest.approx(value)
    assert run.data.params["seed"] == "3"
    assert run.data.params["model.args.weights"] == "[path]"
    tags = run.data.tags
    assert tags["r-1-pretrain.path"] == "checkpoints/pretrain/best.safetensors"
    assert not {"mlflow.user", "mlflow.source.name", "mlflow.source.git.commit"} & set(tags)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    csv = Path(client.download_artifacts(run.info.run_id, "pretrain/test.csv"))
    assert csv.read_text().splitlines()[1] == "a,Brainstem,3,0,0.6,0.6"


def test_a_resumed_run_goes_on_behind_what_was_tracked(tmp_path: Path) -> None:
    whole(tmp_path, "jsonl")
    append = read_events(tmp_path / "tracking.jsonl")
    over = threading.Event()
    over.set()
    round_of(tmp_path, 1, "more")
    through(tmp_path, "pretrain", "more")
    follow(tmp_path, Tracking(mode="jsonl"), over, print)
    new = read_events(tmp_path / "tracking.jsonl")[len(append) :]
    assert [e["event"] for e in new] == ["round", "table", "table", "model", "end"]
    assert (new[0]["step"], new[3]["uses"]) == (4, "r-1-pretrain")
    follow(tmp_path, Tracking(mode="jsonl"), over, print)
    assert len(read_events(tmp_path / "tracking.jsonl")) == len(append) + len(new) + 1


class Broken:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name}: disk full at /home/someone")


def test_a_failure_is_told_once_and_ends_the_tracking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "open_", lambda *_: Broken())
    said = whole(tmp_path, "jsonl")
    assert len(said) == 1
    assert "without" in said[0]
    assert "someone" not in said[0]


def test_what_could_not_start_is_tracked_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any) -> Any:
        raise ImportError("no such package")

    with monkeypatch.context() as patch:
        patch.setattr(following, "open_", absent)
        assert "could not start" in whole(tmp_path, "jsonl")[0]
    follower = Follower(tmp_path, Tracking(mode="jsonl"), print)
    follower.catch_up()
    assert len(read_events(tmp_path / "tracking.jsonl")) == 6


SLEEPER = "import sys, time; sys.stdin.readline(); time.sleep(600)"
DEAF = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


@pytest.mark.parametrize("script", [SLEEPER, DEAF])
def test_a_tracker_that_hangs_costs_a_bounded_time_at_the_end_alone(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core import processes

    assert following.FINISH_SECONDS + processes.GRACE_SECONDS + processes.KILL_SECONDS < 40
    monkeypatch.setattr(following, "FINISH_SECONDS", 1.0)
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    original = following.subprocess.Popen
    made: list[Any] = []

    def instead(command: Any, **more: Any) -> Any:
        made.append(original([sys.executable, "-c", script], **more))
        return made[0]

    monkeypatch.setattr(following.subprocess, "Popen", instead)
    said: list[str] = []
    start = time.monotonic()
    with tracked(begun(tmp_path), Tracking(mode="offline"), said.append):
        within = time.monotonic() - start
    assert within < 2.0, "nothing waits as the run begins"
    assert time.monotonic() - start < 10.0
    assert made[0].poll() is not None
    assert any("not through" in text for text in said)


def test_beside_a_run_for_real(tmp_path: Path) -> None:
    said: list[str] = []
    with tracked(tmp_path, Tracking(mode="jsonl"), said.append):
        begun(tmp_path)
        round_of(tmp_path, 1)
        limit = time.monotonic() + 60
        while not (tmp_path / "tracking.jsonl").is_file() and time.monotonic() < limit:
            time.sleep(0.1)
        assert (tmp_path / "tracking.jsonl").is_file(), "as it grows, not at its end"
        ended(tmp_path)
    assert read_events(tmp_path / "tracking.jsonl")[-1]["event"] == "end"
    assert said == []


def test_without_tracking_there_is_no_process(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(following.subprocess, "Popen", None)
    for mode in ("disabled", "none"):
        with tracked(tmp_path, Tracking(mode=mode)):
            pass


def test_a_tracker_ends_with_its_run(tmp_path: Path) -> None:
    """Also where the run's process is killed."""
    import subprocess

    code = (
        "import sys, time; from pathlib import Path; from core.plan.schema import Tracking; "
        "from core.tracking import follow\n"
        "p = follow.subprocess.Popen\n"
        "def made(*a, **k):\n    c = p(*a, **k); print(c.pid, flush=True); return c\n"
        "follow.subprocess.Popen = made\n"
        f"with follow.tracked(Path({str(tmp_path)!r}), Tracking(mode='jsonl')): time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    limit = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < limit:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


def test_modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert {"offline", "online", "disabled"} <= set(MODES), "as ever"
    for mode in ("jsonl", "none", "wandb"):
        require_mode(Tracking(mode=mode))
    with pytest.raises(UserError, match=r"tracking\.mode"):
        require_mode(Tracking(mode="on"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"hnfed\[mlflow\]"):
        require_mode(Tracking(mode="mlflow"))
    with pytest.raises(UserError, match="use one of"):
        open_(Tracking(mode="x"), "r", tmp_path, {})


def test_the_sweep_file_names_keys_that_exist() -> None:
    import yaml

    path = Path(__file__).resolve().parents[3] / "docs" / "wandb-sweep.yaml"
    sweep = yaml.safe_load(path.read_text())
    assert sweep["command"][:2] == ["hnfed", "simulate"]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    for key, space in sweep["parameters"].items():
        for value in space.get("values") or [space["min"], space["max"]]:
            load(sweep["command"][2], [f"{key}={value}"])
    phase = load(sweep["command"][2], [])[0].phases[0].name
    assert sweep["metric"]["name"] == f"{phase}/val/mean_dice"
