"""What a researcher reads where a run cannot be: the cause, once, and what can be done."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.journal import read_events
from core.training.optimisation import NonFiniteError
from hnfed.cli.main import main
from server.record import Recorder
from simulations import engine, launch
from simulations.foresight import require_space
from simulations.run import _Screen, simulate
from simulations.site_words import words_since

RunTiny = Callable[..., Path]


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("simulation.device=gpu", "simulation.device"),
        ("simulation.device=cuda:99", "simulation.device"),
        ("simulation.device=cpu:0", "simulation.device"),
        ("simulation.device=cpu:2", "train.batch"),
        ("train.amp=fp16", "train.amp"),
        (
            "simulation.sites.nyu={phantom: nyu, cases: 5, "
            "split: {train: 0.5, val: 0.2, test: 0.2}}",
            "simulation.sites.nyu.split",
        ),
    ],
)
def test_what_can_be_known_is_said_before_anything_is_made(
    override: str, field: str, tiny: list[str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    words = [*tiny, f"simulation.cache={cache}", "simulation.device=cpu", override]
    with pytest.raises(UserError) as caught:
        simulate("smoke", words, tmp_path / "x")
    assert caught.value.field == field
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_is_tried_once_and_told_in_its_own_words(
    tiny: list[str],
    tmp_path: Path,
    task_identity: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("server.exchange.POLL_SECONDS", 0.001)

    def diverged(*_: Any, **__: Any) -> None:
        raise NonFiniteError("train.lr", "mean loss 1e+20", "lower train.lr", problem="diverged")

    monkeypatch.setattr("client.tasks.fit", diverged)
    out = tmp_path / "x"
    assert simulate("smoke", tiny, out) == 1
    told = capsys.readouterr().err
    assert "site nyu: train.lr = mean loss 1e+20: diverged" in told
    assert "--resume" not in told.partition("did not complete")[2]
    assert "start a new run" in told
    events = read_events(out / "journal.jsonl")
    codes = [e["code"] for e in events if e["event"] == "rejected"]
    assert codes == ["E_NONFINITE"] * 2
    named = [w.strip(",;") for w in told.split() if w.startswith(str(tmp_path))]
    assert named
    assert all(Path(w).exists() for w in named)


def test_a_full_disk_leaves_a_run_that_goes_on(
    run_tiny: RunTiny,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = ("phases.0.rounds=2", "phases.1.rounds=1")
    out = tmp_path / "x"

    def full(self: Recorder, phase: str, stem: str, *_: Any) -> None:
        path = str(self.out / "checkpoints" / phase / stem)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with monkeypatch.context() as now:
        now.setattr(Recorder, "export", full)
        assert simulate("smoke", [*tiny, *overrides], out) == 1
    told = capsys.readouterr().err
    assert "the disk is full" in told
    assert str(out / "checkpoints" / "pretrain") in told
    assert "--resume" in told
    assert json.loads((out / "metrics.json").read_text())["status"] == "interrupted"
    run_tiny("x", *overrides, resume=True)


@pytest.mark.parametrize("where", ["out", "parent", "cache"])
def test_a_file_where_a_folder_is_needed_is_named(
    where: str, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a file"
    file.write_text("mine")
    out = {"out": file, "parent": file / "x", "cache": tmp_path / "x"}[where]
    cache = [f"simulation.cache={file}"] if where == "cache" else []
    assert main(["simulate", "smoke", *tiny, *cache, "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert str(file) in told
    assert "remedy" in told
    assert "unexpected" not in told
    assert file.read_text() == "mine"


def test_no_memory_and_no_permission_are_no_surprise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, words in (
        (PermissionError(errno.EACCES, "x", "/somewhere"), "file = /somewhere: no permission"),
        (MemoryError("Unable to allocate 9 GiB"), "memory = Unable to allocate 9 GiB"),
        (ImportError("libx.so: failed to map segment from shared object"), "memory = libx.so"),
        (RuntimeError("can't start new thread"), "memory = can't start new thread"),
    ):

        def raising(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr("simulations.run.simulate", raising)
        assert main(["simulate", "smoke"]) == 1
        told = capsys.readouterr().err
        assert words in told
        assert "unexpected" not in told


def test_a_killed_engine_is_told_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    screen = _Screen()
    screen("INFO : something")
    screen("the run failed: its process ended with -9 (killed; is memory short?)")
    assert "killed; is memory short?" in capsys.readouterr().out
    screen = _Screen()
    screen("INFO : hnfed| error: the cause")
    screen("the run failed: RunFailed: the cause")
    assert capsys.readouterr().out == "error: the cause\n"


def test_only_what_a_log_got_since_is_told(tmp_path: Path) -> None:
    log = tmp_path / "sites" / "nyu" / "client.log"
    log.parent.mkdir(parents=True)
    head = "Traceback (most recent call last):\n  File x\n"
    log.write_text(f"{head}ValueError: old\n")
    before = {log: log.stat().st_size}
    cause = (
        f"{head}KeyError: 'inner'\n\nDuring handling of the above exception, another one\n\n"
        f"{head}core.errors.UserError: cache = /x: damaged\n  remedy: delete it\n"
    )
    with log.open("a") as file:
        file.write(cause * 3)
    assert words_since(tmp_path, before) == {"nyu": ["cache = /x: damaged\n  remedy: delete it"]}
    log.write_text(f"{head}MemoryError\n")  # begun anew meanwhile
    assert words_since(tmp_path, before) == {"nyu": ["MemoryError"]}


def test_less_address_space_than_ray_maps_is_said_before_anything_is_made(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 8 GB Ray's processes waited for each other until the roster's time was over."""
    monkeypatch.setattr("simulations.foresight.resource.getrlimit", lambda _: (8 * 1024**3, -1))
    with pytest.raises(UserError, match=r"ulimit -v = 8\.0 GB.*\n.*simulation\.engine=inline"):
        simulate("smoke", [*tiny, "simulation.engine=ray"], tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    require_space(resource.RLIM_INFINITY)
    require_space(16 * 1024**3)


def test_the_first_cause_of_an_engines_end_is_told_not_flowers_wrapping() -> None:
    first = MemoryError("no room for an actor")
    crashed, ended = RuntimeError("Simulation Runtime crashed."), RuntimeError("Ending simulation.")
    crashed.__cause__, ended.__cause__ = first, crashed
    assert engine._first_cause(ended) is first
    assert engine._first_cause(first) is first
    assert launch._words(-signal.SIGABRT) == "aborted; is memory short?"
    assert launch._words(-signal.SIGKILL) == "killed; is memory short?"
    assert launch._words(3) == "unexpected"
