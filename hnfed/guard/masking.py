"""Secure aggregation at a site: its key of the run, the others' keys, and what it ever masked.

Called with a reply that has passed everything else; what it returns may leave, and nothing of it
tells this site's part. Where anything about the others is in doubt nothing is masked and nothing
leaves: the error names what, and stays at the site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.plan.schema import Phase
from core.secure.hello import fewest, part_signed
from core.secure.layout import (
    HELLO,
    SCORED,
    SIGNED,
    SUMMED,
    Travelling,
    counted,
    flat,
    number_segments,
    numbers,
    tally,
    tally_segments,
    travelling,
    weight_segments,
)
from core.secure.masked_sum import (
    NUMBER_BITS,
    UPDATE_BITS,
    UPDATE_LIMIT,
    Floats,
    Segment,
    Words,
    fixed,
)
from core.wire.messages import OK, Description, Result
from core.wire.state import packed, unpacked
from hnfed.guard.masking_session import (
    Keyring,
    MaskingError,
    Session,
    flags,
    own_hello,
    session_of,
)
from hnfed.guard.order import Asked

Config = dict[str, Any]


def secured(
    asked: Asked,
    incoming: bytes,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    state: Mapping[str, Tensor],
    keyring: Keyring,
) -> tuple[Config, Config, bytes]:
    """The reply as it may leave under secure aggregation: a hello, masked numbers, or a code.

    Args:
        asked: what it answers; its plan asks for secure aggregation.
        incoming: the parcel of weights that came with it, as it came; b"" where none did.
        config: text and numbers of the reply's head.
        metrics: its numbers, with what the policy keeps back: the keyring says what that is.
        state: the weights that are to travel.
        keyring: of this site.

    Returns:
        Scalars, numbers, and the parcel of masked weights (b"" where no weights travel).

    Raises:
        MaskingError: another site, the order or this site's own cases are not as agreed.
    """
    if config.get("code") != OK:
        return dict(config), _bare(metrics), b""
    if asked.kind == "query":
        return _described(asked, incoming, config, metrics, keyring)
    phase = asked.plan.phase(asked.order.phase)
    if phase.share == "none":  # its scores are the site's alone: there may be no sum to hide in
        return dict(config), _bare(metrics), b""
    plan, task = asked.plan, asked.order.task
    with session_of(asked, incoming, keyring) as session:
        hellos = session.hellos
        result = _own(asked, phase, Result.from_metrics(metrics, phase.organs), session)
        parcel, square, shortened, update_words = b"", 0.0, False, None
        if asked.kind == "train":
            what = travelling(plan, phase)
            update, square, shortened = _update(asked, incoming, state, what)
            segments = weight_segments(plan, phase, hellos, what)
            _weigh(update, segments, result, asked.order.weights, fewest(hellos))
            update_words = session.masked(_fixed(update, UPDATE_BITS, 1, 32), segments, "weights")
            parcel = packed({SUMMED: torch.from_numpy(update_words.view(np.int32))})
        values = _fixed(numbers(phase, task, result, square, shortened), NUMBER_BITS, len(hellos))
        vector = session.masked(values, number_segments(plan, phase, hellos, task), "numbers")
    told = dict(config)
    if update_words is not None and any(h.evidence for h in hellos.values()):
        counts = vector[counted(len(phase.organs))]
        signature = part_signed(
            keyring.key, session.about, update_words.tobytes(), counts.tobytes()
        )
        told[SIGNED] = signature.hex()
    return told, _bare(metrics) | {SUMMED: _whole(vector)}, parcel


def _described(
    asked: Asked,
    incoming: bytes,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    keyring: Keyring,
) -> tuple[Config, Config, bytes]:
    """Before the first round: who this site is, or, once all have said so, the masked counts."""
    told = Description.from_records(config, metrics)
    untold = {k: -1 for k in metrics if k.startswith("left_out.")} | {"cases": [-1, -1, -1]}
    if not asked.order.peers:
        return dict(config) | {HELLO: own_hello(asked, told, keyring)}, untold, b""
    with session_of(asked, incoming, keyring) as session:
        hellos = session.hellos
        if not all(h.counts for h in hellos.values()):
            raise MaskingError("counts: a site does not let its numbers into sums")
        if flags(told.annotated) != hellos[keyring.site].train:
            raise MaskingError("cases: other organs are annotated than when the run began")
        values = tally(told.cases, told.annotated, told.voxels, told.totals)
        segments = tally_segments(asked.plan, hellos)
        words = _fixed(values, NUMBER_BITS, len(hellos))
        vector = session.masked(words, segments, "numbers")
    return dict(config), untold | {SUMMED: _whole(vector)}, b""


def _own(asked: Asked, phase: Phase, result: Result, session: Session) -> Result:
    """The result as it weighs: by cases, or every site alike where one keeps its counts (D5).

    Raises:
        MaskingError: it has cases of other organs than it told the others: an organ's sum would
            be over fewer sites than they agreed to.
    """
    own, plan = session.hellos[session.own], asked.plan
    organs = [plan.organ_names.index(o) for o in phase.organs]
    split = SCORED[asked.order.task]
    if own.scores:
        sums = result.scores.get(split, {})
        for organ, i in zip(phase.organs, organs, strict=True):
            if (organ in sums and sums[organ].n > 0) != own.has(split, i):
                raise MaskingError(f"cases: {split} cases of {organ} are not as told before")
    if asked.kind != "train":
        return result
    declared = tuple(int(own.has("train", i)) for i in organs)
    if own.counts and tuple(min(n, 1) for n in result.annotated) != declared:
        raise MaskingError("cases: other organs are annotated than when the run began")
    if not all(h.counts for h in session.hellos.values()):
        return replace(result, cases=1, annotated=declared)
    return result


def _update(
    asked: Asked, incoming: bytes, state: Mapping[str, Tensor], what: Travelling
) -> tuple[Floats, float, bool]:
    """What training added, within the plan's bound: the guard that the server cannot be.

    Returns:
        The update, the square of its length, and whether it was made shorter.
    """
    before = unpacked(incoming)
    for tensors in (state, before):
        if {n: tuple(t.shape) for n, t in tensors.items()} != dict(what.shapes):
            raise MaskingError("weights: other tensors than those that travel")
    if not all(t.is_floating_point() for t in state.values()):
        raise MaskingError("weights: a tensor of whole numbers cannot be masked")
    update = flat(state, what) - flat(before, what)
    long, largest = float(np.linalg.norm(update)), float(np.abs(update).max(initial=0.0))
    factor = 1.0 if largest <= UPDATE_LIMIT else UPDATE_LIMIT / largest
    if 0 < asked.order.longest < long * factor:
        factor = asked.order.longest / long
    if factor < 1.0:
        update *= factor
    return update, (long * factor) ** 2, factor < 1.0


def _weigh(
    update: Floats,
    segments: Sequence[Segment],
    result: Result,
    totals: Sequence[float],
    needed: int,
) -> None:
    """Makes an update this site's share of the sum: body by cases, rows by those that annotate.

    A total of 0 stands for a part of which no sum opens, and for no other: the server may not
    choose which parts of the network a round moves.
    """
    own = (result.cases, *result.annotated)
    if not len(own) == len(totals) == len(segments):
        raise MaskingError("weights: totals of another phase")
    at = 0
    for count, total, segment in zip(own, totals, segments, strict=True):
        opens = len(segment.members) >= needed
        if (total > 0 or opens) and not 0 <= count <= total:
            raise MaskingError(f"weights: {count} cases here of {total:g} at all sites")
        update[at : at + segment.length] *= count / total if total > 0 else 0.0
        at += segment.length


def _bare(metrics: Mapping[str, Any]) -> Config:
    """What every reply says. How long a site took tells how many cases it has: that is summed."""
    return {"cases": 0, "steps": 0, "skipped": 0, "seconds": 0.0, "startup": 0.0}


def _fixed(values: Floats, bits: int, sites: int, width: int = 64) -> Words:
    try:
        return fixed(values, bits, sites, width)
    except ValueError as error:
        raise MaskingError(f"numbers: {error}") from None


def _whole(vector: Words) -> list[int]:
    """As a MetricRecord carries it."""
    whole: list[int] = vector.view(np.int64).tolist()
    return whole
