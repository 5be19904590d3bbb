"""Train and validate on one device or several; knows nothing of sites, rounds or files.

Legend: image (B, 1, Z, Y, X) float32 in [-1, 1], label (B, C, Z, Y, X) uint8 (shares of voxels in
255ths), annotated (B, C) bool, logits (B, 1 + C, Z, Y, X); C organs in the order of `organs`, class
0 is background.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from core.data.cached_case import Entry
from core.data.dataset import CropDataset, on_device, scale_image
from core.data.resample import restore
from core.errors import UserError
from core.metrics.scores import CaseScore, overlap_case, score_case
from core.plan.schema import LOSSES, Phase, Plan
from core.processes import leave_if_told
from core.training.losses import LossTerms, LossWeights, denominators, segmentation_loss
from core.training.memory import laid_out, to_device
from core.training.optimisation import (
    LARGEST_LOSS,
    Averaged,
    NonFiniteError,
    Proximal,
    autocast,
    device_settings,
    learning_rate,
    load_optimiser,
    load_scaler,
    make_optimiser,
    make_scaler,
    memory_advice,
    optimiser_tensors,
    ramp,
    reads_none,
    scaler_tensors,
    take_step,
    take_step_unread,
)
from core.training.probabilities import probabilities_of
from core.training.ranks import (
    ALONE,
    Group,
    arrays_of,
    devices_of,
    require_batch,
    tensors_of,
    together,
)
from core.wire.partition import network

LEAST_NUMBERS = 16  # of a sum: those of a loss and its terms fit into it


@dataclass(frozen=True)
class Epochs:
    """A stretch of a phase's epochs, trained in one go.

    Attributes:
        first: index of the first of them within the phase.
        count: passes over the cases.
        seed: decides the order of cases, augmentation and dropout; torch's own random state is
            untouched.
        weights: of classes, organs and loss terms.
        optimiser_state: as returned by an earlier call; None starts afresh.
        proximal: (mu, w0): adds mu / 2 * ||w - w0||^2 over the trainable parameters named in w0
            (Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, eq. 2).
        average: takes in the weights after each step, where given.
    """

    first: int
    count: int
    seed: int
    weights: LossWeights = field(default_factory=LossWeights)
    optimiser_state: Mapping[str, Tensor] | None = None
    proximal: tuple[float, Mapping[str, Tensor]] | None = None
    average: Averaged | None = None


@dataclass(frozen=True)
class TrainResult:
    """What one call of `train` did.

    Attributes:
        loss: means over the steps taken: `LOSSES` of `core.plan.schema`; ``proximal`` where that
            term was asked for (it is not part of ``total``).
        steps: optimiser steps taken.
        seconds: wall-clock time.
        skipped_nonfinite: steps left out because the loss or its gradient was not finite.
    """

    loss: dict[str, float]
    steps: int
    seconds: float
    skipped_nonfinite: int


def train(
    model: nn.Module,
    entries: Sequence[Entry],
    plan: Plan,
    phase: Phase,
    device: str | torch.device,
    epochs: Epochs,
) -> tuple[TrainResult, dict[str, Tensor]]:
    """Trains `model` in place; parameters with ``requires_grad = False`` stay as they are.

    Args:
        model: network with an output for background and each of the phase's organs; moved to the
            device and left there.
        entries: cached training cases; all of them are used.
        plan: gives augmentation, loss, optimiser, schedule, precision, threads, determinism.
        phase: gives organs, and length and top of the learning rate's schedule.
        device: as for `devices_of`. Several share the cases of each batch; the weights are those
            of one up to rounding (but for dropout, which each draws for itself), and `model` is
            then `network` of the phase.
        epochs: which of the phase's.

    Returns:
        The result, and the optimiser's memory as flat tensors (safetensors can hold them).

    Raises:
        UserError: no case, nothing to train, fewer cases in a batch than devices, a device that is
            not there, no finite loss at all, or not enough GPU memory.
    """
    devices = devices_of(device)
    require_batch(plan.train.batch, devices)
    if not entries:
        raise UserError("entries", 0, "give the phase a site with training cases of its organs")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise UserError("freeze", "every parameter", "leave at least one stage trainable")
    if len(devices) == 1:
        return _train(Group(devices=devices), model, entries, plan, phase, epochs)
    pull = epochs.proximal
    sent = (
        _sent(model),
        replace(epochs, optimiser_state=None, proximal=None, average=None),
        arrays_of(epochs.optimiser_state or {}),
        None if pull is None else (pull[0], arrays_of(pull[1])),
    )
    numbers = max(sum(p.numel() for p in named.values()) + len(named) + 1, LEAST_NUMBERS)
    return together(
        lambda group: _train(group, model, entries, plan, phase, epochs),
        (_train_beside, (sent, tuple(entries), plan, phase)),
        devices,
        numbers,
    )


def _train_beside(
    group: Group, sent: tuple[Any, ...], entries: Sequence[Entry], plan: Plan, phase: Phase
) -> None:
    """What the other processes do in `train`: the same steps, on their own copy."""
    model, epochs, memory, pull = sent
    epochs = replace(
        epochs,
        optimiser_state=tensors_of(memory),
        proximal=None if pull is None else (pull[0], tensors_of(pull[1])),
    )
    _train(group, _received(model, plan, phase), entries, plan, phase, epochs)


def _train(
    group: Group,
    model: nn.Module,
    entries: Sequence[Entry],
    plan: Plan,
    phase: Phase,
    epochs: Epochs,
) -> tuple[TrainResult, dict[str, Tensor]]:
    """`train` in one process of a group."""
    target = group.device
    settings = plan.train if phase.lr is None else replace(plan.train, lr=phase.lr)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    scaler = make_scaler(settings, target)
    start = time.perf_counter()
    augment = plan.augment if plan.augment.enabled else None
    window = plan.preprocess.window_hu
    total = phase.rounds * phase.local_epochs
    with device_settings(settings, target, epochs.seed + group.rank, group.size), memory_advice():
        to_device(model, target, plan.model.channels_last).train()
        optimiser = make_optimiser(settings, list(named.values()))
        if epochs.optimiser_state:
            load_optimiser(optimiser, named, epochs.optimiser_state)
            load_scaler(scaler, epochs.optimiser_state)
        pull = Proximal(named, epochs.proximal)
        tally = _Tally(group)
        unread = group.size == 1 and reads_none(optimiser, target)
        steps_per_epoch = math.ceil(len(entries) / settings.batch)
        for epoch in range(epochs.first, epochs.first + epochs.count):
            cases = CropDataset(entries, phase.organs, augment, window, epochs.seed, epoch)
            cases.device = target if plan.augment.device == "site" else cases.device
            ahead = target.type == "cuda"
            batches = _batches(cases, settings.batch, group, ahead=ahead)
            for step, (count, batch) in enumerate(batches):
                rate = learning_rate(settings, epoch + step / steps_per_epoch, total)
                if not epochs.optimiser_state:
                    since = (epoch - epochs.first) * steps_per_epoch + step
                    rate *= ramp(settings, since, epochs.count * steps_per_epoch)
                for row in optimiser.param_groups:
                    row["lr"] = rate
                parts: list[LossTerms] = []
                losses = part_losses(model, batch, plan, epochs.weights, parts, group)
                taken: bool | Tensor
                if unread:
                    taken = take_step_unread(losses, optimiser, scaler, pull, settings.clip_norm)
                else:
                    taken = take_step(losses, optimiser, scaler, pull, settings.clip_norm, group)
                leave_if_told()
                if epochs.average is not None:
                    epochs.average.add(named)
                tally.add(parts, None if taken is False else pull.value, count, taken)
        state = optimiser_tensors(optimiser, named) | scaler_tensors(scaler)
    return tally.result(time.perf_counter() - start), state


def validate(
    model: nn.Module,
    entries: Sequence[Entry],
    plan: Plan,
    phase: Phase,
    device: str | torch.device,
    on_case: Callable[[Entry, npt.NDArray[np.uint8]], None] | None = None,
) -> list[CaseScore]:
    """Scores whole crops on each CT's own grid against the original masks.

    Args:
        model: network with an output for background and each of the phase's organs; moved to the
            device, set to evaluation mode.
        entries: cached cases; only their annotated organs count.
        plan: gives window, threads and determinism.
        phase: gives organs, whether each crop is averaged with its mirror image, and whether HD95
            is computed (`validate_hd95`).
        device: as for `devices_of`; several share the cases, and `model` is then `network` of the
            phase.
        on_case: called with each entry and its label map (Z, Y, X) on the CT's grid.

    Returns:
        One score a case and annotated organ; a missed organ's penalty is the diagonal of the crop.
    """
    devices = devices_of(device)[: max(len(entries), 1)]

    def score(group: Group) -> list[CaseScore]:
        scores: list[CaseScore] = []
        with closing(_scored(group, model, entries, plan, phase)) as own:
            for index, entry in enumerate(entries):
                leave_if_told()
                rank = index % group.size
                found, labelmap = next(own) if rank == 0 else group.receive(rank)
                scores += found
                if on_case is not None:
                    on_case(entry, labelmap)
        return scores

    if len(devices) == 1:
        return score(Group(devices=devices))
    arguments = (_sent(model), tuple(entries), plan, phase, on_case is not None)
    return together(score, (_score_beside, arguments), devices, 0)


def _score_beside(
    group: Group,
    sent: tuple[Any, ...],
    entries: Sequence[Entry],
    plan: Plan,
    phase: Phase,
    drawn: bool,
) -> None:
    """What the other processes do in `validate`: every so many cases, sent as they are done."""
    for found, labelmap in _scored(group, _received(sent, plan, phase), entries, plan, phase):
        group.send((found, labelmap if drawn else None))


def _scored(
    group: Group, model: nn.Module, entries: Sequence[Entry], plan: Plan, phase: Phase
) -> Generator[tuple[list[CaseScore], npt.NDArray[np.uint8]]]:
    """Scores and label maps of the cases of one process: as many as it has ranks apart."""
    organs = phase.organs
    sides = organs if phase.average_mirrored else ()
    score = score_case if phase.validate_hd95 else overlap_case
    target = group.device
    with device_settings(plan.train, target, plan.seed, group.size), memory_advice():
        to_device(model, target, plan.model.channels_last).eval()
        for entry in entries[group.rank :: group.size]:
            image = scale_image(entry.image(), plan.preprocess.window_hu)
            probabilities = probabilities_of(
                [model], image, target, average_mirrored=sides, settings=plan.train
            )
            labelmap = restore(probabilities, entry.crop, entry.source)
            spacing, penalty = entry.source.spacing_mm, entry.crop.diagonal_mm()
            truth = entry.truth(organs)
            yield score(entry.case, labelmap, organs, truth, spacing, penalty), labelmap


def _sent(model: nn.Module) -> tuple[dict[str, Any], frozenset[str]]:
    """A network's values, and the names of those that train, for `_received`."""
    trained = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    return arrays_of(model.state_dict()), trained


def _received(sent: tuple[dict[str, Any], frozenset[str]], plan: Plan, phase: Phase) -> nn.Module:
    """The phase's network with the values of another process's."""
    values, trained = sent
    model = network(plan, phase)
    model.load_state_dict(tensors_of(values))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained
    return model


def part_losses(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    plan: Plan,
    weights: LossWeights,
    parts: list[LossTerms],
    group: Group = ALONE,
) -> Iterator[Tensor]:
    """Losses of the parts that `train.accumulate` cuts a batch into, each computed when asked for.

    They add up to the loss of the batch, and so do their gradients: each is divided by what the
    whole batch is divided by, also where other processes of a group have the rest of it ({} where
    they have all). The terms are added to `parts`.
    """
    if not batch:
        group.sum([torch.zeros(len(LOSSES) - 1)])
        return
    image, label, known = batch["image"], batch["label"], batch["annotated"]
    size = math.ceil(len(image) / plan.train.accumulate)
    whole = None
    if size < len(image) or group.size > 1:
        whole = denominators(label, known, plan.loss, weights, lambda part: group.sum([part]))
    for start in range(0, len(image), size):
        some = slice(start, start + size)
        with autocast(plan.train, image.device):
            logits = model(laid_out(image[some], model)).float()
        terms = segmentation_loss(logits, label[some], known[some], plan.loss, weights, whole)
        parts.append(terms)
        yield terms.total


class _Tally:
    """Sums losses on the device; one transfer at the end."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.sums = torch.zeros(len(LOSSES) + 1, dtype=torch.float64, device=group.device)
        self.unread: list[tuple[int, Tensor]] = []  # samples of a step, whether it was taken
        self.samples = self.steps = self.seen = 0
        self.proximal = False

    def add(
        self,
        parts: Sequence[LossTerms],
        proximal: Tensor | None,
        samples: int,
        taken: bool | Tensor,
    ) -> None:
        self.seen += 1
        if taken is False:
            return
        if isinstance(taken, Tensor):
            self.unread.append((samples, taken))
        else:
            self._count(samples)
        self.proximal |= proximal is not None
        zero = self.sums.new_zeros((), dtype=torch.float32)
        terms = [sum((getattr(part, name).detach() for part in parts), zero) for name in LOSSES]
        once = proximal if proximal is not None and self.group.rank == 0 else zero
        added = samples * torch.stack([v.to(self.sums) for v in (*terms, once)])
        self.sums += added.where(taken, 0.0) if isinstance(taken, Tensor) else added

    def _count(self, samples: int) -> None:
        self.steps += 1
        self.samples += samples

    def result(self, seconds: float) -> TrainResult:
        if self.unread:
            flags = torch.stack([taken for _, taken in self.unread]).tolist()
            for (samples, _), taken in zip(self.unread, flags, strict=True):
                if taken:
                    self._count(samples)
        if self.steps == 0:
            raise NonFiniteError(
                "train",
                f"{self.seen} steps",
                "lower train.lr, set train.amp to off, or start from sound weights",
                problem="no step had a finite loss and gradient",
            )
        self.group.sum([self.sums])
        names = (*LOSSES, "proximal") if self.proximal else LOSSES
        means = (self.sums / self.samples).tolist()
        loss = dict(zip(names, means, strict=False))
        largest = max(map(abs, means))
        if not largest <= LARGEST_LOSS:
            raise NonFiniteError(
                "train.lr",
                f"mean loss {largest:.3g}",
                "lower train.lr",
                problem="training diverged",
            )
        return TrainResult(loss, self.steps, seconds, self.seen - self.steps)


def _batches(
    dataset: CropDataset, size: int, group: Group, *, ahead: bool
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Cases of each batch, and those of this process on its device; {} where it has none.

    A batch has `size` cases, the last may have fewer. With `ahead` a thread prepares the next batch
    meanwhile (on a CPU it would only take the cores that the network needs). A sample depends on
    its seed alone: neither the time nor the process changes it.
    """

    def batch(start: int) -> tuple[int, dict[str, Tensor]]:
        cases = range(start, min(start + size, len(dataset)))
        samples = [dataset[i] for i in group.share(cases)]
        keys = samples[0] if samples else ()
        return len(cases), {key: torch.stack([s[key] for s in samples]) for key in keys}

    def moved(prepared: tuple[int, dict[str, Tensor]]) -> tuple[int, dict[str, Tensor]]:
        return prepared[0], _moved(prepared[1], group.device)

    starts = range(0, len(dataset), size)
    if not ahead:
        yield from (moved(batch(start)) for start in starts)
        return
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[tuple[int, dict[str, Tensor]]]] = deque()
        for start in starts:
            waiting.append(pool.submit(batch, start))
            if len(waiting) > 1:
                yield moved(waiting.popleft().result())
        while waiting:
            yield moved(waiting.popleft().result())


def _moved(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on the device; flags stay where they are read without waiting for a GPU."""
    if device.type == "cpu" or not batch:
        return batch
    return batch | {key: on_device(batch[key], device) for key in ("image", "label")}
