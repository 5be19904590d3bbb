"""One local epoch beside its bare network steps: reading, augmenting, copying, counting.

python -m benchmarks.local_epoch [--crop Z Y X] [--cases N] [--repeats N] [--json FILE]

An epoch of the default plan over prepared cases against as many steps on one sample that lies in
memory, in turn, in CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_steps import NETWORKS, cases, our_steps, plan_of
from benchmarks.measure import AtMost, report, row, seconds
from core.data.dataset import CropDataset
from core.models.build import build
from core.organs.vocabulary import NINE
from core.plan.schema import Phase, Train
from core.training.engine import Epochs, train

CROP, CASES, REPEATS = (48, 64, 112), 4, 3
TARGET = AtMost(0.05)


def rows(crop: Sequence[int], count: int, repeats: int) -> list[dict[str, Any]]:
    """The row, on cases that are made for it."""
    settings, device = NETWORKS["res3dunet"], torch.device("cpu")
    plan = plan_of(settings, crop, Train())
    phase = Phase(name="p", organs=list(NINE), rounds=1)
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        entries = cases(Path(folder), crop, count)
        model, bare = (build(settings, len(NINE), crop) for _ in range(2))
        data = CropDataset(entries, NINE, None, plan.preprocess.window_hu, seed=0)
        steps = our_steps(bare, plan, {name: value[None] for name, value in data[0].items()})

        def epoch() -> None:
            train(model, entries, plan, phase, device, Epochs(next(numbers), 1, seed=0))

        def bare_steps() -> None:
            for _ in range(count):
                steps()

        best = seconds({"epoch": epoch, "bare": bare_steps}, repeats, cpu=True)
    more = best["epoch"] / best["bare"] - 1
    name = f"local epoch of {count} cases, {' x '.join(map(str, crop))}"
    return [row(name, best["epoch"], "CPU s", f"{best['bare']:.4g} s of steps", more, TARGET)]


def main() -> int:
    """Prints the row; 1 where the target is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crop", type=int, nargs=3, default=CROP, metavar=("Z", "Y", "X"))
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--json", type=Path, help="merge the row into this benchmarks.json")
    options = parser.parse_args()
    found = rows(options.crop, options.cases, options.repeats)
    return report(found, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
