"""All of Flower that has no public name, on the simulation's side; a test names its version.

What only the engine on Ray needs is imported as it is used: it is slow to load.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
SERVER_NODE = 1
LOST_SECONDS = 120.0


def be(node: int) -> None:
    """Messages that this process makes from now on come from that node."""
    TaskIdentity.run_id = TaskIdentity.task_id = RUN_ID
    TaskIdentity.node_id = node


def empty_run() -> Run:
    """The one run that there is."""
    return Run.create_empty(RUN_ID)


def apps_of(folder: Path) -> tuple[ServerApp, ClientApp]:
    """The apps that a folder's pyproject.toml names; the folder comes first on the path."""
    from flwr.common.config import get_project_config
    from flwr.supercore.object_ref import load_app

    parts = get_project_config(folder)["tool"]["flwr"]["app"]["components"]
    server, client = (load_app(parts[n], RuntimeError, folder) for n in ("serverapp", "clientapp"))
    return server, client


def on_cluster(most: int) -> None:
    """From now on Flower's engine works on a Ray cluster that this process has joined.

    It starts a client wherever the cluster has room: at most `most` now. What no site needs would
    take memory and, on the loss of a node, the room of those that work. Until Ray takes a lost node
    for lost, some 15 to 45 s, its clients are unavailable: an order to one is given again.
    """
    import ray.exceptions
    from flwr.server.superlink.fleet.vce.backend import raybackend
    from flwr.simulation.ray_transport import ray_actor

    room, usual = ray_actor.pool_size_from_resources, raybackend.RayBackend

    def bounded(client_resources: dict[str, int | float]) -> int:
        return min(most, room(client_resources))

    class Patient(usual):  # type: ignore[misc, valid-type]
        """Flower's own, which waits for Ray to start a client of a lost node elsewhere."""

        def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
            deadline = time.monotonic() + LOST_SECONDS
            while True:
                try:
                    done: tuple[Message, Context] = super().process_message(message, context)
                    return done
                except ray.exceptions.ActorUnavailableError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(1.0)

    ray_actor.pool_size_from_resources = bounded
    raybackend.RayBackend = Patient  # type: ignore[misc]


def simulate(
    folder: Path,
    server: ServerApp,
    client: ClientApp,
    values: Mapping[str, str],
    sites: int,
    backend: Mapping[str, Mapping[str, float]],
) -> None:
    """Runs Flower's engine on Ray to its end.

    Args:
        folder: of the app, whose pyproject.toml names the keys of the run configuration.
        server: ServerApp.
        client: ClientApp.
        values: run configuration.
        sites: number of simulated sites.
        backend: ``client_resources`` (options of Ray's actors) and ``init_args`` (of `ray.init`).

    Raises:
        Exception: a key that pyproject.toml lacks, what the ServerApp or Ray raised.
    """
    from flwr.common.config import get_fused_config_from_dir
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.constant import NOOP_FEDERATION_ID
    from flwr.supercore.telemetry import EventType

    run = empty_run()
    run.primary_task_id = RUN_ID
    run.federation_id = NOOP_FEDERATION_ID
    run.override_config = dict(values)
    be(SUPERLINK_NODE_ID)
    context = Context(
        run_id=RUN_ID,
        node_id=SUPERLINK_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=get_fused_config_from_dir(folder, dict(values)),
    )
    _run_simulation(
        num_supernodes=sites,
        client_app=client,
        server_app=server,
        server_app_context=context,
        backend_config={key: dict(settings) for key, settings in backend.items()},
        app_dir=str(folder),
        is_app=True,
        run=run,
        exit_event=EventType.FLWR_SIMULATION_RUN_LEAVE,
    )
