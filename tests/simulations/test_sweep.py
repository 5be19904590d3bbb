from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.journal import read_events
from core.wire.checkpoint import load as load_checkpoint
from core.wire.partition import fingerprint
from hnfed.cli.main import main
from simulations import sweep as grid_module
from simulations.cell import mean_dice
from simulations.cell_list import list_cells
from simulations.places import local
from simulations.places.place import Place, Task
from simulations.places.where import Where, of_the_cluster
from simulations.study import read_study
from simulations.sweep import grid
from tests.conftest import lose_a_signal

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
config: smoke
set: {{simulation.engine: inline, simulation.phantom_spacing_mm: [8.0, 6.0, 6.0],
      simulation.overlays: 0,
      preprocess: {{spacing_mm: [12.0, 12.0, 12.0], crop: [16, 16, 16]}}, model.channels: [4, 8],
      simulation.cache: "{cache}", augment.enabled: false}}
cells:
  frozen:
    needs: pretrain
    phases: [personalise]
    axes: {{cases: {{1: {{phases.personalise.max_cases: 1}}}}}}
    set: {{phases.personalise.init: "{{pretrain}}/checkpoints/pretrain/best.safetensors"}}
  pretrain: {{phases: [pretrain]}}
"""
FROZEN, PRETRAIN = "frozen-cases1-seed0", "pretrain-seed0"


def write_study(folder: Path, cache: Path) -> str:
    path = folder / "tiny.yaml"
    path.write_text(STUDY.format(cache=cache), encoding="utf-8")
    return str(path)


@pytest.fixture
def study(tmp_path: Path, phantom_cache: Path) -> str:
    return write_study(tmp_path, phantom_cache)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, phantom_cache: Path) -> Path:
    """The cells of `STUDY`, run as a user would; tests copy them."""
    folder = tmp_path_factory.mktemp("grid")
    assert grid(write_study(folder, phantom_cache), [], folder / "cells", where=Where(jobs=2)) == 0
    return folder / "cells"


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "cell.json").read_text())
    return found


def files_of(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------- cells that ran


def test_cells_are_run_folders_that_say_how_they_were_made(made: Path) -> None:
    record = record_of(made / FROZEN)
    assert (record["status"], record["variant"], record["seed"]) == ("completed", "frozen", 0)
    assert record["axes"] == {"cases": "1"}
    assert record["fingerprints"] == [fingerprint()]
    assert record["seconds"] > 1
    assert record["plan"] == (made / FROZEN / "plan.json").read_text()
    assert record["command"][:3] == ["hnfed", "simulate", "smoke"]
    assert record["command"][-1] == str(made / FROZEN)
    head = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    if (ROOT / ".git").exists():
        done = subprocess.run(head, capture_output=True, text=True, check=True)
        assert record["commit"].startswith(done.stdout.strip())
    start, _ = load_checkpoint(made / PRETRAIN / "checkpoints/pretrain/best.safetensors")
    tuned, _ = load_checkpoint(made / FROZEN / "sites/nyu/personalise/best.safetensors")
    encoder = [n for n in start if n.startswith("down.")]
    assert encoder
    assert all(tuned[n].equal(start[n]) for n in encoder)


def test_the_tables_repeat_the_metrics(made: Path) -> None:
    with (made / "grid.csv").open(newline="") as file:
        rows = {r["cell"]: r for r in csv.DictReader(file)}
    assert set(rows) == {FROZEN, PRETRAIN}
    for name, row in rows.items():
        (block,) = json.loads((made / name / "metrics.json").read_text())["phases"]
        assert row["phase"] == block["name"]
        assert float(row["test_dice"]) == pytest.approx(block["mean"]["dice"])
        assert float(row["val_dice"]) == pytest.approx(block["mean_val"]["dice"])
    assert (rows[FROZEN]["cases"], rows[PRETRAIN]["cases"]) == ("1", "")
    table = json.loads((made / "grid.json").read_text())
    assert [r["cell"] for r in table["rows"]] == [PRETRAIN, FROZEN]


def test_done_cells_are_skipped_and_said(
    made: Path, study: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: c for n in (FROZEN, PRETRAIN) for p, c in files_of(made / n).items()}
    monkeypatch.setattr(local.subprocess, "Popen", None)  # nothing may be started
    assert main(["grid", study, "--out", str(made), "--only", "frozen-*"]) == 0
    printed = capsys.readouterr().out
    assert "with what they need: 1 cell more" in printed
    assert f"cell 2/2 {FROZEN}: done before: val 0." in printed
    assert {p: c for n in (FROZEN, PRETRAIN) for p, c in files_of(made / n).items()} == before


def test_cells_of_other_code_are_kept_counted_and_named(
    made: Path, study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cells"  # elsewhere: the folder may move
    shutil.copytree(made, out)
    record = record_of(out / PRETRAIN)
    assert grid(study, [], out) == 0
    assert "other code" not in capsys.readouterr().out
    (out / PRETRAIN / "cell.json").write_text(json.dumps({**record, "fingerprints": ["0" * 64]}))
    assert grid(study, [], out) == 0
    assert f"1 cell made by other code, kept: {PRETRAIN}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.lr=0.5", "another plan"),
        ("simulation.sites.nyu.cases=7", "other sites or patients"),
        ("simulation.baseline=pooled", "another plan"),
    ],
)
def test_a_folder_of_another_plan_is_refused_and_kept(
    made: Path, study: str, override: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(made)
    with pytest.raises(UserError, match=told) as caught:
        grid(study, [override], made)
    assert caught.value.field == f"cell {PRETRAIN}"
    assert str(caught.value.value) == str(made / PRETRAIN)
    assert "nothing is deleted" in caught.value.remedy
    assert files_of(made) == before
    assert list_cells(study, [override], made)[0]["state"] == f"refused: it was made with {told}"
    assert f"refused: it was made with {told}" in capsys.readouterr().out


def test_another_checkpoint_under_a_cell_is_another_plan(
    made: Path, study: str, tmp_path: Path
) -> None:
    out = tmp_path / "cells"
    shutil.copytree(made, out)
    weights = out / PRETRAIN / "checkpoints/pretrain/best.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(UserError, match="another plan") as caught:
        grid(study, [], out)
    assert caught.value.field == f"cell {FROZEN}"


def test_a_key_of_the_plan_that_came_later_counts_with_its_default(
    made: Path, study: str, tmp_path: Path
) -> None:
    out = tmp_path / "cells"
    shutil.copytree(made, out)
    path = out / PRETRAIN / "plan.json"
    plan = json.loads(path.read_text())
    del plan["phases"][0]["average_mirrored"]
    path.write_text(json.dumps(plan, sort_keys=True, separators=(",", ":")))
    assert grid(study, [], out) == 0
    plan["phases"][0]["gone"] = 1
    path.write_text(json.dumps(plan, sort_keys=True, separators=(",", ":")))
    with pytest.raises(UserError, match="another plan"):
        grid(study, [], out)


def test_a_folder_that_no_grid_made_is_refused(made: Path, study: str, tmp_path: Path) -> None:
    out = tmp_path / "cells"
    shutil.copytree(made / PRETRAIN, out / PRETRAIN)
    (out / PRETRAIN / "cell.json").unlink()
    with pytest.raises(UserError, match=r"it has no cell.json"):
        grid(study, [], out)


def test_local_only_is_scored_as_the_federation_is() -> None:
    def block(**sites: tuple[int, float]) -> dict[str, Any]:
        cells = {s: {"test": {"A": {"n": n, "dice": d}}} for s, (n, d) in sites.items()}
        return {"sites": cells}

    apart = [block(x=(3, 0.5)), block(y=(1, 0.9))]
    assert mean_dice(apart, "test") == pytest.approx(0.6)
    assert mean_dice([block(x=(3, 0.5), y=(1, 0.9))], "test") == pytest.approx(0.6)
    assert mean_dice(apart, "val") is None
    hidden = {"sites": {"x": {"test": {"A": {"n": None, "dice": None, "suppressed": True}}}}}
    assert mean_dice([hidden], "test") is None


# ------------------------------------------------------------------------ interruption and failure


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


@pytest.mark.slow
def test_an_interrupted_cell_ends_with_the_grid_and_is_resumed(study: str, tmp_path: Path) -> None:
    out = tmp_path / "cells"
    command = [sys.executable, "-m", "hnfed.cli.main", "grid", study, "--out", str(out)]
    command += ["--only", "pretrain-*", "phases.pretrain.rounds=25"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    journal = out / PRETRAIN / "journal.jsonl"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: journal.is_file() and '"event":"round"' in journal.read_text())
        tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (pid,) = map(int, tasks.read_text().split())
        assert alive(pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert not alive(pid)
        assert bystander.poll() is None
    finally:
        process.kill()
        bystander.kill()
        process.wait()
        bystander.wait()
    record = record_of(out / PRETRAIN)
    assert record["status"] == "interrupted"
    done = [e["round"] for e in read_events(journal) if e["event"] == "round"]
    assert 0 < len(done) < 25
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert f"resuming {PRETRAIN}" in again.stdout
    assert "cell 1/1 pretrain-seed0: val 0." in again.stdout
    events = read_events(journal)
    assert [e["round"] for e in events if e["event"] == "round"] == list(range(1, 26))
    assert [e["resumed"] for e in events if e["event"] == "run-start"] == [False, True]
    assert record_of(out / PRETRAIN)["status"] == "completed"
    assert record_of(out / PRETRAIN)["seconds"] > record["seconds"]


FAKE = """
import json, pathlib, signal, os, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
if folder.name.startswith("bad"):
    print("hnfed: error: x = 1\\n  remedy: mend it")
    sys.exit(1)
if folder.name.startswith("killed"):
    os.kill(os.getpid(), signal.SIGKILL)
(folder / "config.yaml").touch()
(folder / "plan.json").write_text(json.loads((folder / "cell.json").read_text())["plan"])
cells = {"s": {"test": {"A": {"n": 2, "dice": 0.25}}, "val": {"A": {"n": 1, "dice": 0.75}}}}
if "high" in folder.name:
    cells["s"]["val"]["A"]["dice"] = 0.9
block = dict(name="pretrain", sites=cells, mean={}, rounds=1, best_round=1, seconds=30.0)
metrics = {"status": "completed", "phases": [block]}
(folder / "metrics.json").write_text(json.dumps(metrics))
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells end at once, as their names say; returns what was started."""
    started: list[str] = []
    popen = subprocess.Popen

    def start(command: Sequence[str], **options: Any) -> Any:
        if "simulate" not in command:  # git, asked for the commit
            return popen(command, **options)
        arguments = list(command[command.index("simulate") :])
        started.append(Path(arguments[arguments.index("--out") + 1]).name)
        return popen([sys.executable, "-c", FAKE, *arguments], **options)

    monkeypatch.setattr(local.subprocess, "Popen", start)
    monkeypatch.setattr(grid_module, "POLL_SECONDS", 0.01)
    return started


def fake_study(tmp_path: Path, cells: str) -> str:
    path = tmp_path / "fake.yaml"
    path.write_text(
        "config: smoke\nset: {model.channels: [4, 8], preprocess.crop: [16, 16, 16]}\n"
        f"cells:\n  {cells}\n"
    )
    return str(path)


def test_a_cell_that_fails_or_is_killed_ends_nothing_else(
    tmp_path: Path, fake: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = "bad: {}\n  after: {needs: bad}\n  later: {needs: after}\n  killed: {}\n  good: {}"
    study = fake_study(tmp_path, names)
    assert main(["grid", study, "--out", str(tmp_path / "out"), "--jobs", "2"]) == 1
    printed = capsys.readouterr().out
    assert sorted(fake) == ["bad-seed0", "good-seed0", "killed-seed0"]
    assert "bad-seed0: failed" in printed
    assert "(exit code 1)" in printed
    assert "  remedy: mend it" in printed
    assert "(signal 9)" in printed
    assert "after-seed0: skipped: it needs bad-seed0" in printed
    assert "2 cells failed: " in printed
    assert "2 cells skipped: after-seed0, later-seed0" in printed
    assert "5 cells in" in printed
    rows = json.loads((tmp_path / "out/grid.json").read_text())["rows"]
    status = {r["cell"]: r["status"] for r in rows}
    assert (status["good-seed0"], status["bad-seed0"], status["later-seed0"]) == (
        "completed", "failed", None,
    )  # fmt: skip
    fake.clear()
    assert main(["grid", study, "--out", str(tmp_path / "out"), "--only", "good-*"]) == 0
    assert fake == []


def test_progress_says_what_came_out_and_how_long_the_rest_takes(
    tmp_path: Path, fake: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    study = fake_study(tmp_path, "\n  ".join(f"{n}: {{phases: [pretrain]}}" for n in "abc"))
    assert grid(study, ["phases.pretrain.rounds=1"], tmp_path / "out", where=Where(jobs=1)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert fake == ["a-seed0", "b-seed0", "c-seed0"]
    assert "cell 1/3 a-seed0: val 0.75, test 0.25, 0.5 min; about 1 min left" in lines
    assert "cell 3/3 c-seed0: val 0.75, test 0.25, 0.5 min" in lines
    assert "a-seed0  0.750     0.250      0.5" in lines


def test_jobs_bounds_what_runs_side_by_side(
    tmp_path: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    settle = grid_module._settle

    def watch(work: Any) -> None:
        most.append(len(work.running))
        settle(work)

    monkeypatch.setattr(grid_module, "_settle", watch)
    study = fake_study(tmp_path, "a: {axes: {n: {1: {}, 2: {}, 3: {}, 4: {}}}, phases: [pretrain]}")
    assert grid(study, [], tmp_path / "two", where=Where(jobs=2)) == 0
    assert max(most) == 2
    most.clear()
    monkeypatch.setattr("simulations.places.where.cpus", lambda: 7)
    assert grid(study, ["simulation.cpus_per_site=2"], tmp_path / "three") == 0
    assert max(most) == 3
    with pytest.raises(UserError, match="--jobs"):
        grid(study, [], tmp_path / "none", where=Where(jobs=0))


def test_waiting_cells_cost_nothing_while_others_run(
    tmp_path: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved: list[str] = []
    real, begin = grid_module.wanted, grid_module._begin

    def counted(cell: Any, *arguments: Any) -> Any:
        resolved.append(cell.name)
        return real(cell, *arguments)

    def watched(work: Any) -> None:
        full, before = len(work.running) >= work.room, len(resolved)
        begin(work)
        assert not full or len(resolved) == before, "a plan is resolved for nothing"

    monkeypatch.setattr(grid_module, "wanted", counted)
    monkeypatch.setattr(grid_module, "_begin", watched)
    study = fake_study(tmp_path, "a: {axes: {n: {1: {}, 2: {}, 3: {}}}, phases: [pretrain]}")
    assert grid(study, [], tmp_path / "out", where=Where(jobs=1)) == 0
    assert len(fake) == 3


def test_a_cell_that_died_before_its_run_began_is_started_anew(
    made: Path, study: str, tmp_path: Path
) -> None:
    out = tmp_path / "cells"
    shutil.copytree(made, out)
    folder = out / FROZEN
    for path in folder.iterdir():
        if path.name not in ("cell.json", "init"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / ".plan.json.next").write_text("{")
    assert grid(study, [], out, where=Where(jobs=1)) == 0
    assert json.loads((folder / "metrics.json").read_text())["status"] == "completed"


@pytest.mark.usefixtures("leaving")
def test_a_signal_that_was_lost_starts_no_further_cell(
    tmp_path: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = grid_module._begin

    def losing(*arguments: Any) -> None:
        begin(*arguments)
        lose_a_signal()

    monkeypatch.setattr(grid_module, "_begin", losing)
    study = fake_study(tmp_path, "a: {axes: {n: {1: {}, 2: {}, 3: {}}}, phases: [pretrain]}")
    with pytest.raises(SystemExit):
        grid(study, [], tmp_path / "out", where=Where(jobs=1))
    assert len(fake) == 1


def test_a_folder_has_one_grid_at_a_time(made: Path, study: str) -> None:
    lock = os.open(made / ".lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another grid"):
            grid(study, [], made)
    finally:
        os.close(lock)
    assert grid(study, [], made) == 0


def test_a_cell_that_outlives_its_grid_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen

    def start(command: Sequence[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", "import time; time.sleep(600)"], **options)

    study = fake_study(tmp_path, "a: {phases: [pretrain]}")
    (cell,) = read_study(study, [], tmp_path).cells
    task = Task(cell.name, tmp_path, (), 1, 0.0)
    monkeypatch.setattr(local.subprocess, "Popen", start)
    with grid_module._alone(tmp_path) as lock, local.opened(1, lock) as place:
        place.start([task])
    try:
        with pytest.raises(UserError, match="or a cell of it"):
            grid(study, [], tmp_path)
    finally:
        place.stop([task])
    with grid_module._alone(tmp_path):
        pass


def test_only_names_cells(study: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--list"):
        grid(study, [], tmp_path / "x", only=["scratch-*"])
    assert not (tmp_path / "x").exists()


def test_an_error_names_its_cell(study: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"cell {PRETRAIN}: "):
        grid(study, ["train.lrr=1"], tmp_path / "x")


def test_the_address_of_the_cluster_is_not_for_the_cells() -> None:
    words = ["train.lr=0.1", "simulation.ray=head:6379", "simulation.ray_insecure=true"]
    rest, found = of_the_cluster(words)
    assert rest == ["train.lr=0.1"]
    assert (found.ray, found.ray_insecure) == ("head:6379", True)
    assert of_the_cluster([])[1].ray == ""
    with pytest.raises(UserError, match="HOST:PORT"):
        of_the_cluster(["simulation.ray=head"])


def test_what_is_for_slurm_alone_is_refused_elsewhere(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grid", study, "--out", str(tmp_path / "x"), "--slurm", "partition=p"]) == 1
    assert "give it with --on slurm" in capsys.readouterr().err
    assert main(["grid", study, "--on", "slurm", "--slurm", "partition"]) == 1
    assert "KEY=VALUE" in capsys.readouterr().err


def test_a_cell_elsewhere_is_a_run_on_one_node_with_what_it_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[Task] = []

    @contextmanager
    def opened(out: Path, settings: Any, side_by_side: int | None) -> Iterator[Place]:
        assert (settings, side_by_side) == ({"partition": "p"}, 3)
        yield Place("slurm", None, True, began.extend, lambda _: "as asked", lambda _: "left")

    monkeypatch.setattr("simulations.places.on_slurm.opened", opened)
    study = fake_study(tmp_path, "a: {axes: {n: {1: {}, 2: {}}}, phases: [pretrain]}")
    words = ["simulation.engine=ray", "simulation.cpus_per_site=2", "simulation.gpus_per_site=0.5"]
    where = Where("slurm", 3, {"partition": "p"})
    assert grid(study, words, tmp_path / "out", where=where) == 1
    assert [task.name for task in began] == ["a-n1-seed0", "a-n2-seed0"]
    assert all((task.cpus, task.gpus) == (4, 1.0) for task in began)
    for task in began:
        assert task.arguments[-3:] == ('simulation.ray=""', "--out", str(task.out / task.name))


def test_the_value_that_validates_best_is_run_elsewhere(
    tmp_path: Path, fake: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tuned.yaml"
    axes = "{lr: {one: {train.lr: 0.1}, high: {train.lr: 0.2}, three: {train.lr: 0.3}}}"
    path.write_text(
        "config: smoke\nset: {model.channels: [4, 8], preprocess.crop: [16, 16, 16]}\n"
        "seeds: [0, 1]\nchoose: {axis: lr, at: {seed: 0}}\n"
        f"cells: {{alone: {{phases: [pretrain]}}, a: {{phases: [pretrain], axes: {axes}}}}}\n"
    )
    arguments = ["grid", str(path), "phases.pretrain.rounds=1", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--list"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("waits for the choice of lr") == 3
    assert main([*arguments, "--jobs", "1"]) == 0
    tried = ["a-lrone-seed0", "a-lrhigh-seed0", "a-lrthree-seed0"]
    assert fake == ["alone-seed0", *tried, "alone-seed1", "a-lrhigh-seed1"]
    printed = capsys.readouterr().out
    assert "a-lrone-seed1: not run: its lr was not chosen" in printed
    assert "a-lrthree-seed1  " not in printed
    assert main([*arguments, "--list"]) == 0
    assert capsys.readouterr().out.count("not chosen") == 2
    fake.clear()
    assert main([*arguments, "--jobs", "1"]) == 0  # resumed: nothing is left
    assert fake == []
