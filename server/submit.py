"""`hnfed run`: a plan to the running server, followed to its end."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.app_folder import app_dir, stage_app, toml_of, write_private
from core.config import load
from core.errors import UserError
from core.journal import JOURNAL, read_events
from core.kit import Kit
from core.phases import network, parts_of
from core.run_folder import begin, run_folder
from server.serve import CONNECTION, environment, flower, json_of

MARK = "hnfed| "
POLL_SECONDS, RESUME_SECONDS = 1.0, 20.0
SILENT_SECONDS = 180.0  # a server that is started again answers by then
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def submit(
    kit: Kit,
    config: str,
    overrides: Sequence[str],
    *,
    name: str = "",
    resume: bool = False,
    again: int = 0,
) -> int:
    """Runs a plan on the federation and follows it; Ctrl-C stops the run.

    Args:
        kit: the server's; `hnfed server` runs with it.
        config: shipped name or YAML path.
        overrides: KEY=VALUE.
        name: of the run's folder below ``KIT/runs``; by default the plan's.
        resume: go on with the run of that name.
        again: how often a run that ended before its end is resumed unattended.

    Returns:
        0 where all phases completed, else 1.

    Raises:
        UserError: what cannot work, or no server.
    """
    if name and name != Path(name).name:
        raise UserError("--name", name, "give a name without a path")
    resolved, _ = load(config, overrides)
    for phase in resolved.phases:
        parts_of(network(resolved, phase), resolved, phase)
    root = kit.folder / "runs"
    out = root / name if name else None
    folder = run_folder(Path(config).stem, out, resume, root)
    values = begin(resolved, resolved, folder, out=folder.name, resume=resume, local="")
    status = _run_on(kit, values, folder, again)
    from core.report import write_report

    print(f"report: {write_report(folder)}")
    if status != "finished:completed":
        print(
            f"hnfed: error: the run ended as {status}; what it did is kept.\n"
            f"  remedy: read {folder / 'journal.jsonl'}, mend the cause, then:\n"
            f"  hnfed run {' '.join([config, *overrides])} --server {kit.folder} "
            f"--name {folder.name} --resume",
            file=sys.stderr,
        )
    return 0 if status == "finished:completed" else 1


def _run_on(kit: Kit, values: dict[str, str], folder: Path, again: int) -> str:
    """Runs, and resumes what died `again` times; each committed round counts once.

    A run that found that it cannot go on (its journal ends with ``run-end``, failed) is not tried
    again without another round done: the same would end it again. Nor is one that a user stopped.
    """
    for left in reversed(range(again + 1)):
        before = read_events(folder / JOURNAL)
        try:
            status = _run(kit, values)
        except UserError as error:  # the server is down or starting again
            if not left:
                raise
            status = f"unknown ({error.problem})"
        new = read_events(folder / JOURNAL)[len(before) :]
        if status in ("finished:completed", "finished:stopped") or not left or _refused(new):
            return status
        print(f"the run ended as {status}; resumed in {RESUME_SECONDS:.0f} s, {left} tries left",
              flush=True)  # fmt: skip
        time.sleep(RESUME_SECONDS)
        values = {**values, "resume": "1"}
    raise AssertionError("unreachable")


def _refused(new: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an attempt's events say that it found no way on, and committed no round."""
    ended = bool(new) and new[-1]["event"] == "run-end" and new[-1]["status"] == "failed"
    return ended and not any(event["event"] == "round" for event in new)


def _run(kit: Kit, values: dict[str, str]) -> str:
    """Submits the app; hands on the run's own lines; returns Flower's last word on it."""
    with tempfile.TemporaryDirectory(prefix="hnfed-") as scratch:
        place = Path(scratch)
        stage_app(app_dir(), place / "app")
        write_private(place / "run.toml", toml_of(values))
        told = flower(
            kit, "run", str(place / "app"), CONNECTION, "--run-config", str(place / "run.toml"),
            "--format", "json",
        )  # fmt: skip
    run = str(json_of(told)["run-id"])
    stream = subprocess.Popen(
        [str(Path(sys.executable).with_name("flwr")), "log", run, CONNECTION, "--stream"],
        env=environment(kit), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    follower = threading.Thread(target=_follow, args=(stream,), daemon=True)
    follower.start()
    try:
        status = _ended(kit, run)
    except (KeyboardInterrupt, SystemExit):
        flower(kit, "stop", run, CONNECTION)
        raise
    finally:
        follower.join(timeout=5.0)
        stream.kill()
        stream.wait()
    return status


def _ended(kit: Kit, run: str) -> str:
    """Waits for the end of a run; a server that does not answer is asked again for a while.

    Raises:
        UserError: it has been silent for too long.
    """
    heard = time.monotonic()
    while True:
        try:
            status = _status(kit, run)
            heard = time.monotonic()
        except UserError:
            if time.monotonic() - heard > SILENT_SECONDS:
                raise
            status = ""
        if status.startswith("finished"):
            return status
        time.sleep(POLL_SECONDS)


def _follow(stream: subprocess.Popen[str]) -> None:
    assert stream.stdout is not None
    for raw in stream.stdout:
        _, found, text = COLOUR.sub("", raw).partition(MARK)
        if found:
            print(text.rstrip(), flush=True)


def _status(kit: Kit, run: str) -> str:
    told = flower(kit, "list", CONNECTION, "--run-id", run, "--format", "json")
    runs: list[dict[str, Any]] = json_of(told).get("runs", [])
    if not runs:
        raise UserError("run", run, "read the server's log", problem="the server does not know it")
    return str(runs[0]["status"])
