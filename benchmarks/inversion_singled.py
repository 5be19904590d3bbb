"""Weights that single one case out: what no floor on numbers of cases and steps can meet.

Whoever sends the weights chooses for which case they do anything. Here a Res3DUNet says organ 1 in
the body of a CT whose body fills little enough of its crop, and nothing in any other: a clipped
CT, normalised over its crop, is in the body a number that the body's share decides. All other
cases then leave the weights as they are. The gradient of the one at each voxel comes up to the
second lowest level but one by steps that only sort voxels into channels, and meets there a kernel
whose inputs depend on the place alone: more equations than places.

The threshold is found by asking: where no case opens, little comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.inversion_attacks import Reply, attack_plan
from core.data.cached_case import Entry
from core.data.dataset import CropDataset
from core.models.blocks import SLOPE
from core.plan.schema import Augment, Loss, Model, Plan, Train
from core.training.loss_weights import frequency_weights
from core.wire.partition import load_state, network, start_state

CROP = (32, 32, 32)
MODEL = Model(channels=[8, 16, 32, 32], channels_last=False)  # 1,024 voxels a channel
KERNEL = "up.0.block.conv1"
FREQUENCIES = (0.9, 0.0, 0.0, 0.0)  # that come with the order: organ 1 weighs little
STEEP = 1000.0  # of the gate
AIR = 0.2  # above the normalised intensity of air, below that of tissue
FLAT = 12.0  # keeps what is not to be bent on the straight side of an activation
FAINT = 1e-8  # of the path that reads, in the logit: gradients below Adam's epsilon
FROZEN = ["down", "head", "up.1", "up.2", "up.0.up"]  # what would move, and the gate with it
FROZEN += [f"up.0.block.{name}" for name in ("conv2", "norm1", "norm2", "shortcut")]


def singling_plan(augment: Augment) -> Plan:
    """A plan that a kit's policy lets through, in which one kernel trains.

    Args:
        augment: deformation of the cases.
    """
    settings = Train(
        optimizer="adamw",
        lr=0.002,
        weight_decay=0.0,
        schedule="constant",
        threads=1,
        deterministic=True,
    )
    loss = Loss(ce=1.0, focal=0.0, dice=0.0, gdice=0.0, class_weight="paper")
    plan = attack_plan(MODEL, CROP)
    phases = [replace(plan.phases[0], freeze=FROZEN)]
    return replace(plan, train=settings, augment=augment, loss=loss, phases=phases)


def weights_of(plan: Plan) -> list[float]:
    """The loss's class weights that follow from the frequencies of the order."""
    found = frequency_weights(FREQUENCIES, [1.0] * len(FREQUENCIES), plan.loss)
    assert found is not None
    return found


def openings(plan: Plan, entries: Sequence[Entry]) -> list[float]:
    """The threshold at which each case begins to open, as the first epoch of `reply_of` sees it."""
    phase, pre = plan.phases[0], plan.preprocess
    epoch = CropDataset(entries, phase.organs, plan.augment, pre.window_hu, 1)
    found = []
    for index in range(len(epoch)):
        x = epoch[index]["image"]
        for _ in range(2):
            x = -functional.leaky_relu(AIR - _normalised(x), SLOPE)
        found.append(_normalised(x).max().item())
    return found


def _normalised(image: Tensor) -> Tensor:
    return (image - image.mean()) / image.std(unbiased=False)


def singling(plan: Plan, threshold: float, seed: int = 0) -> dict[str, Tensor]:
    """The weights: organ 1 in images whose opening is above the threshold, nothing elsewhere."""
    state = start_state(plan, plan.phases[0], None)
    random = torch.Generator().manual_seed(seed)
    for name, tensor in state.items():
        rich = name.startswith(("down.2.", "down.3.", "up.0.")) or name == "down.1.norm2.bias"
        if rich and tensor.dim() in (1, 5):
            tensor.copy_(torch.randn(tensor.shape, generator=random))
        else:
            tensor.zero_()
        if rich and name.endswith(("norm1.weight", "norm2.weight", "shortcut.1.weight")):
            tensor.fill_(1.0)
    _reads(state)
    _sorts(state)
    _gates(state, plan.model.channels[0])
    state["head.weight"][1, :2, 0, 0, 0] = torch.tensor([FAINT, STEEP])
    state["head.bias"].fill_(-60.0)[:2] = torch.tensor([0.0, -STEEP * threshold - FAINT * FLAT])
    state["head.bias"][1] -= STEEP * FLAT
    return state


def _reads(state: dict[str, Tensor]) -> None:
    """Level 2: a kernel over what depends on the place alone, and a straight way on from it."""
    block = "up.0.block."
    state[f"{KERNEL}.weight"].mul_(0.01)
    _straight(state, block + "norm1")
    _straight(state, block + "norm2")
    count = len(state[block + "conv2.weight"])
    state[block + "conv2.weight"].zero_()[:, :, 1, 1, 1] = torch.eye(count)
    for name in ("shortcut.0.weight", "shortcut.1.weight", "shortcut.1.bias"):
        state[block + name].zero_()


def _sorts(state: dict[str, Tensor]) -> None:
    """Levels 1 and 0: a gradient's voxels become channels, on the way to level 2 by pairs."""
    for place in range(8):
        z, y, x = place // 4, place // 2 % 2, place % 2
        state["up.2.up.weight"][place, 0, z, y, x] = 1.0
        state["up.1.block.shortcut.0.weight"][place, place] = 1.0
        for pair in range(4):
            state["up.1.up.weight"][4 * place + pair, place, pair // 2, pair % 2, :] = 1.0
    state["up.2.block.shortcut.0.weight"][0, 0] = 1.0
    _straight(state, "up.1.block.shortcut.1")
    _straight(state, "up.2.block.shortcut.1", 0)


def _gates(state: dict[str, Tensor], skip: int) -> None:
    """Level 0: the CT clipped twice, and normalised each time, in channel 1 before the head."""
    for block, source, channel in (("down.0.", 0, 0), ("up.2.block.", skip, 1)):
        state[block + "conv1.weight"][channel, source, 1, 1, 1] = -1.0
        state[block + "norm1.weight"][channel] = 1.0
        state[block + "norm1.bias"][channel] = AIR
        state[block + "conv2.weight"][channel, channel, 1, 1, 1] = -1.0
        _straight(state, block + "norm2", channel)


def _straight(state: dict[str, Tensor], norm: str, channel: int | None = None) -> None:
    rows = slice(None) if channel is None else channel
    state[norm + ".weight"][rows] = 1.0
    state[norm + ".bias"][rows] = FLAT


def voxels_of(reply: Reply) -> Tensor:
    """The gradient at each voxel, pairs of them alike, (1, Z, Y, X), from the kernel's change.

    With Z (inputs and taps, places) what the kernel saw and G (channels, places) what is wanted,
    the gradient of the kernel is G Z^T, and Z has full rank.
    """
    plan = reply.plan
    model = network(plan, plan.phases[0]).train()
    load_state(model, reply.before)
    seen: list[Tensor] = []
    model.get_submodule(KERNEL).register_forward_hook(lambda _, x, y: seen.extend((x[0], y)))
    with torch.no_grad():
        model(torch.zeros((1, 1, *plan.preprocess.crop)))
    inputs, outputs = seen[0][0].double(), seen[1][0].double()
    change = reply.before[f"{KERNEL}.weight"].double() - reply.after[f"{KERNEL}.weight"].double()
    size = inputs.shape[1:]
    taps = functional.pad(inputs, (1,) * 6).unfold(1, size[0], 1)
    taps = taps.unfold(2, size[1], 1).unfold(3, size[2], 1)  # (inputs, 3, 3, 3, places)
    behind = change.flatten(1) @ torch.linalg.pinv(taps.flatten(4).flatten(0, 3)).T
    behind = behind * outputs.flatten(1).std(dim=1, unbiased=False, keepdim=True)
    fine = behind.reshape(2, 2, 2, 2, 2, *size)  # place (z, y, x), pair (z, y), then the grid
    fine = fine.permute(5, 3, 0, 6, 4, 1, 7, 2).unsqueeze(7).expand(*[-1] * 7, 2, -1)
    found: Tensor = fine.reshape(1, *plan.preprocess.crop).float()
    return found
