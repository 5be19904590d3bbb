"""Affine and elastic deformation of an image and its labels against MONAI's pair of transforms.

Both do an affine map and an elastic deformation of a crop. hnfed resamples once, the image as
sharply as by a cubic B-spline, and the shares of nine organs linearly; MONAI twice, as it is used:

- "as usual": the image linearly, one label map by the nearest voxel;
- "alike": the image by a cubic B-spline (which MONAI leaves to SciPy), nine shares linearly.

python -m benchmarks.augmentation [--crop Z Y X] [--json FILE]
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import report, row, seconds
from core.data.augment import augment
from core.plan.schema import Augment

CROP = (96, 128, 224)
SPACING_MM = (3.0, 1.5, 1.25)
FASTER = 9.0
USUAL, ALIKE = ("bilinear", "nearest"), (3, "bilinear")  # how MONAI samples image and label
# Deformation only: MONAI's pair has no intensity part.
SETTINGS = Augment(probability=1.0, noise=0.0, brightness=0.0, contrast=0.0, gamma=0.0)


def sample(crop: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a smooth image (1, Z, Y, X) in [-1, 1] and nine boxes as a label (Z, Y, X)."""
    axes = [torch.linspace(-3, 3, n) for n in crop]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    image = torch.sin(z) * torch.cos(2 * y) * torch.sin(3 * x)
    label = torch.zeros(tuple(crop), dtype=torch.uint8)
    for organ in range(9):
        box = tuple(slice(n * (organ + 1) // 12, n * (organ + 3) // 12) for n in crop)
        label[box] = organ + 1
    return image[None], label


def monai_pair(
    spacing_mm: Sequence[float] = SPACING_MM, mode: tuple[str | int, str] = USUAL
) -> Callable[[dict[str, torch.Tensor]], object]:
    """Returns MONAI's RandAffined and Rand3DElasticd with ranges like ours, in voxels of a grid.

    Args:
        spacing_mm: (z, y, x) of the crop.
        mode: how image and label are sampled; a number is the order of a spline.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.transforms.compose import Compose
        from monai.transforms.spatial.dictionary import Rand3DElasticd, RandAffined
    common: dict[str, Any] = {
        "keys": ("image", "label"),
        "mode": mode,
        "prob": 1.0,
        "padding_mode": "border",  # zero is tissue where air is -1
    }
    moved = [mm / step for mm, step in zip(SETTINGS.translate_mm, spacing_mm, strict=True)]
    affine = RandAffined(
        rotate_range=(0.14, 0.14, 0.14),
        scale_range=(0.1, 0.1, 0.1),
        translate_range=moved,
        **common,
    )
    elastic = Rand3DElasticd(sigma_range=(5.0, 7.0), magnitude_range=(50.0, 150.0), **common)
    return Compose([affine, elastic])


def run(crop: Sequence[int] = CROP, repeats: int = 3) -> list[dict[str, Any]]:
    """Times all, interleaved, and returns the rows of `benchmarks.json`."""
    image, label = sample(crop)
    seeds = iter(range(1_000_000))
    shares = torch.stack([(label == i).byte() * 255 for i in range(1, 10)])
    usual, alike = monai_pair(mode=USUAL), monai_pair(mode=ALIKE)
    variants: dict[str, Callable[[], object]] = {
        "hnfed": lambda: augment(image, shares, SETTINGS, SPACING_MM, next(seeds)),
        "as usual": lambda: usual({"image": image, "label": label[None]}),
        "alike": lambda: alike({"image": image, "label": shares.float()}),
    }
    rows = []
    for clock in ("wall", "cpu"):
        best = seconds(variants, repeats, cpu=clock == "cpu")
        for name in ("as usual", "alike"):
            against = f"MONAI RandAffined + Rand3DElasticd, {name} ({best[name]:.3g} s)"
            told = f"augmentation {'x'.join(map(str, crop))} {clock}, MONAI {name}"
            rows.append(row(told, best["hnfed"], "s", against, best[name] / best["hnfed"], FASTER))
    return rows


def main() -> None:
    """Prints the rows, and writes them with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crop", type=int, nargs=3, default=CROP)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = run(options.crop)
    report(rows, options.json)


if __name__ == "__main__":
    main()
