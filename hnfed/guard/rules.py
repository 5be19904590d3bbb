"""``policy.yaml``: a site's rules, typed; each number with its range."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from core.errors import UserError, suggestion
from core.plan.load import read_yaml
from core.plan.schema import SHARES

CHOICES: dict[str, tuple[str, ...]] = {
    "share": SHARES,
    "optimizers": ("adamw", "sgd"),
    "plans": ("any", "approved"),
    "sandbox": ("required", "preferred"),
    "secure_aggregation": ("allowed", "required"),
    "weights": ("agreed", "any"),
    "window": ("soft-tissue", "any"),
}
RANGES: dict[str, tuple[float, float]] = {
    "fewest_cases": (1, 100_000),
    "fewest_cases_organ": (1, 100_000),
    "fewest_steps": (1, 1_000_000),
    "fewest_local_epochs": (1, 10_000),
    "largest_batch": (1, 1024),
    "least_augmentation": (0.0, 1.0),
    "largest_augmentation": (1.0, 1000.0),
    "smallest_lr": (0.0, 10.0),
    "largest_lr": (1e-9, 10.0),
    "largest_momentum": (0.0, 1.0),
    "smallest_clip_norm": (0.0, 1e6),
    "largest_clip_norm": (1e-6, 1e6),
    "smallest_loss_weight": (0.0, 1e6),
    "largest_organ_ratio": (1.0, 1e9),
    "largest_proximal_mu": (0.0, 1e6),
    "smallest_prior": (0.0, 1.0),
    "largest_stride": (1, 64),
    "fewest_voxels_channel": (1, 10**9),
    "smallest_crop_mm": (1.0, 1000.0),
    "largest_spacing_mm": (0.1, 50.0),
    "most_crop_voxels": (512, 10**9),
    "most_channels": (1, 65_536),
    "most_parameters": (1, 10**10),
    "most_epochs": (1, 10**7),
    "most_answers": (1, 10**6),
    "memory_gb": (0.5, 4096.0),
    "gpu_memory_share": (1e-3, 1.0),
    "pending_mb": (1.0, 1e5),
    "runs_gb": (0.01, 1e6),
    "min_cell": (1, 100_000),
    "longest_s": (1, 10**7),
    "approvers": (1, 2),
    "secure_aggregation_sites": (3, 10_000),
}


@dataclass(frozen=True)
class Policy:
    """What a site allows; the defaults are those of a new kit.

    Attributes:
        organs: that a plan may name; () for any.
        plan_aliases: a plan may bring spellings of structure names of its own.
        share: of a phase, what may travel back.
        models: names of networks; () for any.
        fewest_cases: distinct training cases behind an update that leaves.
        fewest_cases_organ: those that annotate an organ whose head row leaves.
        fewest_steps: optimiser steps behind an update that leaves.
        fewest_local_epochs: a phase with fewer is refused.
        optimizers: that may make an update that leaves.
        largest_batch: cases a step.
        least_augmentation: least probability of a deformation at half the shipped strength or more.
        largest_augmentation: no strength is more than so many times the shipped one.
        smallest_lr, largest_lr: bounds on the learning rate at the top of the schedule; a warm-up
            must end in the first half of the phase.
        largest_momentum: of SGD.
        smallest_clip_norm, largest_clip_norm: bounds on the length that every step's gradient is
            clipped to.
        smallest_loss_weight: of the loss terms one has this weight or more in each round. Below
            Adam's epsilon, where a short clip and a light loss bring a gradient, a step is linear
            in it, as one of SGD.
        largest_organ_ratio: between the weights of two organs of a phase, and of background.
        largest_proximal_mu: of FedProx. A strong pull leaves of a round's steps the first alone.
        smallest_prior: probability that an organ begins with. Dice terms of a rarer one have
            gradients below Adam's epsilon, as light losses have.
        largest_stride: between two levels of a network, along any axis.
        fewest_voxels_channel: voxels of the crop for each channel of the widest level.
        window: ``soft-tissue``: a plan's window of HU shows soft tissue, not metal alone. One
            that a single patient's metal reaches would show the network that patient alone.
        smallest_crop_mm: along each axis. A crop of a few mm lies in air in all patients but some.
        largest_spacing_mm: of a voxel of the crop, along each axis.
        most_crop_voxels, most_channels, most_parameters: size of the input and of the network.
        most_epochs: rounds times local epochs of a phase.
        most_answers: for each round of a plan, how often a task of it is answered, over all runs.
        memory_gb: private memory of the process that prepares, and of the one that trains.
        gpu_memory_share: of the device's memory, what training may take.
        pending_mb: disk for plans that wait for approval.
        runs_gb: disk for what runs leave here: weights that stay, tests, pictures.
        scores: control scores and losses may go to the server.
        counts: numbers of cases, steps and voxels may go to the server.
        min_cell: no score or count of fewer cases is told of a personal phase.
        longest_s: seconds that one order may take here; what takes longer is ended.
        plans: any, or only those that were approved here.
        approvers: persons who must approve code, and plans.
        sandbox: whether a machine that cannot close the training process in may train.
        weights: that may be worked with: ``agreed``: those that this site derives itself, from the
            plan's seed and from what the sites of the sums signed; or ``any``.
        secure_aggregation: ``required``: no weights, counts or scores leave but in a sum over
            sites; ``allowed``: where the plan asks for it.
        secure_aggregation_sites: over how many sites at least, row by row of the head.
        secure_aggregation_change: sums may be over other sites than those of earlier runs.
    """

    organs: tuple[str, ...] = ()
    plan_aliases: bool = False
    share: tuple[str, ...] = SHARES
    models: tuple[str, ...] = ("res3dunet",)
    fewest_cases: int = 8
    fewest_cases_organ: int = 4
    fewest_steps: int = 8
    fewest_local_epochs: int = 1
    optimizers: tuple[str, ...] = ("adamw",)
    largest_batch: int = 4
    least_augmentation: float = 0.5
    largest_augmentation: float = 3.0
    smallest_lr: float = 0.002
    largest_lr: float = 0.02
    largest_momentum: float = 0.99
    smallest_clip_norm: float = 0.1
    largest_clip_norm: float = 12.0
    smallest_loss_weight: float = 0.01
    largest_organ_ratio: float = 16.0
    largest_proximal_mu: float = 0.1
    smallest_prior: float = 0.001
    largest_stride: int = 2
    fewest_voxels_channel: int = 1000
    window: str = "soft-tissue"
    smallest_crop_mm: float = 90.0
    largest_spacing_mm: float = 16.0
    most_crop_voxels: int = 4_000_000
    most_channels: int = 512
    most_parameters: int = 100_000_000
    most_epochs: int = 2000
    most_answers: int = 3
    memory_gb: float = 64.0
    gpu_memory_share: float = 1.0
    pending_mb: float = 100.0
    runs_gb: float = 100.0
    scores: bool = True
    counts: bool = True
    min_cell: int = 11
    longest_s: int = 86_400
    plans: str = "any"
    approvers: int = 1
    sandbox: str = "required"
    weights: str = "agreed"
    secure_aggregation: str = "allowed"
    secure_aggregation_sites: int = 3
    secure_aggregation_change: bool = False


class PolicyError(RuntimeError):
    """The plan asks for what the site does not allow; told to the server as a code only."""


def read_policy(path: Path) -> Policy:
    """Reads ``policy.yaml``; a key that is not in it has the value of a new kit.

    Raises:
        UserError: an unknown key or a value of another kind or range: nothing runs under a doubtful
            policy.
    """
    known = [f.name for f in fields(Policy)]
    made: dict[str, Any] = {}
    for key, value in read_yaml(path).items():
        if key not in known:
            remedy = f"{suggestion(str(key), known)}use one of {', '.join(sorted(known))}"
            raise UserError(f"policy: {key}", value, remedy, problem="unknown key")
        made[str(key)] = _value(str(key), value, getattr(Policy(), key))
    policy = Policy(**made)
    for key in ("lr", "clip_norm"):
        least, most = getattr(policy, f"smallest_{key}"), getattr(policy, f"largest_{key}")
        if least > most:
            raise UserError(f"policy: smallest_{key}", least, f"give at most largest_{key}, {most}")
    return policy


def _value(key: str, value: Any, default: Any) -> Any:
    name, choices = f"policy: {key}", CHOICES.get(key, ())
    if isinstance(default, tuple):
        if key in ("organs", "models") and value == "any":
            return ()
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise UserError(name, value, "give a list of names")
        if choices and set(value) - set(choices):
            raise UserError(name, value, f"choose of {', '.join(choices)}")
        return tuple(value)
    if isinstance(default, str):
        if value not in choices or not isinstance(value, str):
            raise UserError(name, value, f"choose one of {', '.join(choices)}")
        return value
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(name, value, "write true or false")
        return value
    return _number(name, value, default, *RANGES[key])


def _number(name: str, value: Any, default: float, low: float, high: float) -> float:
    kinds: tuple[type, ...] = (int,) if isinstance(default, int) else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not low <= value <= high:
        whole = "a whole number" if isinstance(default, int) else "a number"
        raise UserError(name, value, f"give {whole} from {low:g} to {high:g}, such as {default!r}")
    return type(default)(value)
