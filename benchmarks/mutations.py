"""Damaged files of every kind that is read: each must be refused in words, or read.

python -m benchmarks.mutations --count 10000

Files are damaged by seed (`mutate`) and read as `hnfed check` and the plan's reader do, in a worker
process. Counted are exceptions that are no `UserError`, crashes of the worker, and readings that
take over 2 seconds or over 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measure import AtMost, report, row

SECONDS, MEGABYTES, HANG_SECONDS = 2.0, 1000.0, 30.0


@dataclass(frozen=True)
class Reading:
    """What became of one damaged file.

    Attributes:
        kind: of file.
        seed: of the damage.
        outcome: ``read``, ``refused``, ``unhandled``, ``crash`` or ``hang``.
        detail: reason code, or the exception.
        seconds: it took.
        megabytes: peak of memory above what the worker had before.
    """

    kind: str
    seed: int
    outcome: str
    detail: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0

    @property
    def bad(self) -> bool:
        """Whether it breaks the promise."""
        slow = self.seconds > SECONDS or self.megabytes > MEGABYTES
        return self.outcome not in ("read", "refused") or slow


def run(kinds: tuple[str, ...], first: int, count: int, folder: Path) -> Iterator[Reading]:
    """Damages and reads `count` files, kinds in turn, in worker processes that may die."""
    done = 0
    while done < count:
        before = done
        for reading in _worker(kinds, first + done, count - done, folder):
            done += 1
            yield reading
        if done == before:
            raise RuntimeError("the worker that reads damaged files does not start")


def _worker(kinds: tuple[str, ...], first: int, count: int, folder: Path) -> Iterator[Reading]:
    """One worker's readings, up to its end or its death; the last one says which."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.mutation_worker"]
    command += [str(folder), str(first), str(count), *kinds]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    seen = 0
    try:
        limit = HANG_SECONDS * 4  # the worker imports first
        while seen < count:
            ready = selector.select(limit)
            limit = HANG_SECONDS
            line = process.stdout.readline() if ready else ""
            if line.startswith("{"):
                seen += 1
                yield Reading(**json.loads(line))
            elif not line:
                seed = first + seen
                outcome = "crash" if ready else "hang"
                detail = f"exit {process.wait()}" if ready else f"over {HANG_SECONDS:g} s"
                if seen or not ready or process.wait() != 2:
                    yield Reading(kinds[seed % len(kinds)], seed, outcome, detail)
                return
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
        selector.close()


def main() -> int:
    """Reads the damaged files and prints what became of them; 1 where one broke the promise."""
    from benchmarks.mutation_worker import KINDS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    start = time.monotonic()
    table: dict[str, Counter[str]] = {kind: Counter() for kind in options.kinds}
    bad: list[Reading] = []
    slowest = largest = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        readings = run(tuple(options.kinds), options.seed, options.count, Path(scratch))
        for done, reading in enumerate(readings, start=1):
            table[reading.kind][reading.outcome] += 1
            slowest = max(slowest, reading.seconds)
            largest = max(largest, reading.megabytes)
            if reading.bad:
                bad.append(reading)
                print(f"BAD {json.dumps(asdict(reading))}", flush=True)
            if done % 1000 == 0:
                print(f"{done} of {options.count}", file=sys.stderr, flush=True)
    for kind, counts in table.items():
        print(f"{kind:<16} " + "  ".join(f"{k} {n}" for k, n in sorted(counts.items())))
    print(f"slowest {slowest:.2f} s, largest {largest:.0f} MB, {time.monotonic() - start:.0f} s")
    what = f"{options.count} damaged files"
    rows = [row("mutations: broken promises", len(bad), "", what, len(bad), AtMost(0))]
    report(rows, options.json)
    return int(bool(bad))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
