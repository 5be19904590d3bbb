"""What has left a site, a line each, in one file that only grows.

The file lies in the site's state folder, out of reach of the code that trains. A line is there,
on the disk, before what it tells of goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hnfed.guard.outbox import CONFIG, NUMBERS

RECEIPTS = "receipts.jsonl"


def write_receipt(
    state: Path,
    run: str,
    kind: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Adds a line to the site's receipts: what leaves, in how many bytes, and its SHA-256.

    Args:
        state: the site's state folder.
        run: checked id of the run; "" where it is not known.
        kind: query, train, evaluate, or error.
        config: settings that leave.
        metrics: numbers that leave.
        tensors: weights that leave.
    """
    digest = hashlib.sha256(json.dumps([dict(config), dict(metrics)], sort_keys=True).encode())
    listed: list[dict[str, Any]] = []
    for name in sorted(tensors):
        content = tensors[name].detach().cpu().contiguous().numpy().tobytes()
        digest.update(name.encode() + content)
        shape = list(tensors[name].shape)
        listed.append({"name": name, "shape": shape, "bytes": len(content)})
    line = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "run": run,
        "kind": kind,
        "scalars": {**config, **metrics},
        "tensors": listed,
        "bytes": sum(t["bytes"] for t in listed),
        "sha256": digest.hexdigest(),
    }
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(state / RECEIPTS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        torn = size > 0 and file.read(1) != b"\n"  # by a power cut
        file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_receipts(state: Path) -> dict[str, list[dict[str, Any]]]:
    """All receipts of a site, by run; those of earlier versions lie in the runs' folders."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in [*sorted(state.glob(f"*/{RECEIPTS}")), state / RECEIPTS]:
        if not path.is_file():
            continue
        for text in path.read_text(encoding="utf-8").splitlines():
            if text.endswith("}"):
                line = json.loads(text)
                found.setdefault(line.get("run", path.parent.name), []).append(line)
    return found


def summary(receipts: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What has left, a table for a person."""
    if not receipts:
        return "nothing has left: there is no receipt"
    lines = [f"{'run':<28}{'replies':>8}{'tensors':>9}{'MB':>10}  phases and rounds"]
    for run, rows in receipts.items():
        rounds: dict[str, int] = {}
        for row in rows:
            phase = str(row["scalars"].get("phase", "")) or row["kind"]
            rounds[phase] = max(rounds.get(phase, 0), int(row["scalars"].get("round", 0)))
        told = ", ".join(f"{phase} to {n}" if n else phase for phase, n in rounds.items())
        count = sum(len(row["tensors"]) for row in rows)
        size = sum(int(row["bytes"]) for row in rows) / 1e6
        lines.append(f"{run or '(unknown)':<28}{len(rows):>8}{count:>9}{size:>10.2f}  {told}")
    names = sorted({key for rows in receipts.values() for row in rows for key in row["scalars"]})
    lines += ["", "scalars that have left:"]
    width = max(map(len, names), default=0) + 2
    lines += [f"  {name:<{width}}{_meaning(name)}" for name in names]
    return "\n".join(lines)


def _meaning(name: str) -> str:
    if name.startswith("version."):
        return "of a library"
    if name.startswith("left_out."):
        return "how often that was the reason why something was left out (docs/data.md)"
    return (CONFIG | NUMBERS).get(name, "")  # one of an older version has no words here
