"""Attacks on one reply: what a coordinator can make of weights; see `inversion`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from core.archives.case_writer import write_entry
from core.archives.images.volume import Volume
from core.data.cache import Recipe
from core.data.cached_case import Entry, open_entry
from core.data.dataset import load_label, scale_image
from core.data.geometry import Geometry
from core.models.stages import unique_state
from core.plan.schema import Augment, Loss, Model, Phase, Plan, Preprocess, Train
from core.training.engine import Epochs, train
from core.training.losses import LossWeights
from core.wire.messages import Order
from core.wire.partition import apply_freeze, frozen_in, load_state, network, parts_of, start_state
from simulations.phantom.cases import SIGNATURES
from simulations.phantom.scan import make_case

ORGANS = ["Brainstem", "Bone_Mandible", "Parotid_L", "Parotid_R"]
RES3DUNET = Model(channels=[8, 16], channels_last=False)
UNETR = Model(
    name="unetr",
    channels_last=False,
    args={"feature_size": 4, "hidden_size": 32, "mlp_dim": 32, "num_heads": 2},
)
MIX = Loss(ce=1.0, focal=0.0, dice=0.0, gdice=0.0, class_weight="none")
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Reply:
    """What the attacker holds.

    Attributes:
        plan: its own.
        before, after: what travelled to the site and back, by name; base included in `before`.
        labels: `targets_of` the cases, given to the attacker.
    """

    plan: Plan
    before: State
    after: State
    labels: Tensor


def patients(folder: Path, count: int, crop: Sequence[int], first: int = 0) -> list[Entry]:
    """Prepared crops of so many synthetic patients, numbered from `first`.

    Args:
        folder: for the entries.
        count: how many.
        crop: (z, y, x) voxels, over 256 mm along each axis.
        first: number of the first; other numbers are other patients.
    """
    settings = Preprocess(spacing_mm=[256.0 / n for n in crop], crop=list(crop))
    found = []
    for index in range(first, first + count):
        case = make_case(SIGNATURES["nyu"], np.random.default_rng([7, index]), (6.0, 4.0, 4.0))
        grid = Geometry(case.image.shape, case.spacing_mm, case.origin_mm)
        masks = {o: case.masks[o].astype(bool) for o in ORGANS}
        volume = Volume(f"{index}", case.image, grid, masks)
        key = f"{index}-{'x'.join(map(str, crop))}"
        (folder / "entries").mkdir(exist_ok=True)
        write_entry(folder / "entries" / key, volume, [], Recipe(ORGANS, settings), [], "")
        line = {"key": key, "case": f"{index}", "split": "train"}
        found.append(open_entry(folder, line, ORGANS))
    return found


def attack_plan(model: Model, crop: Sequence[int], freeze: str = "none", **train_: Any) -> Plan:
    """A plan of the attacker's: one phase, one round, plain cross entropy, no augmentation."""
    settings: dict[str, Any] = {
        "optimizer": "sgd",
        "momentum": 0.0,
        "lr": 1e-3,
        "weight_decay": 0.0,
    }
    settings |= {"schedule": "constant", "threads": 1, "deterministic": True}
    return Plan(
        preprocess=Preprocess(spacing_mm=[256.0 / n for n in crop], crop=list(crop)),
        augment=Augment(enabled=False),
        model=model,
        loss=MIX,
        train=Train(**(settings | train_)),
        phases=[Phase("p", ["site"], ORGANS, freeze=freeze, share="trainable")],
    )


def reply_of(
    plan: Plan,
    entries: Sequence[Entry],
    sent: State | None = None,
    class_weights: Sequence[float] | None = None,
) -> Reply:
    """What a site with these cases would send back for the first round of the plan.

    Args:
        plan: of the attacker.
        entries: training cases of the site.
        sent: weights that the attacker sends; by default those of the plan's seed.
        class_weights: from the frequencies that come with the order.
    """
    phase = plan.phases[0]
    model = network(plan, phase)
    before = dict(sent or start_state(plan, phase, None))
    load_state(model, before)
    apply_freeze(model, frozen_in(model, plan, phase, 1))
    epochs = Epochs(0, phase.local_epochs, 1, LossWeights(class_weights))
    train(model, entries, plan, replace(phase, rounds=1), "cpu", epochs)
    shared = parts_of(model, plan, phase).shared
    after = {n: v.detach().clone() for n, v in unique_state(model).items() if n in shared}
    return Reply(plan, before, after, targets_of(entries))


def targets_of(entries: Sequence[Entry]) -> Tensor:
    """Shares of background and organs in each voxel, (N, 1+C, Z, Y, X)."""
    organs = torch.stack([torch.from_numpy(load_label(e, ORGANS)) for e in entries]).float() / 255
    return torch.cat((1 - organs.sum(dim=1, keepdim=True), organs), dim=1)


def order_of(plan: Plan, frequencies: Sequence[float]) -> Order:
    """The order of the first round, with class frequencies of the attacker's."""
    voxels, totals = list(frequencies), [1.0] * len(frequencies)
    return Order("run", plan.phases[0].name, 1, "train", voxels=voxels, totals=totals)


def patches(reply: Reply) -> Tensor:
    """UNETR's input from the change of its two embeddings, (1, Z, Y, X).

    With D (patches, hidden) the gradient behind the embedding, that of the positions is D and that
    of the projection D^T X, where row p of X is patch p: X = pinv(D^T) (D^T X).

    Raises:
        KeyError: the embeddings were frozen and have not travelled.
    """
    name = "vit.patch_embedding."
    change = {n: v.double() - reply.before[n].double() for n, v in reply.after.items()}
    behind = change[name + "position_embeddings"][0]
    kernel = change[name + "patch_embeddings.weight"].flatten(1)
    rows = torch.linalg.pinv(behind.T, rtol=1e-6) @ kernel
    crop = reply.plan.preprocess.crop
    z, y, x = (n // 16 for n in crop)
    cubes = rows.reshape(z, y, x, 16, 16, 16).permute(0, 3, 1, 4, 2, 5)
    found: Tensor = cubes.reshape(1, *crop).float()
    return found


def placed(plan: Plan) -> dict[str, Tensor]:
    """Weights that make the last step up of a Res3DUNet tell of each voxel that its kernel reaches.

    The lowest level depends on the place alone, by the zeros round its grid, and so does all that
    is made of it on the way up. The CT itself goes through the finest skip to the head, where the
    probability of organ 1 rises with HU, and so does the gradient that comes back through the
    channel beside it (a norm takes from its own channel's gradient what is linear in that channel).
    """
    state = start_state(plan, plan.phases[0], None)
    last = len(plan.model.channels) - 1
    for level, weight, bias in ((f"down.{last}.", 0.0, 0.0), ("down.0.", 1.0, 3.0)):
        state[level + "shortcut.1.weight"].fill_(weight)
        state[level + "shortcut.1.bias"].fill_(bias)
    state[f"down.{last}.norm1.weight"].zero_()
    state[f"down.{last}.norm1.bias"].fill_(1.0)
    state["down.0.shortcut.0.weight"].fill_(1.0)
    for i in range(last - 1):  # the skips between say nothing
        for name in ("conv1", "shortcut.0"):
            state[f"up.{i}.block.{name}.weight"][:, plan.model.channels[last - 1 - i] :] = 0.0
    first, top = plan.model.channels[0], f"up.{last - 1}.block."
    for level in ("down.0.", top):
        state[level + "norm2.weight"].zero_()
        state[level + "norm2.bias"].zero_()
    through = state[top + "shortcut.0.weight"].zero_()
    through[0, first], through[1, 0] = 1.0, 1.0  # the CT, and the step up beside it
    state[top + "shortcut.1.weight"].fill_(1.0)
    state[top + "shortcut.1.bias"].fill_(3.0)
    state["head.weight"].zero_()[1, :2] = torch.tensor([1.0, 0.1])[:, None, None, None]
    state["head.bias"].fill_(-10.0)[:2] = torch.tensor([0.0, -3.0])
    return state


def blocks(reply: Reply) -> Tensor:
    """The loss's gradient behind the last step up, (1, Z, Y, X), as far as its kernel tells it.

    With P (channels, places) what goes into the step and D (places, block) what is wanted, the
    gradient of the step's kernel is P D; P is known, so the shortest D with it is pinv(P) (P D):
    all of D where there are as many channels as places, else a blurred one.
    """
    plan = reply.plan
    model = network(plan, plan.phases[0]).train()
    load_state(model, reply.before)
    caught: list[Tensor] = []
    last = len(plan.model.channels) - 2
    step = model.get_submodule(f"up.{last}.up")
    step.register_forward_pre_hook(lambda _, given: caught.append(given[0].detach()))
    with torch.no_grad():
        model(torch.zeros((1, 1, *plan.preprocess.crop)))
    name = f"up.{last}.up.weight"
    kernel = (reply.before[name] - reply.after[name]).double()[:, 0]  # (low, z, y, x)
    low = caught[0][0].double()
    behind = torch.linalg.pinv(low.flatten(1), rtol=1e-4) @ kernel.flatten(1)
    cubes = behind.reshape(*low.shape[1:], *kernel.shape[1:]).permute(0, 3, 1, 4, 2, 5)
    found: Tensor = cubes.reshape(1, *plan.preprocess.crop).float()
    return found


def matching(reply: Reply, steps: int, *, seed: int = 0, smooth: float = 0.02) -> Tensor:
    """Images whose gradient points where the reply points, (N, Z, Y, X), one a label.

    Args:
        reply: of the site.
        steps: of Adam on the images.
        seed: of the noise that they begin as.
        smooth: weight of the total variation.
    """
    plan, phase = reply.plan, reply.plan.phases[0]
    model = network(plan, phase).train()
    load_state(model, reply.before)
    named = {n: p for n, p in model.named_parameters() if n in reply.after}
    apply_freeze(model, [n for n, _ in model.named_parameters() if n not in named])
    target = [reply.before[n] - reply.after[n] for n in named]
    signed = plan.train.optimizer == "adamw"
    crop = plan.preprocess.crop
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((len(reply.labels), 1, *crop), generator=generator).mul_(0.3)
    images.requires_grad_(True)
    optimiser = torch.optim.Adam([images], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 1e-3)
    with torch.random.fork_rng(devices=[]):
        for _ in range(steps):
            optimiser.zero_grad()
            loss = functional.cross_entropy(model(images), reply.labels)
            slopes = torch.autograd.grad(
                loss, list(named.values()), create_graph=True, allow_unused=True
            )
            gap = _away(slopes, target, signed) + smooth * _variation(images)
            (images.grad,) = torch.autograd.grad(gap, [images])
            images.grad.sign_()  # as Geiping et al.
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                images.clamp_(-1, 1)
    return images.detach()[:, 0]


def _away(slopes: Sequence[Tensor | None], target: Sequence[Tensor], signed: bool) -> Tensor:
    """1 - cosine between gradient and reply; for Adam's replies between their soft signs."""
    pairs = [(s, t) for s, t in zip(slopes, target, strict=True) if s is not None]
    if signed:
        pairs = [(s / (s.abs() + s.detach().abs().median() + 1e-12), t) for s, t in pairs]
    dot = sum((s * t).sum() for s, t in pairs)
    ours = sum(s.square().sum() for s, _ in pairs)
    theirs = sum(t.square().sum() for _, t in pairs)
    return 1 - torch.as_tensor(dot / (ours * theirs).clamp_min(1e-30).sqrt())  # type: ignore[union-attr]


def _variation(images: Tensor) -> Tensor:
    return sum((images.diff(dim=d).abs().mean() for d in (2, 3, 4)), images.new_zeros(()))


def likeness(guesses: Tensor, truths: Tensor) -> float:
    """Largest absolute correlation of any guess with any truth, both (N, Z, Y, X)."""
    a, b = (_standard(v.detach().flatten(1).double()) for v in (guesses, truths))
    return (a @ b.T).abs().max().item()


def _standard(rows: Tensor) -> Tensor:
    rows = rows - rows.mean(dim=1, keepdim=True)
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return unit


def beyond(guesses: Tensor, truths: Tensor, head: Tensor) -> float:
    """`likeness` of what is left when the mean head (1, Z, Y, X) is projected out of both."""
    mean = _standard(head.flatten(1).double())
    rest = []
    for images in (guesses, truths):
        rows = _standard(images.flatten(1).double())
        rest.append((rows - (rows @ mean.T) * mean).reshape(images.shape))
    return likeness(rest[0], rest[1])


def images_of(entries: Sequence[Entry], plan: Plan) -> Tensor:
    """The network's inputs, (N, Z, Y, X)."""
    return torch.cat([scale_image(e.image(), plan.preprocess.window_hu) for e in entries])
