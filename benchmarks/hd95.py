"""HD95 of nine organs of one case against MONAI, on a whole CT, with far islands, and on a crop.

Both compute the larger of the two directed 95th percentiles over border voxels.

python -m benchmarks.hd95 [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.networks.utils import one_hot
from scipy.ndimage import map_coordinates

from benchmarks.measure import report, row, seconds
from core.metrics.scores import score_case

RADII_MM = (16, 34, 4, 4, 5, 18, 18, 11, 11)  # nine organs, about the true sizes
ORGANS = tuple(f"organ {i + 1}" for i in range(len(RADII_MM)))
FULL = ((140, 512, 512), (3.0, 1.0, 1.0), 100.0)
CROP = ((96, 128, 224), (3.0, 1.5, 1.25), 15.0)
QUICK = ((40, 96, 96), (3.0, 2.0, 2.0), 1.0)
Labels = npt.NDArray[np.uint8]


def case(
    shape: Sequence[int], spacing_mm: Sequence[float], *, islands: bool, seed: int = 0
) -> tuple[Labels, Labels]:
    """Returns (prediction, truth): ellipsoids, and a smooth warp of them by a few mm."""
    random = np.random.default_rng(seed)
    grid = np.meshgrid(
        *[np.arange(n) * s for n, s in zip(shape, spacing_mm, strict=True)],
        indexing="ij",
        sparse=True,
    )
    extent = np.array(shape) * np.array(spacing_mm)
    truth = np.zeros(shape, dtype=np.uint8)
    for label, radius in enumerate(RADII_MM, start=1):
        reach = np.minimum(90.0, 0.3 * extent)  # a head lies around the middle of the scan
        centre = extent / 2 + random.uniform(-reach, reach)
        axes = radius * random.uniform(0.7, 1.3, 3)
        inside = sum(((g - c) / a) ** 2 for g, c, a in zip(grid, centre, axes, strict=True)) < 1
        truth[inside] = label
    pred = _warp(truth, spacing_mm, random)
    if islands:
        for label in range(1, len(RADII_MM) + 1):
            z, y, x = (int(random.integers(0, n - 3)) for n in shape)
            pred[z : z + 2, y : y + 3, x : x + 3] = label
    return pred, truth


def _warp(truth: Labels, spacing_mm: Sequence[float], random: np.random.Generator) -> Labels:
    """Moves labels by a smooth field of about 2 mm (knots every 16 voxels), slab by slab."""
    knots = [n // 16 + 2 for n in truth.shape]
    fields = [random.normal(scale=2.0 / step, size=knots) for step in spacing_mm]
    pred = np.zeros_like(truth)
    for z in np.flatnonzero(truth.any(axis=(1, 2))):
        place = np.indices((1, *truth.shape[1:]), dtype=np.float32)
        place[0] += z
        moved = [
            axis + map_coordinates(field, place / 16, order=1)
            for axis, field in zip(place, fields, strict=True)
        ]
        pred[z] = map_coordinates(truth, moved, order=0)[0]
    return pred


def _mask(truth: Labels, label: int) -> npt.NDArray[np.bool_]:
    """One organ as the cache gives it: its box is written, the rest is untouched zero pages."""
    where = np.argwhere(truth == label)
    box = tuple(slice(a, b + 1) for a, b in zip(where.min(0), where.max(0), strict=True))
    mask = np.zeros(truth.shape, dtype=np.bool_)
    mask[box] = truth[box] == label
    return mask


def monai_hd95(pred: Labels, truth: Labels, spacing_mm: Sequence[float]) -> list[float]:
    """HD95 per organ as a MONAI user computes it from two label maps."""
    hot_pred, hot_truth = (
        one_hot(torch.from_numpy(m)[None, None], len(RADII_MM) + 1, dtype=torch.bool)
        for m in (pred, truth)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = compute_hausdorff_distance(
            hot_pred, hot_truth, percentile=95, spacing=tuple(spacing_mm)
        )
    return [float(v) for v in value[0]]


def rows(*, quick: bool = False, repeats: int = 3) -> list[dict[str, Any]]:
    """Measures both on each volume; asserts that the values agree to 1e-3 mm."""
    settings = [("full", FULL, False), ("full + islands", FULL, True), ("crop", CROP, False)]
    if quick:
        settings = [("quick", QUICK, False), ("quick + islands", QUICK, True)]
    found = []
    for name, (shape, spacing_mm, target), islands in settings:
        pred, truth = case(shape, spacing_mm, islands=islands)
        masks = {organ: _mask(truth, i) for i, organ in enumerate(ORGANS, start=1)}
        assert all(mask.any() for mask in masks.values())
        ours = score_case("case", pred, ORGANS, masks, spacing_mm, 1.0)
        theirs = dict(zip(ORGANS, monai_hd95(pred, truth, spacing_mm), strict=True))
        off = max(abs(s.hd95_mm - theirs[s.organ]) for s in ours if s.hd95_mm is not None)
        assert off < 1e-3, off

        def run_ours(p: Labels = pred, m: Any = masks, s: Any = spacing_mm) -> object:
            return score_case("case", p, ORGANS, m, s, 1.0)

        def run_monai(p: Labels = pred, t: Labels = truth, s: Any = spacing_mm) -> object:
            return monai_hd95(p, t, s)

        wall = seconds({"ours": run_ours, "monai": run_monai}, repeats)
        at = "x".join(map(str, shape))
        ratio = wall["monai"] / wall["ours"]
        found += [
            row(
                f"HD95, 9 organs, {name} {at}",
                wall["ours"],
                "s",
                f"MONAI from label maps ({wall['monai']:.3g} s)",
                ratio,
                target,
            ),
            row(f"HD95 {name}, largest difference", off, "mm", "MONAI"),
        ]
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small volumes, no targets")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    options = parser.parse_args()
    found = rows(quick=options.quick, repeats=options.repeats)
    report(found, options.json)


if __name__ == "__main__":
    main()
