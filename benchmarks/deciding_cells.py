"""The cells of the deciding experiment as one small file, whole or as far as they have come.

A cell: variant, fold, learning rate, seed, seconds, the code that made it, its validation Dice
after the last step, and after each scored number of steps the Dice of its test patients, an organ
beside the other.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.deciding_statistics import Floats
from client.scoring import ROUND_CASES
from core.errors import UserError
from core.files import plain_row, replace_file
from core.plan.load import plan_from_json
from simulations.cell import mean_dice, read_metrics, read_record

SCHEMA = 1
DIGITS = 4


@dataclass(frozen=True)
class Cell:
    """One fine-tuning.

    Attributes:
        arm: variant of the study.
        fold: which patients it is tested on.
        lr: learning rate, as the study names it; "" where there was none to choose.
        seed: of the run.
        organs: of the columns.
        test: Dice (patients, organs) by number of steps.
        cases: test patients, in the order of the rows.
        val: mean Dice over validation patients and organs after the last step; None where unknown.
    """

    arm: str
    fold: str
    lr: str
    seed: int
    organs: tuple[str, ...]
    test: Mapping[int, Floats]
    cases: tuple[str, ...]
    val: float | None


def collect(folder: Path, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the finished cells of a study's folder hold, as JSON.

    Args:
        folder: of `hnfed grid`.
        kept: an earlier answer; its cells that the folder does not hold stay.

    Raises:
        UserError: the folder holds no finished cell, and none was kept.
    """
    cells = dict((kept or {}).get("cells", {}))
    for path in sorted(folder.glob("*/cell.json")):
        if read_metrics(path.parent).get("status") == "completed":
            cells[path.parent.name] = _collected(path.parent)
    if not cells:
        remedy = "give the folder of `hnfed grid deciding`, once a cell is done"
        raise UserError("FOLDER", folder, remedy, problem="no finished cell in it")
    return {"schema": SCHEMA, "cells": dict(sorted(cells.items()))}


def _collected(folder: Path) -> dict[str, Any]:
    record = read_record(folder) or {}
    found = {k: record[k] for k in ("variant", "axes", "seed", "seconds", "commit", "fingerprints")}
    plan = plan_from_json(record["plan"])
    phase = plan.phases[-1]
    scores: dict[int, dict[str, dict[str, float]]] = {}
    for path in sorted(folder.glob(f"sites/*/{phase.name}/{ROUND_CASES}")):
        train = record["simulation"]["sites"][path.parent.parent.name]["splits"]["train"]
        a_round = phase.local_epochs * math.ceil(len(train) / plan.train.batch)
        with path.open(encoding="utf-8", newline="") as file:
            for row in map(plain_row, csv.DictReader(file)):
                cases = scores.setdefault(int(row["round"]) * a_round, {})
                cases.setdefault(row["case"], {})[row["organ"]] = float(row["dice"])
    if not scores:
        return found
    names = sorted(scores[min(scores)])
    dice = {
        str(step): [[round(cases[c][o], DIGITS) for o in phase.organs] for c in names]
        for step, cases in sorted(scores.items())
    }
    val = mean_dice(read_metrics(folder)["phases"][-1:], "val")
    return found | {"organs": list(phase.organs), "val": val, "cases": names, "dice": dice}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes what `collect` gave, a cell a line."""
    lines = [
        f" {json.dumps(name)}: {json.dumps(cell, separators=(',', ':'), allow_nan=False)}"
        for name, cell in content["cells"].items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    body = ",\n".join(lines)
    replace_file(path, f'{{"schema": {content["schema"]}, "cells": {{\n{body}\n}}}}\n')


def read(path: Path) -> dict[str, Any]:
    """A file of `write`, or a study's folder as it stands.

    Raises:
        UserError: neither.
    """
    if path.is_dir():
        return collect(path)
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] == SCHEMA and isinstance(content["cells"], dict):
            return content
    except (OSError, ValueError, KeyError, TypeError):
        pass
    remedy = "give the folder of `hnfed grid deciding`, or a file of `collect`"
    raise UserError("RESULTS", path, remedy, problem="no cells of the deciding experiment in it")


def cells_of(content: Mapping[str, Any]) -> Iterator[Cell]:
    """The fine-tunings among the cells; pretrainings have no scores by steps."""
    for one in content["cells"].values():
        if "dice" not in one:
            continue
        axes = one["axes"]
        yield Cell(
            arm=one["variant"],
            fold=str(axes.get("fold", "")),
            lr=str(axes.get("lr", "")),
            seed=int(one["seed"]),
            organs=tuple(one["organs"]),
            test={int(s): np.array(t, np.float64) for s, t in one["dice"].items()},
            cases=tuple(one["cases"]),
            val=one["val"],
        )
