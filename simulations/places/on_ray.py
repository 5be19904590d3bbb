"""Cells as tasks on a running Ray cluster, each with the CPUs and GPUs that it uses."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulations.cluster import Cluster
from simulations.cluster_nodes import joined, python_path, require_shared
from simulations.places.cell_run import GRACE_SECONDS, CellRun
from simulations.places.place import Ending, Place, Task, write_note

NAME = "ray"
RETRIES = 5  # nodes that a cell may lose; it goes on elsewhere with what it has done


@contextmanager
def opened(out: Path, cluster: Cluster, most: Mapping[str, float]) -> Iterator[Place]:
    """The Ray cluster, joined by this process as long as this lasts.

    Args:
        out: folder of the cells, on a path that all nodes share.
        cluster: that answered.
        most: ``CPU`` and ``GPU`` of the cells that need most of them.

    Raises:
        UserError: it cannot be joined from here, or a node lacks what cells need.
    """
    require_shared(cluster, [out], [], most)
    before = dict(os.environ)
    heard = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    joining = cluster.environment(before)
    os.environ.clear()
    os.environ.update(joining)
    try:
        import ray

        joined(cluster, {"PYTHONPATH": python_path(), "PYTHONSAFEPATH": "1"})
        for number, handler in heard.items():  # Ray takes them
            signal.signal(number, handler)
        try:
            yield _place(ray, cluster)
        finally:
            ray.shutdown()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _place(ray: Any, cluster: Cluster) -> Place:
    run = ray.remote(run_cell)
    works: dict[str, Any] = {}

    def start(tasks: Sequence[Task]) -> None:
        for task in tasks:
            attempt = secrets.token_hex(8)
            note = {"place": NAME, "address": cluster.address, "attempt": attempt}
            write_note(task, "grid", note)
            needs = {"num_cpus": task.cpus, "num_gpus": task.gpus, "max_retries": RETRIES}
            works[task.name] = run.options(name=task.name, **needs).remote(CellRun(task, attempt))

    def ended(task: Task) -> Ending | None:
        work = works[task.name]
        ready, _ = ray.wait([work], timeout=0)
        if not ready:
            return None
        try:
            return int(ray.get(work))
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    def stop(tasks: Sequence[Task]) -> str:
        left = {task.name: works[task.name] for task in tasks if task.name in works}
        for work in left.values():
            ray.cancel(work)
        ray.wait(list(left.values()), num_returns=len(left), timeout=GRACE_SECONDS)
        return f"ended: {', '.join(left)}; the same command goes on with them"

    return Place(NAME, None, False, start, ended, stop)


def run_cell(run: CellRun) -> int:
    """What a task of Ray's does on its node."""
    return run()
