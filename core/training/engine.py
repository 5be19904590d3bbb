"""Train, validate and predict on one device; knows nothing of sites, rounds or files.

Legend: image (B, 1, Z, Y, X) float32 in [-1, 1], label (B, Z, Y, X) int64, annotated (B, C) bool,
logits (B, 1 + C, Z, Y, X); C organs in the order of `organs`, class 0 is background.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from core.data.cached_case import Entry
from core.data.dataset import CropDataset, on_device, scale_image
from core.data.preprocess import restore
from core.errors import UserError
from core.metrics.scores import CaseScore, overlap_case, score_case
from core.plan.schema import LOSSES, Phase, Plan
from core.processes import leave_if_told
from core.training.losses import LossTerms, LossWeights, denominators, segmentation_loss
from core.training.optimisation import (
    LARGEST_LOSS,
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
    reads_none,
    resolve_device,
    scaler_tensors,
    take_step,
    take_step_unread,
    to_device,
)
from core.training.probabilities import probabilities_of


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
    """

    first: int
    count: int
    seed: int
    weights: LossWeights = field(default_factory=LossWeights)
    optimiser_state: Mapping[str, Tensor] | None = None
    proximal: tuple[float, Mapping[str, Tensor]] | None = None


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
        device: ``auto | cpu | cuda:N``.
        epochs: which of the phase's.

    Returns:
        The result, and the optimiser's memory as flat tensors (safetensors can hold them).

    Raises:
        UserError: no case, nothing to train, no finite loss at all, or not enough GPU memory.
    """
    target = resolve_device(device)
    settings = plan.train if phase.lr is None else replace(plan.train, lr=phase.lr)
    if not entries:
        raise UserError("entries", 0, "give the phase a site with training cases of its organs")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise UserError("freeze", "every parameter", "leave at least one stage trainable")
    scaler = make_scaler(settings, target)
    start = time.perf_counter()
    augment = plan.augment if plan.augment.enabled else None
    window = plan.preprocess.window_hu
    total = phase.rounds * phase.local_epochs
    with device_settings(settings, target, epochs.seed), memory_advice():
        to_device(model, target, plan.model.channels_last).train()
        optimiser = make_optimiser(settings, list(named.values()))
        if epochs.optimiser_state:
            load_optimiser(optimiser, named, epochs.optimiser_state)
            load_scaler(scaler, epochs.optimiser_state)
        pull = Proximal(named, epochs.proximal)
        tally = _Tally(target)
        step_of = take_step_unread if reads_none(optimiser, target) else take_step
        steps_per_epoch = math.ceil(len(entries) / settings.batch)
        for epoch in range(epochs.first, epochs.first + epochs.count):
            cases = CropDataset(entries, phase.organs, augment, window, epochs.seed, epoch)
            cases.device = target if plan.augment.device == "site" else cases.device
            ahead = target.type == "cuda"
            for step, batch in enumerate(_batches(cases, settings.batch, target, ahead=ahead)):
                rate = learning_rate(settings, epoch + step / steps_per_epoch, total)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                parts: list[LossTerms] = []
                losses = part_losses(model, batch, plan, epochs.weights, parts)
                taken = step_of(losses, optimiser, scaler, pull, settings.clip_norm)
                leave_if_told()
                tally.add(parts, pull.value, len(batch["image"]), taken)
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
        device: ``auto | cpu | cuda:N``.
        on_case: called with each entry and its label map (Z, Y, X) on the CT's grid.

    Returns:
        One score a case and annotated organ; a missed organ's penalty is the diagonal of the crop.
    """
    target = resolve_device(device)
    organs = phase.organs
    sides = organs if phase.average_mirrored else ()
    score = score_case if phase.validate_hd95 else overlap_case
    scores: list[CaseScore] = []
    with device_settings(plan.train, target, plan.seed), memory_advice():
        to_device(model, target, plan.model.channels_last).eval()
        for entry in entries:
            leave_if_told()
            image = scale_image(entry.image(), plan.preprocess.window_hu)
            probabilities = probabilities_of(
                [model], image, target, average_mirrored=sides, settings=plan.train
            )
            labelmap = restore(probabilities, entry.crop, entry.source)
            spacing, penalty = entry.source.spacing_mm, entry.crop.diagonal_mm()
            truth = entry.truth(organs)
            scores += score(entry.case, labelmap, organs, truth, spacing, penalty)
            if on_case is not None:
                on_case(entry, labelmap)
    return scores


def part_losses(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    plan: Plan,
    weights: LossWeights,
    parts: list[LossTerms],
) -> Iterator[Tensor]:
    """Losses of the parts that `train.accumulate` cuts a batch into, each computed when asked for.

    They add up to the loss of the batch, and so do their gradients: each is divided by what the
    whole batch is divided by. The terms are added to `parts`.
    """
    image, label, known = batch["image"], batch["label"], batch["annotated"]
    size = math.ceil(len(image) / plan.train.accumulate)
    whole = denominators(label, known, plan.loss, weights) if size < len(image) else None
    for start in range(0, len(image), size):
        some = slice(start, start + size)
        with autocast(plan.train, image.device):
            logits = model(image[some]).float()
        target = label[some].long()  # it travels to the device as bytes
        terms = segmentation_loss(logits, target, known[some], plan.loss, weights, whole)
        parts.append(terms)
        yield terms.total


class _Tally:
    """Sums losses on the device; one transfer at the end."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(LOSSES) + 1, dtype=torch.float64, device=device)
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
        terms = [sum(getattr(part, name).detach() for part in parts) for name in LOSSES]
        values = [*terms, proximal if proximal is not None else torch.zeros_like(terms[0])]
        added = samples * torch.stack([v.to(self.sums) for v in values])
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
    dataset: CropDataset, size: int, device: torch.device, *, ahead: bool
) -> Iterator[dict[str, Tensor]]:
    """Batches of `size` samples on the device; the last may be smaller.

    With `ahead` a thread prepares the next batch meanwhile (on a CPU it would only take the cores
    that the network needs). A sample depends on its seed alone: only the time changes.
    """

    def batch(start: int) -> dict[str, Tensor]:
        samples = [dataset[i] for i in range(start, min(start + size, len(dataset)))]
        return {key: torch.stack([s[key] for s in samples]) for key in samples[0]}

    starts = range(0, len(dataset), size)
    if not ahead:
        yield from (_moved(batch(start), device) for start in starts)
        return
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[dict[str, Tensor]]] = deque()
        for start in starts:
            waiting.append(pool.submit(batch, start))
            if len(waiting) > 1:
                yield _moved(waiting.popleft().result(), device)
        while waiting:
            yield _moved(waiting.popleft().result(), device)


def _moved(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on the device; flags stay where they are read without waiting for a GPU."""
    if device.type == "cpu":
        return batch
    return batch | {key: on_device(batch[key], device) for key in ("image", "label")}
