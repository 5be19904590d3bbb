"""Flower's simulation engine, called in this process: no SuperLink, no port, no command line.

What it needs of Flower has no public name; all of that stands here, and a test names the version.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import Queue
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.config import get_fused_config_from_dir, get_project_config
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.telemetry import EventType

from simulations.released import Released, resolved

RUN_ID = 1
RAY_START_SECONDS = 120.0
# Of Ray's options for an actor: a site's process that dies is started again, as often as it takes,
# and its message is tried once more. What kills it twice costs the site this round.
REVIVED = {"max_restarts": -1, "max_task_retries": 1}


def run(
    app: Path,
    values: Mapping[str, str],
    *,
    sites: int,
    resources: Mapping[str, float],
    ray: Mapping[str, float],
    release: str = "",
) -> None:
    """Runs the apps of a folder to the end of the ServerApp; Ray is left as it is then.

    Args:
        app: folder with pyproject.toml and the packages that it names.
        values: run configuration; keys that pyproject.toml lacks are refused.
        sites: number of simulated sites.
        resources: ``num_cpus`` and ``num_gpus`` of one site.
        ray: ``num_cpus`` and where needed ``num_gpus`` of all.
        release: ``module:function`` that each reply passes before it leaves its site (see
            `simulations.released`); "" for none.

    Raises:
        Exception: what the ServerApp raised, or why Flower or Ray could not work.
    """
    parts: dict[str, str] = get_project_config(app)["tool"]["flwr"]["app"]["components"]
    run = _run_of(values)
    context = Context(
        run_id=RUN_ID,
        node_id=SUPERLINK_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=get_fused_config_from_dir(app, dict(values)),
    )
    outcome: Queue[BaseException | None] = Queue()
    client: ClientApp = load_app(parts["clientapp"], RuntimeError, app)
    server = _watched(load_app(parts["serverapp"], RuntimeError, app), outcome)
    settings: dict[str, Any] = {
        "num_supernodes": sites,
        "client_app": Released(client, resolved(release)) if release else client,
        "server_app": server,
        "server_app_context": context,
        "backend_config": {"client_resources": {**resources, **REVIVED}, "init_args": dict(ray)},
        "app_dir": str(app),
        "is_app": True,
        "run": run,
        "exit_event": EventType.FLWR_SIMULATION_RUN_LEAVE,
    }
    threading.Thread(target=_simulate, args=(settings, outcome), daemon=True).start()
    threading.Thread(target=_watch_start, args=(outcome,), daemon=True).start()
    error = outcome.get()
    if error is not None:
        raise error


def _run_of(values: Mapping[str, str]) -> Run:
    run = Run.create_empty(RUN_ID)
    run.primary_task_id = RUN_ID
    run.federation_id = NOOP_FEDERATION_ID
    run.override_config = dict(values)
    TaskIdentity.run_id = TaskIdentity.task_id = RUN_ID
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    return run


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


def _simulate(settings: Mapping[str, Any], outcome: Queue[BaseException | None]) -> None:
    try:
        _run_simulation(**settings)
    except BaseException as error:
        outcome.put(error.__cause__ or error)  # Flower wraps what it was
    else:
        outcome.put(RuntimeError("Flower's engine ended before the run did"))


def _watch_start(outcome: Queue[BaseException | None]) -> None:
    """A process of Ray's that hangs as it starts ends the launch."""
    import ray

    deadline = time.monotonic() + RAY_START_SECONDS
    while not ray.is_initialized():
        if time.monotonic() > deadline:
            outcome.put(TimeoutError(f"Ray did not start within {RAY_START_SECONDS:g} s"))
            return
        time.sleep(0.5)
