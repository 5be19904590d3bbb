"""Work on many cases in several processes, which end with the one that started them."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from core.archives.formats.table import FORMATS, FORMATS_IN
from core.errors import UserError
from core.processes import end_with_parent, leave_if_told

Item = TypeVar("Item")
Result = TypeVar("Result")
WATCH_SECONDS = 0.5
PRELOADED = (
    "core.data.cache",
    "hnfed.check.case_check",
    *(f"{FORMATS_IN}.{name}" for name in FORMATS),
)
_job: Callable[[Any], Any] | None = None


def each(
    job: Callable[[Item], Result],
    items: Sequence[Item],
    jobs: int = 1,
    preload: Sequence[str] = PRELOADED,
) -> Iterator[tuple[int, Result]]:
    """Calls `job` on each item, in `jobs` processes, and yields results as they come.

    Workers leave when the process that started them has gone, however and whenever it ended.

    Args:
        job: can be pickled (a function of a module, or a `functools.partial` of one).
        items: what it is called on.
        jobs: processes; 1 works in this one.
        preload: modules that the job needs, loaded once for all workers.

    Yields:
        Index of the item, and what `job` returned.

    Raises:
        UserError: a worker died.
    """
    if jobs <= 1 or len(items) <= 1:
        for index, item in enumerate(items):
            leave_if_told()
            yield index, job(item)
        return
    context = get_context("forkserver")  # imports once, in a process without threads
    context.set_forkserver_preload(list(preload))
    pool = ProcessPoolExecutor(
        min(jobs, len(items)),
        mp_context=context,
        initializer=_begin,
        initargs=(job, os.getpid(), _umask()),
    )
    try:
        index_of: dict[Future[Result], int] = {
            pool.submit(_call, item): index for index, item in enumerate(items)
        }
        for future in as_completed(index_of):
            yield index_of[future], future.result()
    except BrokenProcessPool as error:
        remedy = "run the command again: what is done is kept; with fewer --jobs if memory is short"
        raise UserError("--jobs", jobs, remedy, problem="a worker process died") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def cpus() -> int:
    """CPUs that this process may use, at least 1: those it is bound to, within its group's quota.

    A machine's number of CPUs is not asked for: a batch system or a container gives less.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min(bound or 1, _quota())))


def _quota(groups: Path = Path("/sys/fs/cgroup"), of: Path = Path("/proc/self/cgroup")) -> float:
    """CPUs that this process's control group and those above it leave it; infinite without one.

    Args:
        groups: where the groups of the kernel are mounted, of version 1 or 2.
        of: which groups this process is in.
    """
    least = math.inf
    try:
        lines = of.read_text(encoding="utf-8").splitlines()
    except OSError:
        return least
    for line in lines:
        _, kinds, name = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        root = groups / kinds
        group = root / name.lstrip("/")
        for folder in (group, *group.parents):
            least = min(least, _limit(folder))
            if folder == root:
                break
    return least


def _limit(folder: Path) -> float:
    """CPUs that one control group allows: version 2 has one file, version 1 two."""
    try:
        if (folder / "cpu.max").is_file():
            most, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            most, period = ((folder / n).read_text(encoding="ascii") for n in names)
        return int(most) / int(period) if int(most) > 0 else math.inf
    except (OSError, ValueError):  # no such file, or no limit, which is written as "max"
        return math.inf


def _umask() -> int:
    """This process's own, which its workers take over: what forks them may have begun before."""
    now = os.umask(0o077)
    os.umask(now)
    return now


def _begin(job: Callable[[Any], Any], parent: int, umask: int) -> None:
    global _job
    _job = job
    os.umask(umask)
    end_with_parent()  # the server that forks workers ends when the process ends that started it
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _call(item: Any) -> Any:
    assert _job is not None
    return _job(item)


def _leave_with(parent: int) -> None:
    while True:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(WATCH_SECONDS)
