"""The server's memory in a round of 3 and of 30 sites, with weights of 100 MB.

Sites that compute nothing answer one by one, from a process of their own. What is measured is the
memory that the server's process owns (resident and anonymous, sampled), beyond what it owned when
the run began, in units of the weights.

python -m benchmarks.server_memory [--sites N [N ...]] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.light_site import answer, described
from benchmarks.measure import AtMost, report, row
from core.plan.load import plan_json
from core.plan.schema import Augment, Federation, Model, Phase, Plan, Preprocess
from core.wire.partition import size_bytes, start_state
from hnfed.deploy.superlink import MALLOC
from server.app import app
from server.exchange import record_of
from simulations.inline import run_inline

SITES, ROUNDS = (3, 30), 2
# Times the weights: the order and the reply as Flower holds them, the reply once more in the pipe
# from this benchmark's sites; the rest is the server's own.
MOST = AtMost(6.0)
FLAT = AtMost(1.1)


def plan_of(sites: int) -> Plan:
    """A plan of one shared phase with a network of 100 MB."""
    names = [f"s{i:02}" for i in range(sites)]
    organs = ["Brainstem", "Parotid_L"]
    return Plan(
        preprocess=Preprocess(spacing_mm=[8.0, 8.0, 8.0], crop=[32, 32, 32]),
        augment=Augment(enabled=False),
        model=Model(channels=[32, 64, 128, 256, 480]),
        phases=[Phase(name="p", sites=names, organs=organs, rounds=ROUNDS, patience=10**6)],
        federation=Federation(min_cell=1),
    )


def app_of(plan: Plan, pool: ProcessPoolExecutor) -> ClientApp:
    """An app whose sites answer from another process."""
    sites = ClientApp()

    def name(context: Context) -> str:
        return plan.site_names[int(context.node_config["partition-id"])]

    def query(message: Message, context: Context) -> Message:
        header, metrics = described(name(context), plan)
        return _reply(message, header, metrics, b"")

    def work(message: Message, context: Context) -> Message:
        parcels = [r for r in message.content.values() if isinstance(r, ArrayRecord)]
        parcel = next(iter(parcels[0].values())).data if parcels else b""
        order = dict(message.content.config_records["order"])
        return _reply(message, *pool.submit(answer, name(context), plan, order, parcel).result())

    sites.query()(query)
    sites.train()(work)
    sites.evaluate()(work)
    return sites


def _reply(
    message: Message, header: dict[str, Any], metrics: dict[str, Any], parcel: bytes
) -> Message:
    content: dict[str, Any] = {"header": ConfigRecord(header), "metrics": MetricRecord(metrics)}
    records = RecordDict(content | ({"arrays": record_of(parcel)} if parcel else {}))
    return Message(records, reply_to=message)


def owned_mb() -> float:
    """Anonymous resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1e3


def measured(sites: int) -> dict[str, float]:
    """Runs the rounds in this process; returns sizes in MB and seconds a round."""
    plan = plan_of(sites)
    small = replace(plan_of(1), model=Model(channels=[4, 8]))
    weights = size_bytes(state := start_state(plan, plan.phases[0], None), list(state)) / 1e6
    del state
    context = multiprocessing.get_context("spawn")
    over = threading.Event()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, context) as pool:
        out = Path(folder) / "run"
        config = {"plan": plan_json(plan), "run_id": "r", "out": str(out), "resume": ""}
        config |= {"tracking": "", "local": ""}
        run_inline(app, app_of(small, pool), config | {"plan": plan_json(small)}, 1)  # imports
        shutil.rmtree(out)
        before = peak = owned_mb()

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.005):
                peak = max(peak, owned_mb())

        thread = threading.Thread(target=watch)
        thread.start()
        begun = time.monotonic()
        try:
            run_inline(app, app_of(plan, pool), config, sites)
        finally:
            over.set()
            thread.join()
        seconds = (time.monotonic() - begun) / ROUNDS
    return {"weights_mb": weights, "peak_mb": peak - before, "seconds": seconds}


def main() -> int:
    """Prints the rows; each number of sites in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=list(SITES))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one)))
        return 0
    rows: list[dict[str, Any]] = []
    peaks: list[float] = []
    for sites in options.sites:
        command = [sys.executable, "-m", "benchmarks.server_memory", "--one", str(sites)]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | MALLOC
        )
        found = json.loads(done.stdout.splitlines()[-1])
        sizes = found["peak_mb"] / found["weights_mb"]
        against = f"weights of {found['weights_mb']:.0f} MB"
        rows.append(
            row(f"server, {sites} sites: memory", found["peak_mb"], "MB", against, sizes, MOST)
        )
        rows.append(row(f"server, {sites} sites: a round", found["seconds"], "s"))
        peaks.append(found["peak_mb"])
    growth = peaks[-1] / peaks[0]
    name = f"server, {options.sites[0]} -> {options.sites[-1]} sites: memory"
    rows.append(row(name, peaks[-1], "MB", f"{peaks[0]:.0f} MB", growth, FLAT))
    report(rows, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
