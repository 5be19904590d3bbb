"""`hnfed run`: a plan to the running server, followed to its end."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.app_folder import app_dir, stage_app, toml_of, write_private
from core.config import load
from core.errors import UserError
from core.kit import Kit
from core.phases import network, parts_of
from core.run_folder import begin, run_folder
from server.serve import CONNECTION, environment, flower, json_of

MARK = "hnfed| "
POLL_SECONDS = 1.0
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def submit(
    kit: Kit, config: str, overrides: Sequence[str], *, name: str = "", resume: bool = False
) -> int:
    """Runs a plan on the federation and follows it; Ctrl-C stops the run.

    Args:
        kit: the server's; `hnfed server` runs with it.
        config: shipped name or YAML path.
        overrides: KEY=VALUE.
        name: of the run's folder below ``KIT/runs``; by default the plan's.
        resume: go on with the run of that name.

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
    status = _run(kit, values)
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
        while not (status := _status(kit, run)).startswith("finished"):
            time.sleep(POLL_SECONDS)
    except (KeyboardInterrupt, SystemExit):
        flower(kit, "stop", run, CONNECTION)
        raise
    finally:
        follower.join(timeout=5.0)
        stream.kill()
        stream.wait()
    return status


def _follow(stream: subprocess.Popen[str]) -> None:
    assert stream.stdout is not None
    for raw in stream.stdout:
        _, found, text = COLOUR.sub("", raw).partition(MARK)
        if found:
            print(text.rstrip(), flush=True)


def _status(kit: Kit, run: str) -> str:
    told = flower(kit, "list", CONNECTION, "--run-id", run, "--format", "json")
    runs: list[dict[str, Any]] = json_of(told)["runs"]
    return str(runs[0]["status"])
