"""Runs the server and client apps with Flower's simulation engine, and leaves nothing behind.

Each launch has a private folder, SuperLink, ports and Ray session, so that launches of several
users or tests on one machine do not meet, and nothing reaches the network.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from core.app_folder import QUIET, stage_app, toml_of, write_private
from core.errors import UserError
from core.service import deaf, handling, leave
from simulations import supervise

# Ray: no telemetry.
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# glibc gives each large activation back to the system and takes it again: page faults cost up to
# 40 % of a training step. These keep the memory instead, at 50 to 70 % more resident memory.
KEEP_HEAP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(64 * 1024**3),
    "MALLOC_TOP_PAD_": str(256 * 1024**2),
}
# Would attach us to somebody's Ray cluster or Flower home.
FOREIGN = ("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_JOB_CONFIG_JSON_ENV_VAR", "FLWR_HOME")
BOILERPLATE = re.compile(
    r"Since flwr 1\.32|To change federation size|flwr federation simulation-config"
    r"|^Using SuperLink|Successfully installed|Starting logstream|INFO :$"
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SOCKET_PATH_BYTES = 107 - 75  # what Ray's session leaves of a Unix socket's path


def run_flower(
    source: Path,
    run_config: Mapping[str, str],
    *,
    sites: int,
    work_dir: Path,
    on_line: Callable[[str], None],
    cpus_per_client: int = 1,
    gpus_per_client: float = 0.0,
    side_by_side: int | None = None,
    environment: Mapping[str, str] | None = None,
    keep_heap: bool = True,
) -> int:
    """Runs one simulation to its end and follows its log.

    Ctrl-C and SIGTERM end all its processes and then the caller (KeyboardInterrupt, and
    SystemExit(143)). The log is also written to ``work_dir/flower.log``.

    Args:
        source: folder with pyproject.toml and the packages, see `app_dir`.
        run_config: values of ``tool.flwr.app.config``, all strings.
        sites: number of simulated sites.
        work_dir: folder that gets the log; made where missing.
        on_line: called with each line of the run's log as it comes, without colours and without
            some of Flower's advice.
        cpus_per_client: CPUs that Ray counts for one client; it does not limit threads.
        gpus_per_client: share of a GPU for one client; 0 hides the GPUs.
        side_by_side: clients that run at the same time; all sites where None.
        environment: additions to the environment of the apps.
        keep_heap: let the C allocator keep freed memory (see `KEEP_HEAP`).

    Returns:
        0 only if Flower says ``finished:completed``, else 1; the reason is on the last lines.
    """
    if sites < 1 or cpus_per_client < 1:
        value = min(sites, cpus_per_client)
        raise UserError("simulation.sites, simulation.cpus_per_site", value, "give at least 1")
    actors = max(1, min(sites, side_by_side or sites))
    federation = (
        f"num-supernodes={sites} client-resources-num-cpus={cpus_per_client} "
        f"client-resources-num-gpus={float(gpus_per_client)} "
        f"init-args-num-cpus={actors * cpus_per_client}"
    )
    if gpus_per_client > 0:
        federation += f" init-args-num-gpus={math.ceil(actors * gpus_per_client)}"
    work_dir.mkdir(parents=True, exist_ok=True)
    with (
        handling(leave, signal.SIGTERM),
        (work_dir / "flower.log").open("a", encoding="utf-8") as log,
    ):
        home = Path(tempfile.mkdtemp(prefix="hnfed-", dir=_short_temporary_folder()))
        process: subprocess.Popen[str] | None = None
        done = False
        try:
            stage_app(source, home / "app")
            write_private(home / "run.toml", toml_of(run_config))
            process = subprocess.Popen(
                [sys.executable, "-P", supervise.__file__, str(home), federation],
                cwd=home, env=_environment(home, environment or {}, keep_heap),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, encoding="utf-8", errors="replace", start_new_session=True,
            )  # fmt: skip
            done = _follow(process, on_line, log)
        finally:
            _clean_up(process, home)
    return 0 if done else 1


def _follow(process: subprocess.Popen[str], on_line: Callable[[str], None], log: TextIO) -> bool:
    """Hands on the log until the child ends; True if the run completed."""
    status: list[str] | None = None
    assert process.stdout is not None
    for raw in process.stdout:
        line = COLOUR.sub("", raw).rstrip()
        if line == supervise.STATUS_MARK:
            status = []
        elif status is not None:
            status.append(line)
        elif line:
            log.write(line + "\n")
            log.flush()
            if not BOILERPLATE.search(line):
                on_line(line)
    try:
        run: dict[str, Any] = json.loads("\n".join(status or []))["runs"][0]
    except (ValueError, LookupError, TypeError):
        run = {"status": "unknown", "status-details": "Flower ended without a status"}
    if run["status"] == "finished:completed":
        return True
    last = f"Flower: the run ended as {run['status']}: {run.get('status-details', '')}"
    log.write(last + "\n")
    on_line(last)
    return False


def _environment(home: Path, extra: Mapping[str, str], keep_heap: bool) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    scripts = str(Path(sys.executable).parent)
    direct = ",".join(filter(None, [ours.get("NO_PROXY", ""), "127.0.0.1,localhost"]))
    return {
        **ours, **QUIET, **QUIET_RAY, **(KEEP_HEAP if keep_heap else {}), **extra,
        "PATH": os.pathsep.join([scripts, ours.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": direct, "no_proxy": direct,
        "FLWR_HOME": str(home), "RAY_TMPDIR": str(home),
    }  # fmt: skip


def _short_temporary_folder() -> str:
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) + len("/hnfed-12345678") < SOCKET_PATH_BYTES else "/tmp"


def _clean_up(process: subprocess.Popen[str] | None, home: Path) -> None:
    """Ends the processes of a launch and removes its folder; a second Ctrl-C does not stop it."""
    with deaf():
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()  # the child's sign to end everything
            try:
                process.wait(5 * supervise.GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                supervise.stop(f"FLWR_HOME={home}", 0.0)
                process.wait()
            process.stdout.close()
        shutil.rmtree(home, ignore_errors=True)
