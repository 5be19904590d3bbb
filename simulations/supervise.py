"""The child process of `simulations.launch`: owns a private Flower SuperLink and one run on it.

Started by file name, so it imports only the standard library and, late, Flower. It starts the
SuperLink, loads Flower's command line meanwhile (which saves seconds), submits the app, prints the
log of the run as it comes, and after a line with `STATUS_MARK` the run's status as JSON. It ends
everything when its standard input closes: that happens also when the parent is killed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import NoReturn

STATUS_MARK = "--- status of the run ---"
CONNECTION = "hnfed"
START_SECONDS = 120.0
GRACE_SECONDS = 3.0
PROC = Path("/proc")


def owned(mark: str) -> set[int]:
    """Process ids that run with `mark` in their environment, or descend from such a process.

    Args:
        mark: an environment entry ``NAME=value`` that only our own children have.

    Returns:
        Living processes (no zombies) except this one; empty where there is no ``/proc``.
    """
    parents: dict[int, int] = {}
    marked: set[int] = set()
    wanted = mark.encode()
    for folder in PROC.glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            parents[int(folder.name)] = int(parent)
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                marked.add(int(folder.name))
        except (OSError, ValueError):
            continue  # gone meanwhile, or another user's
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in marked} - marked
        marked |= more
        grown = bool(more)
    return marked - {os.getpid()}


def stop(mark: str, grace_seconds: float) -> None:
    """Ends all processes of a launch: SIGTERM, and SIGKILL for what is left after the grace.

    Args:
        mark: see `owned`.
        grace_seconds: 0 sends SIGKILL at once.
    """
    deadline = time.monotonic() + grace_seconds
    asked: set[int] = set()
    for _ in range(2000):
        left = owned(mark)
        if not left:
            return
        late = time.monotonic() >= deadline
        for pid in left if late else left - asked:
            try:
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            except ProcessLookupError:
                continue
        asked |= left
        time.sleep(0.05)


def free_port() -> int:
    """A TCP port on the loopback address that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_superlink(home: Path) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--disable-runtime-dependency-installation"]
    with (home / "superlink.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=home
        )
    return process, port


def _answers(port: int) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{port}/health", timeout=2.0) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _superlink(home: Path) -> int:
    """Starts the SuperLink, waits until it answers; takes another port where one is in use."""
    for _ in range(3):
        process, port = _start_superlink(home)
        import flwr.cli.app  # noqa: F401  # slow: loads while the SuperLink starts

        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if _answers(port):
                return port
            time.sleep(0.05)
        process.kill()
        process.wait()
    tail = (home / "superlink.log").read_text(errors="replace")[-2000:]
    raise SystemExit(f"Flower's SuperLink did not start; its last words:\n{tail}")


def _flower(*arguments: str) -> None:
    from flwr.cli.app import app

    app(list(arguments), standalone_mode=False)


def _adopt_orphans() -> None:
    """Makes this process, and not process 1, the parent of what its children leave behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _end(home: Path, grace_seconds: float, code: int) -> NoReturn:
    """Ends and reaps all other processes of the launch, removes its folder, and this process."""
    stop(f"FLWR_HOME={home}", grace_seconds)
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass
    shutil.rmtree(home, ignore_errors=True)
    os._exit(code)  # spares a second of tidying up what is thrown away


def _end_with_parent(home: Path) -> None:
    while os.read(0, 4096):
        pass
    _end(home, GRACE_SECONDS, 1)


def _run(home: Path, federation: str) -> None:
    port = _superlink(home)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n'
        f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    settings = ("--run-config", str(home / "run.toml"), "--federation-config", federation)
    _flower("run", str(home / "app"), CONNECTION, *settings, "--stream")
    print(f"\n{STATUS_MARK}", flush=True)
    _flower("list", CONNECTION, "--format", "json")


def main(home: Path, federation: str) -> NoReturn:
    """Runs the app in ``home/app`` with ``home/run.toml``; prints log and status.

    Args:
        home: the private folder of this launch; also ``FLWR_HOME``.
        federation: Flower's federation config, such as ``num-supernodes=2``.
    """
    _adopt_orphans()
    threading.Thread(target=_end_with_parent, args=(home,), daemon=True).start()
    code = 1
    try:
        _run(home, federation)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        _end(home, 0.0, code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
