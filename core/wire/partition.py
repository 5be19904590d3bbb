"""What trains, what travels and what stays: decided by the phase alone, alike at both ends."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import UserError
from core.models.build import build
from core.models.stages import (
    head_rows,
    load_unique,
    norm_parameters,
    stage_of,
    unique_state,
)
from core.plan.schema import Phase, Plan
from core.provenance import versions

State = dict[str, Tensor]
HOW_NOT_WHAT = ("prior", "checkpointing", "channels_last")  # of `model`: no trace in the weights

INSTALLED = ("archives", "packaging", "tracking")  # folders of `core` that no bundle holds


@dataclass(frozen=True)
class Parts:
    """The parameters of a network by what a phase does with them (names, sorted).

    Attributes:
        base: what no round changes; travels once (D8). With ``share: none`` all start weights.
        shared: travels every round, both ways.
        personal: trained, and kept at the site. With `ditto` a second copy of what is shared.
        frozen: never changed in this phase.
    """

    base: tuple[str, ...]
    shared: tuple[str, ...]
    personal: tuple[str, ...]
    frozen: tuple[str, ...]


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any description, the same on all machines: f(seed, phase, ...) (D6)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def network(plan: Plan, phase: Phase) -> nn.Module:
    """Builds the phase's network, initialised from the plan's seed (same at both ends)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(plan.seed, phase.name, 0, "model"))
        return build(plan.model, len(phase.organs), plan.preprocess.crop)


def parts_of(model: nn.Module, plan: Plan, phase: Phase) -> Parts:
    """Splits the parameters of `model` by `freeze`, `thaw`, `share`, `keep` and `ditto`.

    `keep: [norm]` is FedBN (Li et al., ICLR 2021), a kept head or decoder FedPer (Arivazhagan et
    al., 2019), with `keep_epochs` FedRep (Collins et al., ICML 2021).

    Raises:
        UserError: a stage or module that the network does not have, or nothing left to train.
    """
    names = tuple(sorted(unique_state(model)))
    frozen = frozen_in(model, plan, phase, phase.rounds)
    trained = tuple(n for n in names if n not in set(frozen))
    if phase.share == "none":
        return Parts(base=names, shared=(), personal=trained, frozen=frozen)
    kept = {n for part in phase.keep for n in _within(model, plan, phase, part, "keep")}
    personal = tuple(n for n in trained if n in kept)
    shared = tuple(n for n in trained if n not in kept)
    if not shared:
        raise UserError(
            f"phases.{phase.name}.keep",
            phase.keep,
            "keep less, or write share: none for a phase in which nothing travels",
            problem="nothing is left to be shared",
        )
    if phase.keep_epochs and not personal:
        raise UserError(
            f"phases.{phase.name}.keep", phase.keep, "keep something that is not frozen"
        )
    base = tuple(sorted((*frozen, *personal)))
    return Parts(base, shared, shared if phase.ditto is not None else personal, frozen)


def frozen_in(model: nn.Module, plan: Plan, phase: Phase, round_: int) -> tuple[str, ...]:
    """Names of the parameters that do not change in one round of the phase, sorted.

    Args:
        model: the phase's network.
        plan: names the network's stages.
        phase: freezes stages or modules from its start, and thaws some of them at a round: with
            `norm` all norms in what is frozen, from round 1 where they never are.
        round_: from 1.

    Raises:
        UserError: a stage or module that the network does not have or that was never frozen, or
            nothing left to train.
    """
    stages = stage_of(model, plan.model)
    names = sorted(unique_state(model))
    if phase.freeze == "none":
        frozen: set[str] = set()
    elif phase.freeze == "all-but-head":
        frozen = {n for n in names if stages[n] != "head"}
    else:
        listed = [phase.freeze] if isinstance(phase.freeze, str) else list(phase.freeze)
        frozen = {n for part in listed for n in _within(model, plan, phase, part, "freeze")}
    if len(frozen) == len(names):
        raise UserError(
            f"phases.{phase.name}.freeze", phase.freeze, "leave at least one stage to be trained"
        )
    thawed: set[str] = set()
    for part, start in phase.thaw.items():
        found = _within(model, plan, phase, part, "thaw")
        if part == "norm":
            found &= frozen
        if not found or not found <= frozen:
            raise UserError(
                f"phases.{phase.name}.thaw", part, f"thaw what is frozen: freeze is {phase.freeze}"
            )
        thawed |= found if start <= round_ else set()
    return tuple(sorted(frozen - thawed))


def _within(model: nn.Module, plan: Plan, phase: Phase, part: str, field: str) -> set[str]:
    """Names of the parameters of a stage, of a module, or of all norms (D12)."""
    stages = stage_of(model, plan.model)
    names = sorted(unique_state(model))
    norms = norm_parameters(model) if part == "norm" else set()
    found = {n for n in names if stages[n] == part or n.startswith(f"{part}.") or n in norms}
    if not found:
        known = sorted(set(stages.values()))
        modules = sorted({".".join(n.split(".")[:2]) for n in names if n.count(".") > 1})
        raise UserError(
            f"phases.{phase.name}.{field}",
            part,
            f"use stages of this network: {known}, norm, or its modules: {modules}",
        )
    return found


def thaw_rounds(model: nn.Module, plan: Plan, phase: Phase) -> dict[str, int]:
    """Of what travels, but is frozen at first: the round from which on it trains."""
    shared = set(parts_of(model, plan, phase).shared)
    found: dict[str, int] = {}
    for round_, then in itertools.pairwise(sorted({1, *phase.thaw.values()})):
        found |= dict.fromkeys(shared.intersection(frozen_in(model, plan, phase, round_)), then)
    return found


def still_at(thaws: Mapping[str, int], round_: int) -> frozenset[str]:
    """What thaws after this round: it comes back as it went out."""
    return frozenset(name for name, first in thaws.items() if first > round_)


def trainable_by_round(model: nn.Module, plan: Plan, phase: Phase) -> dict[int, int]:
    """Round -> how many parameters train from it on: the first round, and each that thaws some."""
    numbers = {n: v.numel() for n, v in unique_state(model).items()}
    total = sum(numbers.values())
    rounds = sorted({1, *phase.thaw.values()})
    return {r: total - sum(numbers[n] for n in frozen_in(model, plan, phase, r)) for r in rounds}


def apply_freeze(model: nn.Module, frozen: Sequence[str]) -> None:
    """Marks the frozen parameters: they run without gradient."""
    stay = set(frozen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in stay)


def start_state(plan: Plan, phase: Phase, previous: tuple[State, Sequence[str]] | None) -> State:
    """The weights with which a phase begins.

    Args:
        plan: decides the network and its seed.
        phase: the phase that begins.
        previous: weights of the phase (or file) that it starts from, with that phase's organs; None
            for scratch.

    Returns:
        State of the phase's network: everything but the head is copied; a head row is copied where
        the organ existed before (and for the background), and begins as `phase.head_init` says
        where the organ is new.

    Raises:
        UserError: weights of another network, or a head without the rows or the bias needed.
    """
    model = network(plan, phase)
    state = {k: v.detach().clone() for k, v in unique_state(model).items()}
    if previous is None:
        return state
    old, old_organs = previous
    heads = set(head_rows(model))
    for name in state:
        if name in heads:
            continue
        if name not in old or old[name].shape != state[name].shape:
            raise UserError(
                f"phases.{phase.name}.init",
                phase.init,
                "start from a checkpoint of the same network (model section of the plan)",
                problem=f"parameter {name} is missing or has another shape",
            )
        state[name] = old[name].detach().to(state[name].dtype, copy=True)
    before = {organ: i + 1 for i, organ in enumerate(old_organs)}
    for name in heads & set(old):
        if old[name].shape[1:] != state[name].shape[1:]:
            continue
        if len(old[name]) != 1 + len(old_organs):
            raise UserError(
                f"phases.{phase.name}.init",
                phase.init,
                "use weights and JSON that were written together",
                problem=f"{name} has {len(old[name])} rows for {len(old_organs)} organs",
            )
        state[name][0] = old[name][0]
        for row, organ in enumerate(phase.organs, start=1):
            if organ in before:
                state[name][row] = old[name][before[organ]]
            elif phase.head_init != "random":
                state[name][row] = new_row(old[name], phase.head_init, plan.model.prior)
    if plan.federation.update_bits == 16 and not all(
        t.half().isfinite().all() for t in state.values()
    ):
        raise UserError(
            f"phases.{phase.name}.init",
            phase.init,
            "write federation.update_bits: 32, or 8",
            problem="a weight has no number of 16 bits",
        )
    if phase.head_init == "background" and not any(n.endswith("bias") for n in heads):
        raise UserError(
            f"phases.{phase.name}.head_init",
            phase.head_init,
            "write random or mean",
            problem="the head of this network has no bias to move",
        )
    return state


def new_row(head: Tensor, head_init: str, prior: float) -> Tensor:
    """How the row of a new organ begins, from the rows that an earlier phase trained.

    Args:
        head: (1 + old organs, ...) weight of the earlier head, or (1 + old organs,) its bias.
        head_init: ``background``: the background's row, with the bias lower by log(1 / prior), so
            that in every voxel the new organ is `prior` times as probable as the background,
            whatever the voxel shows; ``mean``: the mean of the old organs' rows.
        prior: in (0, 1), as of a head from scratch (`core.models.build`).

    Returns:
        The row, of shape head.shape[1:].
    """
    if head_init == "mean":
        return head[1:].mean(dim=0)
    return head[0] + (math.log(prior) if head.dim() == 1 else 0.0)


def state_hash(state: Mapping[str, Tensor], names: Sequence[str] | None = None) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state if names is None else names):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(
            tensor.view(torch.uint8).numpy().tobytes()
            if tensor.dim()
            else tensor.reshape(1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def weights_meta(run: str, plan: Plan, phase: Phase, splits: Mapping[str, str]) -> dict[str, Any]:
    """What the JSON beside a phase's weights says of them, at the server as at a site."""
    from core.plan.load import plan_hash  # it reads YAML; training needs none

    return {
        "run": run,
        "phase": phase.name,
        "organs": list(phase.organs),
        **_input_of(plan),
        "average_mirrored": phase.average_mirrored,
        "amp": plan.train.amp,
        "plan_hash": plan_hash(plan),
        "splits": dict(splits),
        "versions": versions(),
    }


def _input_of(plan: Plan) -> dict[str, dict[str, Any]]:
    """The sections of the plan that say how to build and feed the network."""
    return {"preprocess": asdict(plan.preprocess), "model": asdict(plan.model)}


def require_same_input(meta: Mapping[str, Any], plan: Plan, field: str, value: object) -> None:
    """Weights of another network, or of other voxels, must not be gone on with.

    Args:
        meta: JSON beside the weights.
        plan: of the run that would start from them.
        field: key of the plan, for the error.
        value: what stands there, for the error.

    Raises:
        UserError: names the first setting that differs.
    """
    for section, wanted in _input_of(plan).items():
        theirs = dict(meta.get(section, {}))
        for key, ours in wanted.items():
            if key not in HOW_NOT_WHAT and theirs.get(key) != ours:
                raise UserError(
                    field,
                    value,
                    f"set {section}.{key} to that of the checkpoint, or start from another one",
                    problem=f"its {section}.{key} is {theirs.get(key)}, the plan's is {ours}",
                )


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads de-duplicated weights into the network."""
    load_unique(model, dict(state))


def size_bytes(state: Mapping[str, Tensor], names: Sequence[str], bits: int = 32) -> int:
    """Bytes of the named tensors, as they are or as `core.wire.state.packed` narrows them."""
    from core.wire.state import size_of  # training needs no safetensors

    return sum(size_of(state[n], bits) for n in names)


@functools.cache
def fingerprint() -> str:
    """SHA-256 of the part of `core` that travels in the app bundle: other code is refused."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if place.parts[0] not in INSTALLED:
            digest.update(place.as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
