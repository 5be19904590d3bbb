"""All that `hnfed evaluate` measures of nine organs of a case against MONAI's separate calls.

Both begin with a predicted label map. MONAI's user makes one-hot maps once, then calls Dice, HD95,
surface Dice within 1 and within 2 mm, mean surface distance and volumes, each over all organs.
Definitions are the same: border voxels, each counted once (not areas), by their distances to the
other border; HD95 the larger of the two directed percentiles, the others over both borders.

python -m benchmarks.case_metrics [--quick] [--repeats N] [--json FILE]
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_dice import compute_surface_dice
from monai.metrics.surface_distance import compute_average_surface_distance
from monai.networks.utils import one_hot

from benchmarks.hd95 import FULL, ORGANS, QUICK, Labels, case
from benchmarks.measure import report, row, seconds
from core.metrics.scores import outlines
from hnfed.evaluate.measures import CaseMeasures, measure

MOST_OFF = 1e-3  # mm, mL or a share
UNITS = {
    "dice": "",
    "hd95_mm": "mm",
    "surface_dice_1mm": "",
    "surface_dice_2mm": "",
    "msd_mm": "mm",
    "volume_ml": "mL",
    "predicted_ml": "mL",
}


def ours(
    pred: Labels, truth: Mapping[str, npt.NDArray[np.bool_]], spacing_mm: Sequence[float]
) -> list[CaseMeasures]:
    """As `hnfed evaluate` measures a model's label map; `truth` by organ, as an archive has it."""
    drawn = outlines(pred, ORGANS)
    return [measure("case", o, drawn[o], truth[o], spacing_mm, 1.0) for o in ORGANS]


def monai(pred: Labels, truth: Labels, spacing_mm: Sequence[float]) -> dict[str, list[float]]:
    """The same by MONAI's functions: measure -> its value of each organ."""
    hot_pred, hot_truth = (
        one_hot(torch.from_numpy(m)[None, None], len(ORGANS) + 1, dtype=torch.bool)
        for m in (pred, truth)
    )
    pair, spacing = (hot_pred, hot_truth), tuple(spacing_mm)
    voxel_ml = math.prod(spacing_mm) / 1000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            "dice": compute_dice(*pair, include_background=False),
            "hd95_mm": compute_hausdorff_distance(*pair, percentile=95, spacing=spacing),
            "msd_mm": compute_average_surface_distance(*pair, symmetric=True, spacing=spacing),
        }
        for limit in (1.0, 2.0):
            limits = [limit] * len(ORGANS)
            near = compute_surface_dice(*pair, limits, spacing=spacing)
            found[f"surface_dice_{limit:.0f}mm"] = near
    for name, hot in (("volume_ml", hot_truth), ("predicted_ml", hot_pred)):
        found[name] = hot[:, 1:].sum(dim=(2, 3, 4)) * voxel_ml
    return {name: [float(v) for v in values[0]] for name, values in found.items()}


def rows(*, quick: bool = False, repeats: int = 1) -> list[dict[str, Any]]:
    """Measures both; asserts that no value of an organ is off by more than `MOST_OFF`."""
    shape, spacing_mm, _ = QUICK if quick else FULL
    pred, truth = case(shape, spacing_mm, islands=False)
    masks = {organ: truth == i for i, organ in enumerate(ORGANS, start=1)}
    theirs = monai(pred, truth, spacing_mm)
    told = ours(pred, masks, spacing_mm)
    off = {
        name: max(abs(getattr(s, name) - v) for s, v in zip(told, theirs[name], strict=True))
        for name in UNITS
    }
    assert max(off.values()) < MOST_OFF, off
    variants = {
        "ours": lambda: ours(pred, masks, spacing_mm),
        "monai": lambda: monai(pred, truth, spacing_mm),
    }
    wall = seconds(variants, repeats)
    cpu = seconds(variants, repeats, cpu=True)
    name = f"evaluate's measures, {'x'.join(map(str, shape))}"
    return [
        row(
            name,
            wall["ours"],
            "s",
            f"MONAI's calls ({wall['monai']:.3g} s)",
            wall["monai"] / wall["ours"],
            None if quick else 30.0,
        ),
        row(f"{name}, CPU", cpu["ours"], "CPU s", "MONAI's calls", cpu["monai"] / cpu["ours"]),
        *(
            row(f"evaluate's {n}, largest difference", off[n], unit, "MONAI")
            for n, unit in UNITS.items()
        ),
    ]


def main() -> int:
    """Prints the table; 1 where the target is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small volume, no target")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    options = parser.parse_args()
    return report(rows(quick=options.quick, repeats=options.repeats), options.json)


if __name__ == "__main__":
    raise SystemExit(main())
