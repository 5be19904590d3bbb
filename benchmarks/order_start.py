"""What an order at a site takes before the site's own work begins.

python -m benchmarks.order_start [--repeats N] [--json FILE]

From the start of a worker's process to the answer of this installation's app bundle to an order
that it refuses at once: libraries, walls, the bundle's code. Once with a process that begins with
the order, once with one that has waited for it, as between the orders of a run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import AtMost, report, row
from core.models.build import build
from core.organs.vocabulary import NINE
from core.packaging.app_bundle import staged_app
from core.plan.schema import Model, Preprocess
from hnfed.guard.closed import Limits, Workers
from hnfed.guard.log import Log
from hnfed.guard.sandbox import runtime_paths

REPEATS, TARGET = 3, AtMost(2.5)
MOST_SECONDS, MEMORY = 300.0, 8 << 30
SETTLED_SECONDS = 15.0  # between orders: a worker has its libraries by then


def order(workers: Workers, code: Path) -> float:
    """Seconds from the order to its answer."""
    task = {
        "kind": "query", "code": str(code), "devices": ["cpu"], "gpu_memory_share": 1.0,
        "records": {"order": {"run": "none"}}, "run_config": {}, "node_config": {},
    }  # fmt: skip
    begun = time.perf_counter()
    with workers.taken() as worker:
        walls = {
            "read": [str(path) for path in (*runtime_paths(), code)],
            "write": [str(worker.scratch)], "devices": [], "memory_bytes": MEMORY,
        }  # fmt: skip
        worker.work(task | {"walls": walls}, {}, Limits(MOST_SECONDS, 1000))
        return time.perf_counter() - begun


def rows(repeats: int, settled: float = SETTLED_SECONDS) -> list[dict[str, Any]]:
    """The least of each, and of building the default network once."""
    cold, warm = [], []
    with staged_app() as app, tempfile.TemporaryDirectory() as folder:
        workers = Workers(Path(folder) / "scratch", Log(Path(folder)))
        try:
            for _ in range(repeats):
                cold.append(order(workers, app))
                workers.get_ready()
                time.sleep(settled)
                warm.append(order(workers, app))
        finally:
            workers.close()
    begun = time.perf_counter()
    build(Model(), len(NINE), Preprocess().crop)
    network = time.perf_counter() - begun
    return [
        row("order at a new process", min(cold), "s", "goal", min(cold), TARGET),
        row("order at a process that waited", min(warm), "s", "goal", min(warm), TARGET),
        row("the default network, built once", network, "s"),
    ]


def main() -> int:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    options = parser.parse_args()
    found = rows(options.repeats)
    report(found, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
