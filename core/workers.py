"""Work on many cases in several processes, which end with the one that started them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from core.errors import UserError
from core.service import leave_if_told

Item = TypeVar("Item")
Result = TypeVar("Result")
WATCH_SECONDS = 0.5
PRELOADED = ["core.data.cache", "core.check_case"]
_job: Callable[[Any], Any] | None = None


def each(
    job: Callable[[Item], Result], items: Sequence[Item], jobs: int = 1
) -> Iterator[tuple[int, Result]]:
    """Calls `job` on each item, in `jobs` processes, and yields results as they come.

    Workers leave when the process that started them has gone, however it ended.

    Args:
        job: can be pickled (a function of a module, or a `functools.partial` of one).
        items: what it is called on.
        jobs: processes; 1 works in this one.

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
    context.set_forkserver_preload(PRELOADED)
    pool = ProcessPoolExecutor(
        min(jobs, len(items)),
        mp_context=context,
        initializer=_begin,
        initargs=(job, os.getpid()),
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


def _begin(job: Callable[[Any], Any], parent: int) -> None:
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _call(item: Any) -> Any:
    assert _job is not None
    return _job(item)


def _leave_with(parent: int) -> None:
    while True:
        time.sleep(WATCH_SECONDS)
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os._exit(1)
