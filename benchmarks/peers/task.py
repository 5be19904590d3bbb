"""What every runner trains: a 3-D U-Net of 1.2 million parameters on made-up volumes.

Each local epoch leaves two lines in a file: when it began and when it ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

import torch
from monai.losses.dice import DiceCELoss
from monai.networks.nets.unet import UNet
from torch import Tensor

SITES, ROUNDS, VOLUMES, CLASSES, BATCH = 3, 3, 4, 5, 2
LOG, SIDE_ = "PEERS_LOG", "PEERS_SIDE"  # the file; voxels a side of a volume
SIDE = int(os.environ.get(SIDE_, "64"))
WIDTHS, STRIDES = (16, 32, 64, 128), (2, 2, 2)
State = dict[str, Tensor]


class Network(UNet):
    """The network with its start weights, the same wherever it is built."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(3, 1, CLASSES, WIDTHS, STRIDES, num_res_units=2)


def volumes(site: int) -> tuple[Tensor, Tensor]:
    """Images (4, 1, 64, 64, 64) and labels of a site."""
    made = torch.Generator().manual_seed(site)
    images = torch.randn(VOLUMES, 1, SIDE, SIDE, SIDE, generator=made)
    labels = torch.randint(0, CLASSES, (VOLUMES, 1, SIDE, SIDE, SIDE), generator=made)
    return images, labels


def epoch(state: Mapping[str, Tensor], site: int) -> State:
    """One local epoch with an optimiser of its own; the weights after it."""
    torch.set_num_threads(2)
    network, (images, labels) = Network(), volumes(site)
    network.load_state_dict(dict(state))
    told("begun")
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for first in range(0, VOLUMES, BATCH):
        optimiser.zero_grad()
        loss(network(images[first : first + BATCH]), labels[first : first + BATCH]).backward()
        optimiser.step()
    told("ended")
    return {n: t.detach().clone() for n, t in network.state_dict().items()}


def mean(states: Sequence[State]) -> State:
    """Of the sites' weights, which count alike."""
    return {n: torch.stack([s[n] for s in states]).mean(0) for n in states[0]}


def told(what: str) -> None:
    """A line with the time; whole, whoever else writes."""
    with open(os.environ[LOG], "a", encoding="ascii") as file:
        file.write(f"{what} {time.time()}\n")


def checksum(state: Mapping[str, Tensor]) -> None:
    """Writes the sum of all weights' sizes, by which runs are compared."""
    told(f"checksum {sum(float(t.double().abs().sum()) for t in state.values())!r}")
