"""Training samples from the cache, in an order and with an augmentation that the seed decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from core.data.augment import augment as augment_sample
from core.data.cached_case import Entry
from core.errors import UserError
from core.organs.vocabulary import mirrored
from core.organs.volumes import VOLUME_ML
from core.plan.schema import Augment


def scale_image(image_hu: npt.NDArray[np.int16], window_hu: Sequence[float]) -> Tensor:
    """Maps HU to the network's range: the window's ends become -1 and 1.

    Args:
        image_hu: (Z, Y, X), int16, clipped to the window.
        window_hu: lower and upper end.

    Returns:
        float32 (1, Z, Y, X), writable, shares no memory with `image_hu`.
    """
    low, high = window_hu
    scaled = torch.from_numpy(image_hu.astype(np.float32))
    return scaled.sub_((low + high) / 2).mul_(2 / (high - low)).clamp_(-1, 1).unsqueeze_(0)


def load_label(entry: Entry, organs: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Returns each organ's share of each voxel (C, Z, Y, X) in 255ths; the rest is background.

    No voxel's shares exceed 255: where organs overlap the smaller of the plan keeps its share, and
    a larger one has what is left (D16). Sizes are the typical volumes of `core.organs.volumes`, or
    for an organ that the table lacks its volume in this case.
    """

    def volume_ml(organ: str) -> float:
        if organ in VOLUME_ML:
            return VOLUME_ML[organ].typical
        return entry.voxels.get(organ, 0) * entry.crop.voxel_ml()

    label = np.zeros((len(organs), *entry.crop.size), dtype=np.uint8)
    left = np.full(entry.crop.size, 255, dtype=np.uint8)
    found = entry.shares(organs)
    for organ in sorted(found, key=volume_ml):
        box, shares = found[organ]
        label[organs.index(organ)][box] = np.minimum(shares, left[box])
        left[box] -= label[organs.index(organ)][box]
    return label


def mirror(
    image: Tensor, label: Tensor, annotated: Tensor, organs: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Exchanges left and right: the voxels, and with them the sides that organs are named after.

    An organ with a side whose partner is not among `organs` becomes one that is not annotated.

    Args:
        image: (1, Z, Y, X), X from right to left of the patient.
        label: (C, Z, Y, X) uint8, shares as from `load_label`.
        annotated: (C,) bool.
        organs: TG-263 names.

    Returns:
        New image, label and annotated.
    """
    partners = [mirrored(organ) for organ in organs]
    rows = [organs.index(p) if p in organs else -1 for p in partners]
    known = torch.tensor([row >= 0 and bool(annotated[row]) for row in rows])
    none = torch.zeros_like(label[0])
    moved = [label[row].flip(-1) if row >= 0 else none for row in rows]
    return image.flip(-1), torch.stack(moved), known


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a copy to a GPU is not waited for."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class CropDataset(Dataset[dict[str, Tensor]]):
    """One epoch over prepared cases.

    Args:
        entries: cases, from the cache.
        organs: organs of the phase.
        augment: random deformation and intensity, or None for none.
        window_hu: lower and upper end of the window.
        seed: decides order and augmentation, together with the epoch.
        epoch: number of the epoch.

    Items are ``image`` float32 (1, Z, Y, X) in [-1, 1], ``label`` uint8 (C, Z, Y, X) as from
    `load_label`, and ``annotated`` bool (C,).

    Attributes:
        device: where image and label are augmented and lie then; the CPU as it begins. The random
            numbers are the same.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        organs: Sequence[str],
        augment: Augment | None,
        window_hu: Sequence[float],
        seed: int,
        epoch: int = 0,
    ) -> None:
        missing = sorted({o for o in organs for e in entries if o not in e.organs})
        if missing:
            remedy = "prepare the archive for this plan: hnfed prepare SITE.yaml CONFIG"
            raise UserError("cache", ", ".join(missing), remedy, problem="organs not prepared")
        self.entries = tuple(entries)
        self.organs = tuple(organs)
        self.augment = augment if augment is not None and augment.enabled else None
        self.window_hu = (float(window_hu[0]), float(window_hu[1]))
        self.seed = seed
        self.device = torch.device("cpu")
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the augmentation of that epoch."""
        self.epoch = epoch
        rng = np.random.default_rng([_unsigned(self.seed), epoch])
        self.order = tuple(int(i) for i in rng.permutation(len(self.entries)))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        case = self.order[position]
        entry = self.entries[case]
        image = scale_image(entry.image(), self.window_hu)
        label = torch.from_numpy(load_label(entry, self.organs))
        annotated = torch.tensor([organ in entry.annotated for organ in self.organs])
        image, label = on_device(image, self.device), on_device(label, self.device)
        if self.augment is not None:
            seed = self.sample_seed(case)
            if np.random.default_rng([seed, 1]).random() < self.augment.mirror:
                image, label, annotated = mirror(image, label, annotated, self.organs)
            image, label = augment_sample(image, label, self.augment, entry.crop.spacing_mm, seed)
        return {"image": image, "label": label, "annotated": annotated}

    def sample_seed(self, case: int) -> int:
        """Returns the seed of a case's augmentation in this epoch; `case` counts in `entries`."""
        sequence = np.random.SeedSequence([_unsigned(self.seed), self.epoch, case])
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _unsigned(seed: int) -> int:
    return seed % 2**63
