"""How much of each organ lies inside the crop that is placed without labels.

python -m benchmarks.roi ARCHIVE
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.archives.archive import open_archive, read_case
from core.archives.masks import inside_fraction
from core.archives.preprocess import place_crop
from core.plan.schema import Preprocess

ORGANS = ("Brainstem", "Bone_Mandible", "Parotid_L", "Parotid_R", "Larynx", "Esophagus")
CROPS = (Preprocess(), Preprocess([3.0, 4.5, 4.5], [96, 48, 56]))


def recall(root: Path, settings: Preprocess, organs: Sequence[str] = ORGANS) -> dict[str, float]:
    """Measures the fraction of organ volume inside the crop.

    Args:
        root: folder of an archive.
        settings: spacing and size of the crop.
        organs: TG-263 names.

    Returns:
        Organ -> fraction over all cases together; "all" over all organs; "worst case" the smallest
        fraction of one case, all its organs but the oesophagus together.
    """
    archive = open_archive(root)
    volume = np.zeros(len(organs))
    inside = np.zeros(len(organs))
    worst = 1.0
    for ref in archive.cases:
        case, _ = read_case(archive, ref, organs)
        crop = place_crop(case.image, case.geometry, settings)
        ml, ml_inside = np.zeros(len(organs)), np.zeros(len(organs))
        for i, organ in enumerate(organs):
            if organ in case.masks:
                mask = case.masks[organ]
                ml[i] = mask.sum() * case.geometry.voxel_ml()
                ml_inside[i] = ml[i] * inside_fraction(mask, case.geometry, crop)
        volume += ml
        inside += ml_inside
        counted = [i for i, organ in enumerate(organs) if organ != "Esophagus"]
        if ml[counted].sum() > 0:
            worst = min(worst, float(ml_inside[counted].sum() / ml[counted].sum()))
    figures = {organ: float(b / a) for organ, a, b in zip(organs, volume, inside, strict=True) if a}
    return {**figures, "all": float(inside.sum() / volume.sum()), "worst case": worst}


def main() -> None:
    """Prints the fractions for the default crop and for the coarse one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    archive = parser.parse_args().archive
    for settings in CROPS:
        print(f"spacing {settings.spacing_mm} mm, crop {settings.crop}")
        for name, value in recall(archive, settings).items():
            print(f"  {name:14s} {value:8.4%}")


if __name__ == "__main__":
    main()
