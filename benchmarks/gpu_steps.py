"""Training steps that `benchmarks.gpu` times: ours, and the recipe that is usual elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from core.data.cached_case import Entry
from core.data.geometry import Geometry
from core.models.blocks import InstanceNorm
from core.models.convolution import Convolution
from core.organs.vocabulary import NINE
from core.plan.schema import Augment, Model, Plan, Preprocess, Train
from core.training.engine import part_losses
from core.training.losses import LossWeights
from core.training.memory import to_device
from core.training.optimisation import Proximal, make_optimiser, make_scaler, take_step

SPACING_MM = (3.0, 1.5, 1.25)
DYNUNET = {  # the default network's widths and depth
    "kernel_size": [[3, 3, 3]] * 4,
    "strides": [[1, 1, 1]] + [[2, 2, 2]] * 3,
    "upsample_kernel_size": [[2, 2, 2]] * 3,
    "filters": [16, 32, 64, 128],
    "res_block": True,
}
NETWORKS = {
    "res3dunet": Model(),
    "unetr": Model(name="unetr"),
    "MONAI DynUNet": Model(name="DynUNet", args=DYNUNET),
}


def plan_of(model: Model, crop: Sequence[int], train: Train) -> Plan:
    """The default plan at a crop, with this network and these settings of training."""
    preprocess = Preprocess(spacing_mm=list(SPACING_MM), crop=list(crop))
    return Plan(preprocess=preprocess, augment=Augment(probability=1.0), model=model, train=train)


def cases(folder: Path, crop: Sequence[int], count: int) -> list[Entry]:
    """Writes prepared cases as a cache holds them: noise, and nine boxes that are brighter."""
    size = (crop[0], crop[1], crop[2])
    grid = Geometry(size, SPACING_MM)
    found = []
    for i in range(count):
        rng = np.random.default_rng(i)
        image = rng.normal(0, 30, size)
        table: dict[str, object] = {}
        pieces: list[npt.NDArray[np.uint8]] = []
        for organ in range(len(NINE)):
            low = [int(n * (organ + rng.random()) / 12) for n in size]
            box = tuple(slice(a, a + max(2, n // 6)) for a, n in zip(low, size, strict=True))
            image[box] += 20 * (organ + 1)
            ends = [[b.start, b.stop] for b in box]
            first = sum(map(len, pieces))
            table[NINE[organ]] = {"box": ends, "first": first}
            pieces.append(np.full(image[box].size, 255, dtype=np.uint8))
        own = folder / str(i)
        own.mkdir()
        np.save(own / "image.npy", np.clip(image, -200, 300).astype(np.int16))
        np.save(own / "shares.npy", np.concatenate(pieces))
        (own / "entry.json").write_text(json.dumps({"shares": table}))
        voxels = {o: len(piece) for o, piece in zip(NINE, pieces, strict=True)}
        names, total = tuple(NINE), int(np.prod(size))
        known = frozenset(names)
        found.append(Entry(f"c{i}", "train", own, names, known, grid, grid, voxels, total, 0))
    return found


@dataclass
class Steps:
    """Training steps on a batch that lies on the device; calling takes one and waits for it."""

    model: nn.Module
    batch: dict[str, Tensor]
    take: Callable[[], object]

    def __call__(self) -> None:
        """One step, to its end."""
        self.take()
        wait(self.batch["image"].device)

    def memory_gb(self) -> float:
        """The most memory that a step takes beyond what lies on the GPU already, in GB."""
        device = self.batch["image"].device
        self()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        self()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e9


def our_steps(model: nn.Module, plan: Plan, batch: dict[str, Tensor]) -> Steps:
    """Steps as `core.training.engine.train` takes them."""
    device = batch["image"].device
    to_device(model, device, plan.model.channels_last).train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimiser = make_optimiser(plan.train, list(trained.values()))
    scaler, pull = make_scaler(plan.train, device), Proximal(trained, None)

    def take() -> None:
        losses = part_losses(model, batch, plan, LossWeights(), [])
        take_step(losses, optimiser, scaler, pull, plan.train.clip_norm)

    return Steps(model, batch, take)


def naive_loss() -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy and MONAI's losses of one-hot maps, of logits and a label map (B, 1, ...)."""
    from monai.losses.dice import DiceLoss, GeneralizedDiceLoss
    from monai.losses.focal_loss import FocalLoss

    terms: list[Callable[[Tensor, Tensor], Any]] = [
        DiceLoss(to_onehot_y=True, softmax=True),
        GeneralizedDiceLoss(to_onehot_y=True, softmax=True),
        FocalLoss(to_onehot_y=True, use_softmax=True),
    ]

    def loss(logits: Tensor, label: Tensor) -> Tensor:
        total: Tensor = nn.functional.cross_entropy(logits, label[:, 0])
        for term in terms:
            total = total + term(logits, label)
        return total

    return loss


def label_map(shares: Tensor) -> Tensor:
    """Hard labels (B, 1, Z, Y, X), int64, of shares (B, C, Z, Y, X) in 255ths."""
    rest = 255 - shares.sum(dim=1, keepdim=True, dtype=torch.uint8)
    return torch.cat((rest, shares), dim=1).argmax(dim=1, keepdim=True)


def usual_layers(model: nn.Module) -> nn.Module:
    """The same network, in place, of torch's own convolutions and instance norms."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, InstanceNorm):
                norm = nn.InstanceNorm3d(child.num_channels, child.eps, affine=True)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm)
            elif isinstance(child, Convolution):
                child.__class__ = nn.Conv3d  # type: ignore[assignment]
    return model


def naive_steps(model: nn.Module, batch: dict[str, Tensor]) -> Steps:
    """Steps in fp32 with MONAI's losses of one-hot maps, and the loss read in each."""
    device = batch["image"].device
    usual_layers(model).to(device).train()
    optimiser, loss_of = torch.optim.AdamW(model.parameters(), lr=2e-3), naive_loss()

    def take() -> float:
        optimiser.zero_grad()
        loss: Any = loss_of(model(batch["image"]), label_map(batch["label"]))
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return Steps(model, batch, take)


def wait(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
