"""What a coordinator can make of one reply: the inversion of weights into the CTs they saw.

python -m benchmarks.inversion [--quick] [--json FILE]

The attacker writes the plan, knows the weights that went in and those that came back, and has
patients of its own. Three attacks, none of which knows what a head looks like:

* `patches` (UNETR): the gradients of position and patch embedding are two matrices whose quotient
  is the image, patch by patch: one linear solve.
* `blocks` (Res3DUNet): weights are sent with which the lowest level says where it is and nothing
  of the image; the gradient of the step up from it is then the gradient at each voxel, which shows
  the image: all of it where a stride is long, a blurred one else.
* `matching` (any network): images that begin as noise are moved until their gradient points where
  the reply points (Geiping et al., Inverting gradients, NeurIPS 2020, eq. 4), with the contours of
  the attacker's own patients.

A fourth, `inversion_singled`, sends weights that one case alone moves, and is met by no floor.

Each reply is made by `core.training.engine.train` as a site makes it: of one case in one step, and
of what a kit's ``policy.yaml`` lets through at the least. `value` is the largest absolute
correlation of any reconstruction, and of their mean, with any training crop. `ratio` is the same
after the mean
of other patients was taken out of both: what is told of *these* patients, not of heads at large.
`--quick` leaves `matching` out (seconds instead of an hour).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import inversion_singled
from benchmarks.inversion_attacks import (
    RES3DUNET,
    UNETR,
    Reply,
    attack_plan,
    beyond,
    blocks,
    images_of,
    likeness,
    matching,
    patches,
    patients,
    placed,
    reply_of,
    targets_of,
)
from benchmarks.measure import report, row
from core.data.cached_case import Entry
from core.plan.schema import Augment, Model, Plan, Train

LIMIT = 0.3
CASES = 8  # `fewest_cases`, `fewest_steps` of a kit's policy.yaml
CROP = (16, 16, 16)
LONG = replace(RES3DUNET, channels=[4, 64], strides=[[8, 8, 8]])
WIDE = replace(RES3DUNET, channels=[8, 128, 128])  # 32 voxels a channel
FEWEST = replace(RES3DUNET, channels=[4, 4])  # `fewest_voxels_channel` of this crop
FREEZE = ("none", "encoder", "decoder", "all-but-head")
LEAST = Augment(  # `least_augmentation`
    probability=0.5,
    rotate_deg=[4.0, 4.0, 4.0],
    scale=0.05,
    translate_mm=[6.0, 4.0, 4.0],
    elastic_mm=2.0,
    noise=0.0,
    brightness=0.0,
    contrast=0.0,
    gamma=0.0,
)
Attack = Callable[[Reply], Tensor]


def floor_plan(
    model: Model, freeze: str = "none", lr: float = 0.002, crop: Sequence[int] = CROP
) -> Plan:
    """What a kit's policy lets through at the least, and nothing better."""
    plan = attack_plan(model, crop, freeze)
    kinder = Train(
        optimizer="adamw",
        lr=lr,
        weight_decay=0.0,
        schedule="constant",
        clip_norm=12.0,
        threads=1,
        deterministic=True,
    )
    return replace(plan, train=kinder, augment=LEAST)


def rows(folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Runs the attacks; `folder` takes the synthetic patients."""
    own, others = patients(folder, CASES, CROP), patients(folder, CASES, CROP, 100)
    contours = targets_of(others)
    head = images_of(others, attack_plan(RES3DUNET, CROP)).mean(0, keepdim=True)
    found: list[dict[str, Any]] = []

    def tried(name: str, plan: Plan, cases: Sequence[Entry], attack: Attack, bound: bool) -> None:
        crafted = attack is blocks
        reply = reply_of(plan, cases, placed(plan) if crafted else None)
        reply = replace(reply, labels=contours[: len(cases)])
        guesses = attack(reply)
        guesses = torch.cat([guesses, guesses.mean(0, keepdim=True)])
        truths = images_of(cases, plan)
        alike, rest = likeness(guesses, truths), beyond(guesses, truths, head)
        found.append(row(name, alike, "|r|", "limit 0.3", rest))
        met = alike <= LIMIT if bound else None
        found[-1] |= {"target": LIMIT if bound else None, "met": met}
        print(f"{name:<56} {alike:6.3f} {rest:6.3f}", flush=True)

    one = own[:1]
    unbounded = attack_plan(UNETR, CROP)
    tried("unetr, one case: patches", unbounded, one, patches, False)
    tried("unetr, at the floors: patches", floor_plan(UNETR), own, patches, False)
    tried("long strides, one case: blocks", attack_plan(LONG, CROP, lr=10.0), one, blocks, False)
    tried("long strides, at the floors: blocks", floor_plan(LONG), own, blocks, False)
    tried("many channels, one case: blocks", attack_plan(WIDE, CROP, lr=10.0), one, blocks, False)
    for lr in (0.002, 0.02):
        name = f"many channels, at the floors, lr {lr}: blocks"
        tried(name, floor_plan(WIDE, lr=lr), own, blocks, False)
    for lr in (0.002, 0.02):
        name = f"res3dunet, at the floors, lr {lr}: blocks"
        tried(name, floor_plan(FEWEST, lr=lr), own, blocks, True)
    found.append(row("the mean of others' heads, no reply needed", *_head(own, head)))
    found += _singled(folder)
    if quick:
        return found
    tried("res3dunet, one case: matching", attack_plan(FEWEST, CROP), one, _matched, False)
    for freeze in FREEZE:
        name = f"res3dunet, at the floors, freeze {freeze}: matching"
        tried(name, floor_plan(FEWEST, freeze), own, _matched, True)
    for freeze in FREEZE:
        name = f"unetr, at the floors, freeze {freeze}: matching"
        tried(name, floor_plan(UNETR, freeze), own, _matched, False)
    return found


def _singled(folder: Path) -> list[dict[str, Any]]:
    """Weights that single a case out: the two that open first, at the floors; no floor meets it."""
    crop = inversion_singled.CROP
    own, others = patients(folder, CASES, crop), patients(folder, CASES, crop, 100)
    plan = inversion_singled.singling_plan(LEAST)
    truths, head = images_of(own, plan), images_of(others, plan).mean(0, keepdim=True)
    found = []
    opened = sorted(inversion_singled.openings(plan, own), reverse=True)
    for number, threshold in enumerate(opened[:2], start=1):
        sent = inversion_singled.singling(plan, threshold)
        reply = reply_of(plan, own, sent, inversion_singled.weights_of(plan))
        guess = inversion_singled.voxels_of(reply)
        name = f"res3dunet, at the floors: case {number} singled out"
        rest = beyond(guess, truths, head)
        found.append(row(name, likeness(guess, truths), "|r|", "limit 0.3", rest))
        print(f"{name:<56} {found[-1]['value']:6.3f} {rest:6.3f}", flush=True)
    return found


def _matched(reply: Reply) -> Tensor:
    return matching(reply, 100, seed=1)


def _head(own: Sequence[Entry], head: Tensor) -> tuple[float, str]:
    return likeness(head, images_of(own, attack_plan(RES3DUNET, CROP))), "|r|"


def main() -> int:
    """Prints the table; 1 where what a policy lets through shows more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = rows(Path(folder), quick=options.quick)
    return report(found, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
