"""CPU threads of a simulated site's process: a phase of few sites leaves more of the cores to each.

Ray gives each process the threads of the CPUs that it counts for it, in all phases; where a phase
has fewer sites than run side by side, the other cores would stand idle.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from core.plan.schema import Plan


def threads_by_phase(plan: Plan, at_once: int, cores: int) -> dict[str, int]:
    """Phase -> threads of each site that trains in it.

    Args:
        plan: of the run.
        at_once: sites that run side by side.
        cores: of all sites together.

    Returns:
        {} where `train.threads` or OMP_NUM_THREADS says how many.
    """
    if plan.train.threads or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {p.name: max(1, cores // min(at_once, len(p.sites))) for p in plan.phases}


class Threaded(ClientApp):
    """Runs an app on each message with the threads of the message's phase.

    Args:
        app: the ClientApp.
        threads: by phase.
    """

    def __init__(self, app: ClientApp, threads: Mapping[str, int]) -> None:
        super().__init__()
        self._app = app
        self._threads = dict(threads)

    def __call__(self, message: Message, context: Context) -> Message:
        """Runs the app on a message; returns its reply."""
        order = message.content.get("order")
        phase = order.get("phase") if isinstance(order, ConfigRecord) else None
        if phase in self._threads:
            torch.set_num_threads(self._threads[phase])
        return self._app(message, context)
