"""A prepared case from the cache to tensors, against hits of MONAI's PersistentDataset.

Both read files that the system holds in memory, without augmentation, in CPU seconds of this
process, and give the image as float32 in [-1, 1], to the bit the same. MONAI writes tensors as they
are; three of its users:

- "the same tensors": image, and the shares of nine organs, a byte each, which training takes here;
- "one label map" beside the image instead, float32 as LoadImaged gives it: the usual, hard labels;
- "cropped last": the same, but the crop is a view of a whole CT, and torch.save writes all of it.

python -m benchmarks.cached_case [--crop Z Y X] [--repeats N] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data.dataset import PersistentDataset
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import SpatialCropd
from monai.transforms.transform import Transform
from torch import Tensor

from benchmarks import gpu_steps
from benchmarks.measure import report, row, seconds
from core.data.dataset import CropDataset
from core.organs.vocabulary import NINE
from core.plan.schema import Preprocess

CROP, CT = (96, 128, 224), (140, 512, 512)
REPEATS = 20
FASTER, SMALLER = 30.0, 30.0
Sample = Mapping[str, Tensor]


class Made(Transform):
    """What a user's loading and scaling end with: made here by a function, from a case's name."""

    def __init__(self, make: Callable[[], dict[str, Tensor]]) -> None:
        self.make = make

    def __call__(self, data: object) -> dict[str, Tensor]:
        """The tensors, whatever the case is called."""
        return self.make()


def label_map(shares: Tensor) -> Tensor:
    """(1, Z, Y, X) float32: the organ with the largest share of each voxel, 0 background."""
    return gpu_steps.label_map(shares[None])[0].float()


def in_a_ct(crop: Tensor, size: Sequence[int]) -> Tensor:
    """A volume (C, Z, Y, X) of a CT's size with the crop at its beginning."""
    whole = torch.zeros((crop.shape[0], *size))
    whole[:, : crop.shape[1], : crop.shape[2], : crop.shape[3]] = crop
    return whole


def users(sample: Sample, size: Sequence[int]) -> dict[str, Compose]:
    """Name -> the transforms of one of MONAI's users, who ends with `sample`."""
    image, label = sample["image"], label_map(sample["label"])
    usual = {"image": image, "label": label}
    crop = SpatialCropd(list(usual), roi_start=(0, 0, 0), roi_end=tuple(image.shape[1:]))
    whole = Made(lambda: {name: in_a_ct(value, size) for name, value in usual.items()})
    return {
        "the same tensors": Compose([Made(lambda: {"image": image, "label": sample["label"]})]),
        "one label map": Compose([Made(lambda: usual)]),
        "cropped last": Compose([whole, crop]),
    }


def rows(crop: Sequence[int], size: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Seconds and bytes beside each user's; asserts that the tensors are equal to the bit.

    Args:
        crop: of the network.
        size: of the CT that is cropped last, no smaller.
        repeats: timed reads of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        (entry,) = gpu_steps.cases(Path(folder), crop, 1)
        data = CropDataset([entry], NINE, None, Preprocess().window_hu, seed=0)
        sample = data[0]
        kept = {"ours": _bytes(entry.folder)}
        reads: dict[str, Callable[[], Any]] = {"ours": lambda: data[0]}
        for name, transforms in users(sample, size).items():
            own = Path(folder) / name
            theirs = PersistentDataset([{"case": entry.case}], transforms, own)
            for _ in ("written", "read"):
                _assert_equal(theirs[0], sample)
            kept[name] = _bytes(own)
            reads[name] = lambda d=theirs: d[0]  # type: ignore[misc]
        took = seconds(reads, repeats, cpu=True)
    mine, at = took.pop("ours"), "x".join(map(str, crop))
    found = []
    for name, theirs_s in took.items():
        told = f"MONAI, {name}"
        found += [
            row(
                f"cached case {at} against {name}",
                mine * 1000,
                "CPU ms",
                f"{told} ({theirs_s * 1000:.3g} ms)",
                theirs_s / mine,
                FASTER,
            ),
            row(
                f"its bytes against {name}",
                kept["ours"] / 1e6,
                "MB",
                f"{told} ({kept[name] / 1e6:.3g} MB)",
                kept[name] / kept["ours"],
                SMALLER,
            ),
        ]
    return found


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _assert_equal(theirs: Sample, ours: Sample) -> None:
    label = ours["label"] if theirs["label"].dtype == torch.uint8 else label_map(ours["label"])
    for name, value in (("image", ours["image"]), ("label", label)):
        assert theirs[name].dtype == value.dtype, (name, theirs[name].dtype)
        assert torch.equal(theirs[name], value), name


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crop", type=int, nargs=3, default=CROP, metavar=("Z", "Y", "X"))
    parser.add_argument("--ct", type=int, nargs=3, default=CT, metavar=("Z", "Y", "X"))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    options = parser.parse_args()
    report(rows(options.crop, options.ct, options.repeats), options.json)


if __name__ == "__main__":
    main()
