"""The plain loop over hnfed's own training: no Flower, no guard, no journal, no checkpoints.

It takes the prepared sites from `hnfed simulate`, in the place of the inline engine.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from benchmarks.peers.task import State, told
from client.local_epochs import Task
from client.tasks import evaluate, train_shared
from core.data.site import simulated_site
from core.plan.load import plan_from_json
from core.wire.messages import Order
from core.wire.partition import start_state
from core.wire.state import packed
from simulations import inline
from simulations.run import simulate


def plain(server: object, client: object, config: Mapping[str, str], count: int) -> None:
    """All rounds; the weights go to a file of the run folder."""
    plan = plan_from_json(config["plan"])
    (phase,) = plan.phases
    run, state = config["run_id"], start_state(plan, phase, None)
    for round_ in range(1, phase.rounds + 1):
        sums: State = {}
        total = 0
        for index in range(count):
            site = simulated_site(config["local"], index, run)
            told("begun")
            trained, result = train_shared(
                Task(site, plan, phase, Order(run, phase.name, round_, "train")), state
            )
            told("ended")
            total += result.cases
            for name, tensor in trained.items():
                sums[name] = sums.get(name, 0.0) + tensor.double() * result.cases
        state = {n: _as(state[n], t / total) for n, t in sums.items()}
    for index in range(count):
        site = simulated_site(config["local"], index, run)
        evaluate(Task(site, plan, phase, Order(run, phase.name, phase.rounds, "validate")), state)
    (Path(config["out"]) / "plain.safetensors").write_bytes(packed(state))


def _as(like: Tensor, tensor: Tensor) -> Tensor:
    return tensor.to(like.dtype)


if __name__ == "__main__":
    inline.run_inline = plain  # type: ignore[assignment]
    simulate(sys.argv[1], ["simulation.engine=inline"], Path(sys.argv[2]))
