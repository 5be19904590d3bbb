"""The local epochs of a round: what is frozen in which of them, and with which weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from core.data.cached_case import Entry, annotating
from core.data.site import Site
from core.plan.schema import LOSSES, Phase, Plan
from core.training.engine import Epochs, TrainResult, train
from core.training.loss_weights import (
    frequency_weights,
    organ_weights,
    term_factors,
    voxel_counts,
)
from core.training.losses import LossWeights
from core.training.optimisation import Averaged
from core.wire.messages import Header, Order, Result
from core.wire.partition import apply_freeze, frozen_in, parts_of, seed_of

State = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """An order as a site carries it out: who, of which plan and phase, and what is asked for."""

    site: Site
    plan: Plan
    phase: Phase
    order: Order

    def entries(self, split: str) -> list[Entry]:
        """The site's prepared cases of the phase."""
        return self.site.of_phase(self.plan, self.phase, split)

    def header(self, **changes: Any) -> Header:
        """Of the reply, where all went well."""
        order = self.order
        return Header(self.site.name, order.run, order.phase, order.round, **changes)


def fit(
    task: Task,
    model: nn.Module,
    factors: Sequence[float],
    *,
    optimiser_state: Mapping[str, Tensor] | None = None,
    pull: tuple[float, Mapping[str, Tensor]] | None = None,
    average: Averaged | None = None,
) -> tuple[Result, State]:
    """Local epochs of one round; `factors` are on the organs' static weights.

    With `keep_epochs` what the site keeps trains first, alone, and then the rest, alone (FedRep).
    """
    site, plan, phase, order = task.site, task.plan, task.phase, task.order
    entries = task.entries("train")
    weights = LossWeights(
        frequencies(plan, phase, order, entries),
        organ_weights(plan.weighting, phase.organs, factors),
        term_factors(plan.weighting, order.round, phase.rounds),
    )
    seed = seed_of(plan.seed, phase.name, order.round, site.name)
    epoch = (order.round - 1) * phase.local_epochs
    done: list[TrainResult] = []
    memory: State = {}
    for frozen, count in turns(model, plan, phase, order.round):
        apply_freeze(model, frozen)
        epochs = Epochs(epoch, count, seed, weights, optimiser_state, pull, average)
        result, memory = train(model, entries, plan, phase, site.device, epochs)
        done.append(result)
        epoch += count
    steps = sum(r.steps for r in done)
    return Result(
        cases=len(entries),
        annotated=tuple(len(annotating(entries, o)) for o in phase.organs),
        loss=tuple(sum(r.loss[k] * r.steps for r in done) / steps for k in LOSSES),
        steps=steps,
        skipped=sum(r.skipped_nonfinite for r in done),
        seconds=sum(r.seconds for r in done),
    ), memory


def turns(
    model: nn.Module, plan: Plan, phase: Phase, round_: int
) -> list[tuple[tuple[str, ...], int]]:
    """What is frozen for how many of a round's local epochs, in their order."""
    frozen = frozen_in(model, plan, phase, round_)
    if not phase.keep_epochs:
        return [(frozen, phase.local_epochs)]
    parts = parts_of(model, plan, phase)
    return [
        ((*frozen, *parts.shared), phase.keep_epochs),
        ((*frozen, *parts.personal), phase.local_epochs - phase.keep_epochs),
    ]


def frequencies(
    plan: Plan, phase: Phase, order: Order, entries: Sequence[Entry]
) -> list[float] | None:
    """Class weights from the federation's frequencies; the site's own if none are shared (D9)."""
    counts = (order.voxels, order.totals)
    if phase.share == "none":
        counts = voxel_counts(entries, phase.organs)
    return frequency_weights(*counts, plan.loss)
