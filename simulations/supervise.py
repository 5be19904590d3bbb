"""The child process of `simulations.launch`: one run of Flower's engine, and the end of it all.

Started by file name, so it imports only the standard library and, late, Flower. It runs the app,
whose log it prints as it comes, and ends everything when the run is over or its standard input
closes: that happens also when the parent is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

FAILED_MARK = "the run failed: "
GRACE_SECONDS = 3.0
PROC = Path("/proc")


def owned(mark: str, session: int = 0) -> set[int]:
    """Process ids that run with `mark` in their environment, or descend from such a process.

    Args:
        mark: an environment entry ``NAME=value`` that only our own children have.
        session: id of a session that is ours alone, whose processes count too: Ray's agents write
            their title over their environment, and what ends suddenly leaves them to process 1.

    Returns:
        Living processes (no zombies) except this one; empty where there is no ``/proc``.
    """
    parents: dict[int, int] = {}
    marked: set[int] = set()
    wanted = mark.encode()
    for folder in PROC.glob("[0-9]*"):
        try:
            told = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if told[0] in "ZX":
                continue
            parents[int(folder.name)] = int(told[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
            if wanted in environment or (session and int(told[3]) == session):
                marked.add(int(folder.name))
        except (OSError, ValueError):
            continue  # gone meanwhile, or another user's
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in marked} - marked
        marked |= more
        grown = bool(more)
    return marked - {os.getpid()}


def stop(mark: str, grace_seconds: float, session: int = 0) -> None:
    """Ends all processes of a launch: SIGTERM, and SIGKILL for what is left after the grace.

    Args:
        mark: see `owned`.
        grace_seconds: 0 sends SIGKILL at once.
        session: see `owned`.
    """
    deadline = time.monotonic() + grace_seconds
    asked: set[int] = set()
    for _ in range(2000):
        left = owned(mark, session)
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


def main(home: Path) -> NoReturn:
    """Runs the app in ``home/app`` as ``home/launch.json`` says; prints its log.

    The last line of a run that failed says why, after `FAILED_MARK`.

    Args:
        home: the private folder of this launch; also ``FLWR_HOME``.
    """
    _adopt_orphans()
    threading.Thread(target=_end_with_parent, args=(home,), daemon=True).start()
    code = 1
    try:
        from simulations import engine  # slow, and of no use to a launch that was given up

        settings = json.loads((home / "launch.json").read_text("utf-8"))
        engine.run(home / "app", settings.pop("values"), **settings)
        code = 0
    except BaseException as error:
        words = " ".join(str(error).split())
        print(f"\n{FAILED_MARK}{type(error).__name__}: {words}")
    finally:
        sys.stdout.flush()
        _end(home, 0.0, code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
