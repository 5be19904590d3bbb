"""Flower's simulation engine, called in this process: no SuperLink, no port, no command line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Queue
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from simulations.cluster import Cluster
from simulations.cluster_nodes import joined, python_path
from simulations.flower import apps_of, on_cluster, simulate
from simulations.released import Released, resolved
from simulations.threads import Threaded

RAY_START_SECONDS = 120.0
# Of Ray's options for an actor: a site's process that dies is started again, as often as it takes,
# and its message is tried once more. What kills it twice costs the site this round.
REVIVED = {"max_restarts": -1, "max_task_retries": 1}
NOTHING: Mapping[str, Any] = {}


def run(
    app: Path,
    values: Mapping[str, str],
    *,
    sites: int,
    resources: Mapping[str, float],
    ray: Mapping[str, Any],
    around: Mapping[str, Any] = NOTHING,
) -> None:
    """Runs the apps of a folder to the end of the ServerApp; Ray is left as it is then.

    Args:
        app: folder with pyproject.toml and the packages that it names.
        values: run configuration; keys that pyproject.toml lacks are refused.
        sites: number of simulated sites.
        resources: ``num_cpus`` and ``num_gpus`` of one site.
        ray: ``num_cpus`` and where needed ``num_gpus`` of a Ray of this process's own; or of one
            that is joined ``cluster``, its fields, and ``variables`` of the environment there.
        around: what stands around a site's app: ``release``, a ``module:function`` that each reply
            passes before it leaves its site (see `simulations.released`); ``threads`` of a site's
            process, by phase (see `simulations.threads`).

    Raises:
        Exception: what the ServerApp raised, or why Flower or Ray could not work.
    """
    outcome: Queue[BaseException | None] = Queue()
    server, client = apps_of(app)
    watched = _watched(server, outcome)
    release, threads = around.get("release"), around.get("threads")
    sent = Released(client, resolved(release)) if release else client
    sent = Threaded(sent, threads) if threads else sent
    backend = {
        "client_resources": {**resources, **REVIVED},
        "init_args": {} if "cluster" in ray else ray,
    }

    def work() -> None:
        if "cluster" in ray:
            variables = {**ray["variables"], "PYTHONPATH": python_path()}
            joined(Cluster(**ray["cluster"]), variables)
            on_cluster(sites)
        simulate(app, watched, sent, values, sites, backend)

    threading.Thread(target=_tell, args=(work, outcome), daemon=True).start()
    threading.Thread(target=_watch_start, args=(outcome,), daemon=True).start()
    error = outcome.get()
    if error is not None:
        raise error


def _watched(app: ServerApp, outcome: Queue[BaseException | None]) -> ServerApp:
    """The app, which tells of its end: what Flower and Ray do after it need not be waited for."""
    watched = ServerApp()

    @watched.main()
    def main(grid: Grid, context: Context) -> None:
        error: BaseException | None = None
        try:
            app(grid, context)
        except BaseException as raised:
            error = raised
            raise
        finally:
            outcome.put(error)

    return watched


def _tell(work: Callable[[], None], outcome: Queue[BaseException | None]) -> None:
    try:
        work()
    except BaseException as error:
        outcome.put(_first_cause(error))
    else:
        outcome.put(RuntimeError("Flower's engine ended before the run did"))


def _first_cause(error: BaseException) -> BaseException:
    """What it was before Flower wrapped it, once or twice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _watch_start(outcome: Queue[BaseException | None]) -> None:
    """A process of Ray's that hangs as it starts ends the launch."""
    import ray

    deadline = time.monotonic() + RAY_START_SECONDS
    while not ray.is_initialized():
        if time.monotonic() > deadline:
            outcome.put(TimeoutError(f"Ray did not start within {RAY_START_SECONDS:g} s"))
            return
        time.sleep(0.5)
