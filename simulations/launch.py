"""Runs the server and client apps with Flower's simulation engine, and leaves nothing behind.

Each launch has a private folder, Ray session and secret, so that launches of several users or tests
on one machine do not meet. Nothing listens outside the loopback address; what listens there asks
for the secret, which only the user's own processes can read.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from core.errors import UserError
from core.packaging.app_bundle import QUIET, stage_app, write_private
from core.processes import deaf, leaving
from core.text import uncoloured
from simulations import supervise
from simulations.cluster import Cluster

# Ray: no telemetry, no `uv run` of its own; the loopback address alone, and a secret on each port.
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}
TOKEN = "ray-token"
# Would attach us to somebody's Ray cluster or Flower home, or open what is closed here.
FOREIGN = ("RAY_", "FLWR_")
LOCAL = ("127.0.0.1", "localhost", "::1")  # never through a proxy
BOILERPLATE = re.compile(r"INFO :$|SIGTERM handler is not set")
SOCKET_PATH_BYTES = 107 - 75  # what Ray's session leaves of a Unix socket's path
STOPPED_SECONDS = 60
STOOD = "stopped by a signal, and not let go on for {} s"


@dataclass(frozen=True)
class Clients:
    """The sites of a launch as processes.

    Attributes:
        sites: how many.
        cpus: CPUs that Ray counts for one client; it does not limit threads.
        gpus: share of a GPU for one client; 0 hides the GPUs.
        side_by_side: clients that run at the same time; all sites where None.
        release: ``module:function`` that each reply passes before it leaves its site (see
            `simulations.released`); "" for none.
        cluster: a running Ray cluster to join; None for a Ray of the launch's own.
        visible: GPUs that all of them may use, as CUDA_VISIBLE_DEVICES; "" for all.
        threads: phase -> CPU threads of each (see `simulations.threads`); a phase that it lacks
            leaves torch's own number.
    """

    sites: int
    cpus: int = 1
    gpus: float = 0.0
    side_by_side: int | None = None
    release: str = ""
    cluster: Cluster | None = None
    visible: str = ""
    threads: Mapping[str, int] = field(default_factory=dict)


def run_flower(
    source: Path,
    run_config: Mapping[str, str],
    clients: Clients,
    *,
    work_dir: Path,
    on_line: Callable[[str], None],
) -> int:
    """Runs one simulation to its end and follows its log.

    Ctrl-C, SIGTERM and SIGHUP end all its processes and then the caller (KeyboardInterrupt,
    SystemExit(143) and SystemExit(129)). The log is also written to ``work_dir/flower.log``.

    Args:
        source: folder with pyproject.toml and the packages, see `app_dir`.
        run_config: values of ``tool.flwr.app.config``, all strings.
        clients: the simulated sites.
        work_dir: folder that gets the log; made where missing.
        on_line: called with each line of the run's log as it comes, without colours and without
            some of Flower's advice.

    Returns:
        0 only if the ServerApp came to its end, else 1; the reason is on the last line.
    """
    if clients.sites < 1 or clients.cpus < 1:
        value = min(clients.sites, clients.cpus)
        raise UserError("simulation.sites, simulation.cpus_per_site", value, "give at least 1")
    actors = max(1, min(clients.sites, clients.side_by_side or clients.sites))
    ray: dict[str, Any] = {"num_cpus": actors * clients.cpus}
    if clients.cluster is not None:
        ray = {"cluster": asdict(clients.cluster), "variables": dict(QUIET)}
    elif clients.gpus > 0:
        ray["num_gpus"] = math.ceil(actors * clients.gpus)
    settings = {
        "values": dict(run_config),
        "sites": clients.sites,
        "resources": {"num_cpus": clients.cpus, "num_gpus": float(clients.gpus)},
        "ray": ray,
        "around": {"release": clients.release, "threads": dict(clients.threads)},
    }
    work_dir.mkdir(parents=True, exist_ok=True)
    with leaving(), (work_dir / "flower.log").open("a", encoding="utf-8") as log:
        home = _private_folder(work_dir if clients.cluster else None)
        process: subprocess.Popen[str] | None = None
        try:
            _fill(home, source, settings)
            process = subprocess.Popen(
                [sys.executable, "-P", supervise.__file__, str(home)],
                cwd=home, env=_environment(home, clients),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, encoding="utf-8", errors="replace", start_new_session=True,
            )  # fmt: skip
            stood = _watched(process)
            _follow(process, on_line, log)
        finally:
            code = _clean_up(process, home)
        if code not in (0, 1):  # it never came to say why
            words = STOOD.format(STOPPED_SECONDS) if stood.is_set() else _words(code)
            last = f"{supervise.FAILED_MARK}its process ended with {code} ({words})"
            log.write(last + "\n")
            on_line(last)
    return min(abs(code), 1)


def _private_folder(shared: Path | None) -> Path:
    """A new folder of mode 0700, in a place short enough for Ray's sockets.

    Args:
        shared: where it is to be made, if a cluster is joined: its nodes read the app there.

    Raises:
        UserError: none can be made.
    """
    usual = str(shared or "")
    try:
        if shared is not None:
            return Path(tempfile.mkdtemp(prefix="launch-", dir=shared.resolve()))
        usual = tempfile.gettempdir()
        short = len(os.fsencode(usual)) + len("/hnfed-12345678") < SOCKET_PATH_BYTES
        return Path(tempfile.mkdtemp(prefix="hnfed-", dir=usual if short else "/tmp"))
    except OSError as error:
        raise _no_room(usual or "/tmp", error) from error


def _fill(home: Path, source: Path, settings: Mapping[str, object]) -> None:
    """Puts into the launch's folder what its child needs: app, settings, Ray's secret."""
    try:
        stage_app(source, home / "app")
        write_private(home / "launch.json", json.dumps(settings))
        write_private(home / TOKEN, secrets.token_hex(32))
    except OSError as error:
        raise _no_room(home.parent, error) from error


def _no_room(folder: Path | str, error: OSError) -> UserError:
    remedy = "make room there, or set TMPDIR to a folder that can be written"
    return UserError("TMPDIR", folder, remedy, problem=error.strerror or type(error).__name__)


def _follow(process: subprocess.Popen[str], on_line: Callable[[str], None], log: TextIO) -> None:
    """Hands on the log until the child ends; why a run failed comes last, Ray may still talk."""
    assert process.stdout is not None
    why = ""
    for raw in itertools.chain(process.stdout, [None]):
        line = why if raw is None else uncoloured(raw).rstrip()
        if raw is not None and line.startswith(supervise.FAILED_MARK):
            why = line
        elif line:
            log.write(line + "\n")
            log.flush()
            if not BOILERPLATE.search(line):
                on_line(line)


def _watched(process: subprocess.Popen[str]) -> threading.Event:
    """Ends a child that somebody has stopped (SIGSTOP) and nobody lets go on: it would say nothing.

    Only checks count, not the clock: a launch that is stopped as a whole loses nothing.

    Returns:
        Set once that was done.
    """
    stood = threading.Event()

    def watch() -> None:
        checks = 0
        while process.poll() is None and checks < STOPPED_SECONDS:
            checks = checks + 1 if _is_stopped(process.pid) else 0
            time.sleep(1.0)
        if process.poll() is None:
            stood.set()
            process.kill()

    threading.Thread(target=watch, daemon=True).start()
    return stood


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def _words(code: int) -> str:
    """What an exit code says: SIGKILL is mostly the system's, SIGABRT mostly a library's."""
    ends = {-signal.SIGKILL: "killed", -signal.SIGABRT: "aborted", -signal.SIGBUS: "bus error"}
    return f"{ends[code]}; is memory short?" if code in ends else "unexpected"


def _environment(home: Path, clients: Clients) -> dict[str, str]:
    ours = {n: value for n, value in os.environ.items() if not n.startswith(FOREIGN)}
    scripts = str(Path(sys.executable).parent)
    given = [ours.get(name, "") for name in ("NO_PROXY", "no_proxy")]
    direct = ",".join(dict.fromkeys(filter(None, [*given, *LOCAL])))
    private = {**QUIET_RAY, "RAY_TMPDIR": str(home), "RAY_AUTH_TOKEN_PATH": str(home / TOKEN)}
    joining = clients.cluster.environment(os.environ) if clients.cluster else {}
    of_ray = {n: v for n, v in joining.items() if n.startswith("RAY_")}
    of_ray = of_ray if clients.cluster else private
    return {
        **ours, **QUIET, **of_ray,
        "PATH": os.pathsep.join([scripts, ours.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": direct, "no_proxy": direct,
        "FLWR_HOME": str(home), "TMPDIR": str(home),
        **({"CUDA_VISIBLE_DEVICES": clients.visible} if clients.visible else {}),
    }  # fmt: skip


def _clean_up(process: subprocess.Popen[str] | None, home: Path) -> int:
    """Ends the processes of a launch and removes its folder; a second Ctrl-C does not stop it.

    Returns:
        Exit code of the child; 1 where there was none.
    """
    with deaf():
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()  # the child's sign to end everything
            try:
                process.wait(5 * supervise.GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                supervise.stop(f"FLWR_HOME={home}", 0.0, process.pid)
                process.wait()
            process.stdout.close()
            # Where the child itself was killed. It led a session of its own.
            supervise.stop(f"FLWR_HOME={home}", 0.0, process.pid)
        shutil.rmtree(home, ignore_errors=True)
    return process.returncode if process is not None else 1
