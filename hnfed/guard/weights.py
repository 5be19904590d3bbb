"""What the weights of an order must be: derived at the site, before anything is done with them.

A site that is sent weights of the server's choosing can be asked for one case: weights can be made
so that it alone moves them (docs/privacy.md). Under ``weights: agreed`` the weights are those that
follow from the plan's seed, from earlier weights that this site has verified, and from what the
sites of the sums sent, each under its own signature. docs/decisions/0006-agreed-weights.md says why
that is enough, and for what it is not.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.models.stages import head_rows, unique_state
from core.plan.load import plan_from_json, plan_json
from core.plan.schema import Phase, Plan
from core.secure.hello import Hello, require_part
from core.secure.layout import (
    EVIDENCE,
    MOST_RATIO,
    Opened,
    are_shares,
    counted,
    following,
    longest,
    travelling,
    weight_segments,
)
from core.secure.masked_sum import NUMBER_BITS, UPDATE_BITS, Evidence, opened
from core.wire.partition import parts_of, start_state, state_hash
from core.wire.state import beyond, unpacked
from hnfed.guard.masking_session import Keyring, about_of, hellos_of
from hnfed.guard.order import Asked
from hnfed.guard.outline import outline_if_possible
from hnfed.guard.weights_record import Known, Part, Record, heads_parcel

TOLERANCE = 1e-6  # of a tensor's largest number: other builds of torch draw the last bit otherwise
State = dict[str, Tensor]


class WeightsError(RuntimeError):
    """The weights of an order are not those that this site derives; nothing was done with them."""


@dataclass(frozen=True)
class Form:
    """What of a phase's weights comes how.

    Attributes:
        base, shared: names.
        heads: names of those whose rows are organs.
        shapes: of all, without memory.
    """

    base: tuple[str, ...]
    shared: tuple[str, ...]
    heads: frozenset[str]
    shapes: Mapping[str, Tensor]


def require_weights(
    asked: Asked, records: Mapping[str, Any], keyring: Keyring | None, record: Record
) -> bool:
    """Requires that an order comes with the weights that follow from what is known here.

    Args:
        asked: an order of a phase.
        records: of the message: parcels of bytes.
        keyring: of this site, where the plan asks for sums.
        record: what was verified of this run; it grows.

    Returns:
        False where the base of the phase must come first, to be looked at.

    Raises:
        WeightsError: other weights, or nothing that shows what made them.
        MaskingError: the sites of the sums are not those that are known here.
    """
    phase, order = asked.phase, asked.order
    assert phase is not None
    form = _form(plan_json(asked.plan), phase.name)
    shared = _parcel(records, "arrays", form.shared, form.shapes)
    own = next((p for p in asked.plan.phases if p.name == phase.init and p.best_at_site), None)
    names = () if own is not None else form.base
    if bool(names) != bool(order.base_hash):
        raise WeightsError(f"base: {'none' if names else 'one'} is named")
    base = _parcel(records, "base", names, form.shapes) if "base" in records else None
    if base is not None and state_hash(base) != order.base_hash:
        raise WeightsError("base: another one than the order names")
    if own is not None:  # it begins from this site's own weights; nothing came
        _require_seen(asked.plan, own, record)
        return True
    digests = hashes(shared)
    round_ = {"train": order.round - 1, "validate": order.round}.get(order.task)
    if phase.share == "none":
        round_ = 0
    if not record.found(phase.name, order.base_hash, round_, digests):
        if not round_:
            if round_ is None:
                raise WeightsError(f"{order.task}: weights of no round that this site has seen")
            if names and base is None:
                return False
            _require_start(asked, phase, (base or {}) | shared, record)
        else:
            _require_following(asked, records, keyring, record, shared)
    if phase.share != "none" and order.task == "train":
        _note(asked, records, record, record.found(phase.name, order.base_hash, round_, digests))
    return True


def hashes(state: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor, by name."""
    return {name: state_hash(state, [name]) for name in sorted(state)}


@functools.lru_cache(16)
def _form(plan: str, name: str) -> Form:
    made = plan_from_json(plan)
    phase = made.phase(name)
    model = outline_if_possible(made, phase)
    parts = parts_of(model, made, phase)
    shapes = {n: t.detach().to("meta") for n, t in unique_state(model).items()}
    return Form(parts.base, parts.shared, frozenset(head_rows(model)), shapes)


def _parcel(
    records: Mapping[str, Any], key: str, names: Sequence[str], shapes: Mapping[str, Tensor]
) -> State:
    """The tensors of a parcel: those of the phase, finite, and no others."""
    content = records.get(key, b"")
    if bool(names) != bool(content):
        raise WeightsError(f"{key}: {'none came' if names else 'nothing of this phase travels'}")
    if not names:
        return {}
    expected = {n: shapes[n] for n in names}
    try:
        state = unpacked(content, expected)
    except ValueError as error:
        raise WeightsError(f"{key}: {error}") from None
    if {n: (t.shape, t.dtype) for n, t in state.items()} != {
        n: (t.shape, t.dtype) for n, t in expected.items()
    }:
        raise WeightsError(f"{key}: not the tensors of the phase")
    if not all(bool(torch.isfinite(t).all()) for t in state.values()):
        raise WeightsError(f"{key}: a number that is none")
    return state


def _require_start(asked: Asked, phase: Phase, state: State, record: Record) -> None:
    """Weights that a phase begins with: from the seed, or from one round of an earlier phase.

    What agrees is remembered as it came.
    """
    plan, heads = asked.plan, _form(plan_json(asked.plan), phase.name).heads
    if asked.order.base_round or asked.order.best_round:
        raise WeightsError(
            f"phase {phase.name}: it goes on from weights that stayed here, and its start was "
            "never looked at (weights: any until now); let the coordinator begin a new run"
        )
    digests = hashes(state)
    if phase.init == "scratch":
        found = _close(start_state(plan, phase, None), state)
        said = "its start is not what the plan's seed gives (or torch is of another version there)"
    else:
        found = _from_phase(asked, phase, state, digests, record)
        said = f"its start is of no round of phase {phase.init} that this site has seen"
    if not found:
        raise WeightsError(f"phase {phase.name}: {said}")
    told = heads_parcel({n: state[n] for n in heads if n in state})
    record.add(Known(phase.name, 0, asked.order.base_hash, digests, told))


def _from_phase(
    asked: Asked, phase: Phase, state: State, digests: Mapping[str, str], record: Record
) -> bool:
    """Whether all of a start is of one round of the phase before, its new rows as agreed."""
    heads = _form(plan_json(asked.plan), phase.name).heads
    body = [n for n in state if n not in heads]
    organs = next((p.organs for p in asked.plan.phases if p.name == phase.init), [])
    for known, old_heads in record.whole(phase.init):
        if all(known.get(n) == digests[n] for n in body):
            old = {n: state[n] for n in body} | old_heads
            try:
                expected = start_state(asked.plan, phase, (old, organs))
            except UserError:
                continue
            if _close(expected, state):
                return True
    return False


def _require_seen(plan: Plan, phase: Phase, record: Record) -> None:
    """What a phase left here was made of weights that were verified, in this run."""
    before = next((p for p in plan.phases if p.name == phase.init and p.best_at_site), None)
    if before is not None:
        _require_seen(plan, before, record)
    elif not any(k.phase == phase.name for k in record.known):
        raise WeightsError(
            f"phase {phase.name}: what it left here was made of weights that were not looked at "
            "(weights: any until now); let the coordinator begin a new run"
        )


def _close(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    """Equal up to the last bits of a tensor's largest number; a tensor of zeros exactly."""
    if set(expected) != set(state):
        return False
    for name, tensor in expected.items():
        far = (tensor.double() - state[name].double()).abs().max() if tensor.numel() else 0.0
        if not float(far) <= TOLERANCE * float(tensor.double().abs().max()) < math.inf:
            return False
    return True


def _require_following(
    asked: Asked,
    records: Mapping[str, Any],
    keyring: Keyring | None,
    record: Record,
    shared: State,
) -> None:
    """Weights that a round made: from those before it, and from all parts of its sum."""
    order, phase = asked.order, asked.phase
    assert phase is not None
    round_ = order.round - (order.task == "train")
    what = f"phase {phase.name}, weights of round {round_}"
    parts = [
        p
        for p in record.parts
        if (p.phase, p.round, p.base) == (phase.name, round_, order.base_hash)
    ]
    if not parts:
        raise WeightsError(
            f"{what}: this site was not there, or keeps no record of it (weights: any until now, "
            "or another state folder); let the coordinator begin a new run"
        )
    parcel = records.get(EVIDENCE, b"")
    if keyring is None or not parcel:
        raise WeightsError(
            f"{what}: what the sites signed did not come with them; the coordinator's folder of "
            "the run has lost it, or the site's policy said weights: any when the run began"
        )
    hellos = hellos_of(asked, keyring)
    found, before, bound = _opened(asked, parcel, keyring, record, (parts, hellos))
    kind = travelling(asked.plan, phase)
    segments = weight_segments(asked.plan, phase, hellos, kind)
    made, _ = following(round_, before, kind, segments, found)
    if beyond(made, before):  # as the server does with what is unusable
        made = before
    if any(not torch.equal(made[n], shared[n]) for n in made):
        raise WeightsError(f"{what}: not what the sites' signed parts add up to")
    heads = _form(plan_json(asked.plan), phase.name).heads
    told = heads_parcel({n: shared[n] for n in heads if n in shared})
    record.add(Known(phase.name, round_, order.base_hash, hashes(shared), told, bound))


def _opened(
    asked: Asked,
    parcel: bytes,
    keyring: Keyring,
    record: Record,
    about: tuple[Sequence[Part], Mapping[str, Hello]],
) -> tuple[Opened, State, float]:
    """The sum of a round, once every site's signature was verified.

    Args:
        asked: the order that came with its outcome.
        parcel: the evidence.
        keyring: of this site.
        record: of the run.
        about: orders of that round that this site answered, and who takes part in sums.

    Returns:
        The sum, the weights that the round began from, and the bound on the next updates.
    """
    parts, hellos = about
    phase = asked.plan.phase(asked.order.phase)
    sites, organs = sorted(hellos), len(phase.organs)
    shapes = travelling(asked.plan, phase).shapes.values()
    words = sum(int(np.prod(s, dtype=np.int64)) for s in shapes)
    what = f"phase {phase.name}, what the sites signed"
    try:
        told = Evidence.from_parcel(parcel, len(sites), words, len(counted(organs)))
    except ValueError as error:
        raise WeightsError(f"{what}: {error}") from None

    def signed(site: str, part: Part) -> bool:
        row = sites.index(site)
        content = told.words[row].tobytes(), told.counts[row].tobytes()
        try:
            key = keyring.public(site)
            require_part(told.signatures[row], key, bytes.fromhex(part.about), *content)
        except ValueError:
            return False
        return True

    part = next((p for p in parts if signed(keyring.site, p)), None)
    if part is None:
        raise WeightsError(f"{what}: this site's own part is not one that it sent in that round")
    if wrong := [s for s in sites if not signed(s, part)]:
        raise WeightsError(f"{what}: {', '.join(wrong)} did not sign that part of that try")
    before = record.start(part.start)
    if before is None:
        raise WeightsError(f"{what}: the weights that the round began from are not kept here")
    numbers = [float(v) for v in opened(list(told.counts), NUMBER_BITS)]
    counts = [round(v) for v in numbers[:-1]]
    if not are_shares(part.weights, counts):
        raise WeightsError(
            f"{what}: shares of {', '.join(f'{w:g}' for w in part.weights)} cases, and {counts} in "
            f"the round; as many or more make them shares, and at most {MOST_RATIO:g} times as "
            "many keep their precision"
        )
    guards = asked.plan.federation.guards
    bound = longest(numbers[-1], len(sites), guards.norm_factor) if guards.norm == "clip" else 0.0
    update = opened(list(told.words), UPDATE_BITS)
    return Opened(update, part.weights, counts), before, bound


def _note(asked: Asked, records: Mapping[str, Any], record: Record, known: Sequence[Known]) -> None:
    """Remembers what is about to be trained from, and for which sum."""
    order = asked.order
    if order.longest not in {k.longest for k in known}:
        raise WeightsError(
            f"longest: {order.longest:g}, and the updates of the round before give another bound"
        )
    if order.organ_factors and asked.plan.weighting.by == "static":
        raise WeightsError("organ_factors: the plan's weights of organs do not move")
    frequencies = tuple(float(v) for v in (*order.voxels, *order.totals))
    if any(p.phase == order.phase and p.frequencies != frequencies for p in record.parts):
        raise WeightsError("voxels, totals: other class frequencies than in the phase so far")
    parcel = records["arrays"]
    record.keep_start(parcel)
    part = Part(
        about=about_of(asked, parcel).hex(),
        phase=order.phase,
        round=order.round,
        base=order.base_hash,
        start=hashlib.sha256(parcel).hexdigest(),
        weights=tuple(float(w) for w in order.weights),
        frequencies=frequencies,
    )
    record.add(part)
