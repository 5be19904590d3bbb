"""The same by Flower's own simulation: `run_simulation` on Ray, FedAvg, one client at a time."""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers.task import ROUNDS, SITES, VOLUMES, Network, checksum, epoch

client, server = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch."""
    state = message.content.array_records["arrays"].to_torch_state_dict()
    trained = epoch(state, int(context.node_config["partition-id"]))
    metrics = MetricRecord({"num-examples": VOLUMES})
    content = RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics})
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=SITES, min_available_nodes=SITES)
    start = ArrayRecord(Network().state_dict())
    result = strategy.start(grid, start, num_rounds=ROUNDS)
    checksum(result.arrays.to_torch_state_dict())


if __name__ == "__main__":
    resources: dict[str, Any] = {"num_cpus": 2, "num_gpus": 0.0}
    run_simulation(server, client, SITES, backend_config={"client_resources": resources})
