"""What wandb writes, read back from its own files: everything asked for, nothing about the machine.

The file format (leveldb log blocks of 32 KiB) is read by a small parser and, as a second reading,
by wandb's own `wandb leet inspect`.
"""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.plan.schema import Tracking
from core.tracking import wandb_run as tracking
from core.tracking.numbers import Model
from core.tracking.wandb_run import open_tracker

wandb_pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import json, os, socket, sys
from pathlib import Path
socket.gethostname = lambda: "canary-host"
from core.plan import schema
from core.plan.schema import Config, Phase, Simulation, Tracking
from core.tracking.numbers import Model
from core.tracking.wandb_run import open_tracker
folder = Path(sys.argv[1])
before = dict(os.environ)
notes = []
phases = [Phase(name="pretrain", rounds=2), Phase(name="personalise", rounds=2)]
simulation = Simulation(data="canary-data")
model = schema.Model(args={"weights": "/home/canary-user/weights.safetensors"})
config = Config(seed=3, phases=phases, simulation=simulation, model=model)
settings = Tracking(project="hnfed-test", tags=["a"])
tracker = open_tracker(
    settings, run_id="demo-1", folder=folder, config=config, on_note=notes.append
)
print("canary-stdout")
tracker.log("pretrain", 1, {"loss/train": 1.5, "dice/mean": None})
tracker.log("pretrain", 2, {"loss/train": 1.0, "dice/mean": 0.5})
for name in ("test", "test_dice", "val", "val_dice"):  # as a phase that is through has them
    tracker.table(f"pretrain/{name}", ["site", "organ", "n", "dice"],
                  [["nyu", "Brainstem", None, None]])
tracker.log("personalise", 1, {"loss/train": 2.0})
tracker.table("personalise/test", ["site", "organ"], [["nyu", "Brainstem"]])
weights = folder / "checkpoints" / "pretrain" / "best.safetensors"
weights.parent.mkdir(parents=True)
weights.write_bytes(b"weights")
about = {"dice": 0.5, "began_from": "x", "file": "/canary/p"}
tracker.model(Model(weights, "pretrain best", "demo-1-scratch", about))
tracker.alert("nyu: E_TIME", "pretrain round 2: the reply was not used")
tracker.finish()
tracker.finish()
tracker.log("pretrain", 3, {"loss/train": 0.0})
print(json.dumps({"mode": tracker.mode, "notes": notes, "env": dict(os.environ) == before}))
"""


@dataclasses.dataclass(frozen=True)
class Tracked:
    folder: Path
    records: list[Any]
    said: dict[str, Any]


def read_wandb(path: Path) -> list[Any]:
    """The records of a `.wandb` file: 7-byte header, then a leveldb log."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    records, parts, at = [], b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(wandb_pb.Record.FromString(parts))
            parts = b""
    return records


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    cwd = tmp_path_factory.mktemp("canary-cwd")
    folder = cwd / "canary-runs" / "demo-1"
    script = cwd / "canary-script.py"
    script.write_text(SCRIPT)
    names = dict.fromkeys(("USER", "LOGNAME", "USERNAME", "WANDB_USERNAME"), "canary-user")
    env = {**os.environ, **names, "PYTHONPATH": str(ROOT), "WANDB_NOTES": "canary-note"}
    arguments = [str(folder), "--patient=canary-MRN12345"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    files = list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1
    said = json.loads(done.stdout.splitlines()[-1])
    return Tracked(folder, read_wandb(files[0]), said)


def history(records: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


def test_rounds_are_logged_with_round_as_the_axis(tracked: Tracked) -> None:
    rows = [row for row in history(tracked.records) if "round" in row]
    assert tracked.said == {"mode": "offline", "notes": [], "env": True}
    assert [(row["_step"], row["round"]) for row in rows] == [(1, 1), (2, 2), (4, 1)]
    assert [row.get("pretrain/loss/train") for row in rows] == [1.5, 1.0, None]
    assert rows[2]["personalise/loss/train"] == 2.0
    assert ["pretrain/dice/mean" in row for row in rows] == [False, True, False]
    metrics = [r.metric for r in tracked.records if r.WhichOneof("record_type") == "metric"]
    assert any(m.name == "round" for m in metrics)
    assert any(m.glob_name == "*" and m.step_metric == "round" for m in metrics)
    for phase in ("pretrain", "personalise"):
        (own,) = (m for m in metrics if m.glob_name == f"{phase}/*")
        assert own.step_metric == f"{phase}/round"
        (dice,) = (m for m in metrics if m.name == f"{phase}/val/mean_dice")
        assert dice.summary.max
    assert [row["pretrain/round"] for row in rows[:2]] == [1, 2]


def test_an_alert_is_told(tracked: Tracked) -> None:
    alerts = [r.alert for r in tracked.records if r.WhichOneof("record_type") == "alert"]
    assert [a.title for a in alerts] == ["nyu: E_TIME"]


def test_run_carries_the_plan_but_no_place_of_this_machine(tracked: Tracked) -> None:
    (run,) = [r.run for r in tracked.records if r.WhichOneof("record_type") == "run"]
    config = {u.key or u.nested_key[0]: json.loads(u.value_json) for u in run.config.update}
    assert (run.run_id, run.display_name, run.run_group) == ("demo-1", "demo-1", "demo-1")
    assert (run.project, run.job_type, list(run.tags)) == ("hnfed-test", "server", ["a"])
    assert run.host == "redacted"
    assert not run.notes
    assert config["seed"] == 3
    assert config["phases"][0]["rounds"] == 2
    assert config["model"]["args"]["weights"] == "[path]"
    assert "simulation" not in config


def test_table_and_weights_are_named_relative_to_the_run_folder(tracked: Tracked) -> None:
    artifacts = [r.artifact for r in tracked.records if r.WhichOneof("record_type") == "artifact"]
    by_type = {a.type: a for a in artifacts}
    assert set(by_type) == {"run_table", "model"}
    about = json.loads(by_type["model"].metadata)
    assert about == {"dice": 0.5, "began_from": "x", "file": "[path]"}, "lineage, offline"
    (weights,) = by_type["model"].manifest.contents
    assert by_type["model"].name == "pretrain-best"
    assert weights.local_path == os.path.join("checkpoints", "pretrain", "best.safetensors")
    tables = [a for a in artifacts if a.type == "run_table"]
    assert len(tables) == 5
    (table,) = tables[0].manifest.contents
    staged = json.loads((tracked.folder / table.local_path).read_text())
    assert staged["data"] == [["nyu", "Brainstem", None, None]]


def test_tables_of_a_phase_leave_the_rounds_of_the_next_their_steps(tracked: Tracked) -> None:
    rows = history(tracked.records)
    assert [row["_step"] for row in rows] == [1, 2, 4]
    told = [sum(key.endswith("/_type") for key in row) for row in rows]
    assert told == [0, 4, 1], "each table stands with the last round before it"


def test_nothing_about_the_machine_in_any_byte(tracked: Tracked) -> None:
    canaries = [b"canary", b"MRN12345", str(tracked.folder).encode(), str(ROOT).encode()]
    if len(socket.gethostname()) > 4:
        canaries.append(socket.gethostname().encode())
    seen = 0
    for path in tracked.folder.rglob("*"):
        relative = str(path.relative_to(tracked.folder)).encode()
        content = path.read_bytes() if path.is_file() else b""
        assert not path.is_symlink()
        for canary in canaries:
            assert canary not in content, (path, canary)
            assert canary not in relative, (path, canary)
        seen += bool(content)
    assert seen >= 4
    assert not list(tracked.folder.rglob("requirements.txt")) + list(tracked.folder.rglob("*.log"))
    types = {r.WhichOneof("record_type") for r in tracked.records}
    assert not types & {"output", "output_raw", "stats", "environment"}


def test_the_canary_test_sees_wandbs_defaults(tmp_path: Path) -> None:
    """Without our settings the same folder does name the machine: the test above can fail."""
    script = (
        "import sys, wandb; r = wandb.init(mode='offline', dir=sys.argv[1], project='p', "
        "settings=wandb.Settings(silent=True)); r.log({'a': 1}); r.finish()"
    )
    env = {**os.environ, "WANDB_DATA_DIR": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path / "c")}
    command = [sys.executable, "-c", script, str(tmp_path), "canary-MRN12345"]
    subprocess.run(command, env=env, cwd=tmp_path, check=True, capture_output=True)
    found = [
        p for p in tmp_path.rglob("*") if p.is_file() and str(tmp_path).encode() in p.read_bytes()
    ]
    assert found


def test_wandbs_own_reader_agrees(tracked: Tracked) -> None:
    (path,) = (tracked.folder / "wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    text = json.dumps(lines)
    assert "pretrain/loss/train" in text
    assert "canary" not in text


def test_private_settings_exist_in_the_installed_wandb() -> None:
    import wandb

    known = set(wandb.Settings.model_fields)
    assert set(tracking.PRIVATE_SETTINGS) <= known
    required = {
        "console": "off", "disable_git": True, "disable_code": True, "save_code": False,
        "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True,
        "host": "redacted", "program": "hnfed", "x_save_requirements": False,
    }  # fmt: skip
    assert required.items() <= tracking.PRIVATE_SETTINGS.items()


def test_disabled_writes_nothing_and_imports_no_wandb(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from core.plan.schema import Tracking\n"
        "from core.tracking.wandb_run import open_tracker\n"
        "s, folder = Tracking(mode='disabled'), Path(sys.argv[1])\n"
        "t = open_tracker(s, run_id='a', folder=folder, config={})\n"
        "t.log('p', 1, {'a': 1}); t.table('t', ['a'], [[1]]); t.finish()\n"
        "assert t.mode == 'disabled' and 'wandb' not in sys.modules\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], env=env, check=True)
    assert not (tmp_path / "run" / "wandb").exists()


def test_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.mode"):
        open_tracker(Tracking(mode="on"), run_id="a", folder=tmp_path, config={})


def test_personal_weights_and_files_outside_are_no_artifact(tmp_path: Path) -> None:
    tracker = open_tracker(Tracking(mode="disabled"), run_id="a", folder=tmp_path, config={})
    for path in (tmp_path / "sites" / "nyu" / "best.safetensors", tmp_path.parent / "x"):
        with pytest.raises(ValueError, match="artifact"):
            tracker.model(Model(path, "weights"))


class Silent(http.server.BaseHTTPRequestHandler):
    """Answers the first question only: whether there is a server."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def do_POST(self) -> None:
        time.sleep(30)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def half_dead_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ONLINE = """
import json, os, sys, time
from pathlib import Path
from core.tracking import wandb_run as tracking
from core.plan.schema import Tracking
tracking.REACH_TIMEOUT_S, tracking.INIT_TIMEOUT_S = 2.0, 3.0
start = time.monotonic()
folder = Path(sys.argv[1])
t = tracking.open_tracker(Tracking(mode="online"), run_id="a", folder=folder, config={"seed": 1})
seconds = time.monotonic() - start
t.log("pretrain", 1, {"loss": 1.0})
t.finish()
print(json.dumps({"mode": t.mode, "notes": t.notes, "seconds": seconds}))
"""


def online(folder: Path, **variables: str) -> dict[str, Any]:
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env |= {"PYTHONPATH": str(ROOT), "HOME": str(home), **variables}
    command = [sys.executable, "-c", ONLINE, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize("case", ["no key", "deaf server", "half dead server"])
def test_online_without_an_answer_falls_back_to_offline(
    tmp_path: Path, case: str, half_dead_server: str
) -> None:
    variables = {} if case == "no key" else {"WANDB_API_KEY": "a" * 40}
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        url = half_dead_server if case == "half dead server" else f"http://127.0.0.1:{port}"
        said = online(tmp_path / "run", WANDB_BASE_URL=url, **variables)
    assert said["mode"] == "offline"
    assert said["seconds"] < 20
    (note,) = said["notes"]
    expected = {"no key": "no API key", "half dead server": "could not start online"}
    assert expected.get(case, "did not answer") in note
    assert "offline" in note
    (path,) = (tmp_path / "run" / "wandb").glob("*run-*/*.wandb")
    assert any("pretrain/loss" in row for row in history(read_wandb(path)))
    assert "a" * 40 not in "".join(str(r) for r in read_wandb(path))


def test_a_failing_wandb_costs_the_tracking_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("disk full at /home/someone")

    monkeypatch.setattr(wandb, "init", broken)
    said: list[str] = []
    tracker = open_tracker(Tracking(), run_id="a", folder=tmp_path, config={}, on_note=said.append)
    tracker.log("pretrain", 1, {"loss": 1.0})
    tracker.finish()
    assert tracker.mode == "disabled"
    assert said == tracker.notes
    assert len(said) == 1
    assert "without tracking" in said[0]
    assert "someone" not in said[0]


STOPPED = """
import json, os, signal, sys, time
from pathlib import Path
from core.tracking import wandb_run as tracking
from core.plan.schema import Tracking
tracking.CALL_LIMIT_S["offline"] = 3.0
tracker = tracking.open_tracker(Tracking(), run_id="a", folder=Path(sys.argv[1]), config={})
assert tracker.mode == "offline", tracker.notes
tracker.log("pretrain", 1, {"loss": 1.0})
helper = tracking._helper()
os.kill(helper.pid, signal.SIGSTOP)
begun = time.monotonic()
if sys.argv[2] == "log":
    while tracker.mode == "offline" and time.monotonic() - begun < 60:
        tracker.log("pretrain", 2, {str(i): "x" * 1000 for i in range(1000)})
tracker.finish()
print(json.dumps({"seconds": time.monotonic() - begun, "notes": tracker.notes,
                  "mode": tracker.mode, "helper": helper.wait(10)}), flush=True)
"""


@pytest.mark.parametrize("at", ["finish", "log"])
def test_a_helper_of_wandb_that_is_stopped_holds_nobody_up(tmp_path: Path, at: str) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(tmp_path), at],
        capture_output=True, text=True, timeout=200, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["seconds"] < 3.0 + tracking.ABANDON_LIMIT_S + 10.0
    (note,) = said["notes"]
    assert (said["mode"], "without tracking" in note) == ("disabled", True)
    assert said["helper"] == -9
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begun < 150.0
