"""Which number of a masked vector is what, and whose: alike at the sites and at the server.

Two vectors leave a site in an exchange: the shares of its update (32 bits a number), and its counts
and sums (64 bits). A segment's members are known before anything is masked: from what every site
says of its own cases (`core.secure.hello`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.metrics.scores import SUM_FIELDS, OrganSum
from core.models.stages import head_rows, unique_state
from core.plan.load import plan_from_json, plan_json
from core.plan.schema import LOSSES, Phase, Plan
from core.secure.hello import Hello, fewest, members
from core.secure.masked_sum import Floats, Segment
from core.wire.messages import Result
from core.wire.partition import network, parts_of, still_at, thaw_rounds

SUMMED, HELLO, SIGNED = "masked", "hello", "signed"  # names on the wire
EVIDENCE = "evidence"
SCORED = {"train": "val", "validate": "val", "finish": "val", "test": "test"}  # split by task
WHOLE = ("cases", "steps", "skipped", "seconds", "square", "shortened", "told")
TALLIED = ("annotated", "voxels", "totals")
MOST_RATIO = 100.0  # cases of all that a share may be of, for each case of the round


@dataclass(frozen=True)
class Travelling:
    """What of a phase's weights travels.

    Attributes:
        shapes: by name.
        heads: those among them whose rows are organs, sorted.
        thaws: what is frozen at first, and the round from which on it trains.
    """

    shapes: Mapping[str, tuple[int, ...]]
    heads: tuple[str, ...]
    thaws: Mapping[str, int]

    def body(self) -> int:
        """Numbers that every site trains: all but the organs' rows of the head."""
        rows = sum(self.row(n) * (self.shapes[n][0] - 1) for n in self.heads)
        return sum(int(np.prod(s, dtype=np.int64)) for s in self.shapes.values()) - rows

    def row(self, name: str) -> int:
        """Numbers in one row of a head."""
        return int(np.prod(self.shapes[name][1:], dtype=np.int64))


def travelling(plan: Plan, phase: Phase) -> Travelling:
    """What travels in a shared phase."""
    return _travelling(plan_json(plan), phase.name)


@functools.lru_cache(16)
def _travelling(text: str, name: str) -> Travelling:
    plan = plan_from_json(text)
    phase = plan.phase(name)
    model = network(plan, phase)
    shared = parts_of(model, plan, phase).shared
    state = unique_state(model)
    shapes = {n: tuple(state[n].shape) for n in sorted(shared)}
    heads = tuple(sorted(n for n in head_rows(model) if n in shapes))
    return Travelling(shapes, heads, thaw_rounds(model, plan, phase))


def summed_sites(plan: Plan) -> tuple[str, ...]:
    """The sites of every sum: those of the plan's phases that share weights (all alike)."""
    return next((tuple(sorted(p.sites)) for p in plan.phases if p.share != "none"), ())


def weight_segments(
    plan: Plan, phase: Phase, hellos: Mapping[str, Hello], what: Travelling
) -> list[Segment]:
    """Of the first vector: the body with the background's rows, then the rows organ by organ."""
    rows = sum(what.row(n) for n in what.heads)
    body = Segment(what.body(), frozenset(hellos))
    return [body, *(Segment(rows, m) for m in organ_members(plan, phase, hellos, "train"))]


def organ_members(
    plan: Plan, phase: Phase, hellos: Mapping[str, Hello], split: str
) -> list[frozenset[str]]:
    """Members of each organ's part; nobody where a site keeps its scores to itself."""
    if split != "train" and not all(h.scores for h in hellos.values()):
        return [frozenset()] * len(phase.organs)
    return [members(hellos, split, plan.organ_names.index(o)) for o in phase.organs]


def closed_organs(
    plan: Plan, phase: Phase, hellos: Mapping[str, Hello], split: str = "train"
) -> list[str]:
    """Organs of the phase of which no sum can be opened: too few sites have cases of them."""
    found = organ_members(plan, phase, hellos, split)
    needed = fewest(hellos)
    return [o for o, m in zip(phase.organs, found, strict=True) if len(m) < needed]


def flat(state: Mapping[str, Tensor], what: Travelling) -> Floats:
    """The tensors as one vector, in the order of `weight_segments`."""
    organs = what.shapes[what.heads[0]][0] - 1 if what.heads else 0
    body = [state[n][:1] if n in what.heads else state[n] for n in what.shapes]
    rows = [state[n][c] for c in range(1, organs + 1) for n in what.heads]
    parts = [p.detach().cpu().contiguous().reshape(-1).double() for p in (*body, *rows)]
    vector: Floats = torch.cat(parts).numpy()
    return vector


def shaped(vector: Floats, what: Travelling) -> dict[str, Tensor]:
    """Inverse of `flat`, as float64 tensors."""
    state, at = {}, 0
    flat_ = torch.from_numpy(np.ascontiguousarray(vector))
    for name, shape in what.shapes.items():
        state[name] = torch.zeros(shape, dtype=torch.float64)
        size = what.row(name) if name in what.heads else int(np.prod(shape, dtype=np.int64))
        part = flat_[at : at + size]
        if name in what.heads:
            state[name][0] = part.reshape(shape[1:])
        else:
            state[name] = part.reshape(shape).clone()
        at += size
    organs = what.shapes[what.heads[0]][0] - 1 if what.heads else 0
    for c in range(1, organs + 1):
        for name in what.heads:
            size = what.row(name)
            state[name][c] = flat_[at : at + size].reshape(what.shapes[name][1:])
            at += size
    assert at == len(vector), "a vector of another phase"
    return state


def number_segments(
    plan: Plan, phase: Phase, hellos: Mapping[str, Hello], task: str
) -> list[Segment]:
    """Of the second vector, in a round or an evaluation."""
    sums = [Segment(len(SUM_FIELDS), m) for m in organ_members(plan, phase, hellos, SCORED[task])]
    if task != "train":
        return sums
    whole = Segment(len(WHOLE) + len(LOSSES), frozenset(hellos))
    counts = [Segment(1, m) for m in organ_members(plan, phase, hellos, "train")]
    return [whole, *counts, *sums]


def numbers(phase: Phase, task: str, result: Result, square: float, shortened: bool) -> Floats:
    """The second vector of a site.

    Args:
        phase: of the order.
        task: of the order.
        result: its numbers.
        square: of the length of its update.
        shortened: whether the update was made shorter before it left.
    """
    values: list[float] = []
    if task == "train":
        told = bool(result.loss)
        values += [result.cases, result.steps, result.skipped, result.seconds, square]
        values += [float(shortened), float(told), *(result.loss or [0.0] * len(LOSSES))]
        values += list(result.annotated) or [0.0] * len(phase.organs)
    sums = result.scores.get(SCORED[task], {})
    for organ in phase.organs:
        cell = sums.get(organ, OrganSum())
        values += [float(getattr(cell, name)) for name in SUM_FIELDS]
    return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True)
class Sum:
    """What the server learns of an exchange: sums over sites.

    Attributes:
        result: of all sites together; `loss` is the mean over those that tell it.
        square: sum of the squared lengths of the updates.
        shortened: how many sites shortened theirs.
    """

    result: Result
    square: float = 0.0
    shortened: int = 0


def summed(phase: Phase, task: str, vector: Floats) -> Sum:
    """Inverse of `numbers`, of a sum."""
    values = [float(v) for v in vector]
    organs, fields_ = len(phase.organs), len(SUM_FIELDS)
    head = len(WHOLE) + len(LOSSES) if task == "train" else 0
    whole, rest = values[:head], values[head:]
    annotated: tuple[int, ...] = ()
    if head:
        annotated, rest = tuple(round(v) for v in rest[:organs]), rest[organs:]
    rows = [rest[i * fields_ : (i + 1) * fields_] for i in range(organs)]
    cells = {o: _cell(row) for o, row in zip(phase.organs, rows, strict=True)}
    scores = {SCORED[task]: cells} if any(c.n for c in cells.values()) else {}
    if not head:
        return Sum(Result(scores=scores))
    cases, steps, skipped, seconds, square, shortened, told = whole[: len(WHOLE)]
    loss = tuple(v / told for v in whole[len(WHOLE) :]) if told >= 0.5 else ()
    result = Result(
        cases=round(cases),
        annotated=annotated,
        loss=loss,
        steps=round(steps),
        skipped=round(skipped),
        seconds=seconds,
        scores=scores,
    )
    return Sum(result, square, round(shortened))


def _cell(row: Sequence[float]) -> OrganSum:
    values: dict[str, Any] = dict(zip(SUM_FIELDS, row, strict=True))
    return OrganSum(**{k: round(v) if k in ("n", "detected") else v for k, v in values.items()})


def counted(organs: int) -> list[int]:
    """Places in a round's second vector of what the next weights follow from.

    Cases, those that annotate each organ, and the squared length of the updates; see `numbers`.
    """
    whole = len(WHOLE) + len(LOSSES)
    return [WHOLE.index("cases"), *range(whole, whole + organs), WHOLE.index("square")]


def longest(square: float, sites: int, factor: float) -> float:
    """Length to which the sites hold their next updates: a multiple of this round's (RMS).

    Args:
        square: sum of the squared lengths of this round's updates.
        sites: of the sum.
        factor: `federation.guards.norm_factor`.
    """
    return factor * math.sqrt(max(square, 0.0) / sites)


def are_shares(totals: Sequence[float], counts: Sequence[int]) -> bool:
    """Whether what the sites sent are shares of these totals, and precise enough.

    Args:
        totals: that a share is of: cases, and cases that annotate each organ.
        counts: the same of the round, summed over the sites; 0 where no sum opens.
    """
    pairs = zip(totals, counts, strict=True)
    return all(count <= 0 or count <= total <= MOST_RATIO * count for total, count in pairs)


@dataclass(frozen=True)
class Opened:
    """A round's sum of updates, and what makes it their mean.

    Attributes:
        update: sum of the sites' shares, in the order of `weight_segments`.
        totals: that a share is of: cases, and cases that annotate each organ; 0 where no sum opens.
        counts: the same of the round, summed over the sites.
    """

    update: Floats
    totals: Sequence[float]
    counts: Sequence[int]


def following(
    round_: int,
    before: Mapping[str, Tensor],
    what: Travelling,
    segments: Sequence[Segment],
    found: Opened,
) -> tuple[dict[str, Tensor], list[int]]:
    """The weights that a round makes: computed by the server, and again by each site that asks.

    In double precision, number by number, so that every machine gets the same bits. What is frozen
    in the round stays as it was, whatever a site added to it.

    Args:
        round_: that makes them, from 1.
        before: what travels, before the round; more names are allowed, and left out.
        what: travels.
        segments: of the update.
        found: the sum.

    Returns:
        What travels, after the round, and the organs (places in the phase) whose rows are kept:
        too few sites have cases of them.
    """
    vector, at, kept = found.update.copy(), 0, []
    for i, (segment, total, count) in enumerate(
        zip(segments, found.totals, found.counts, strict=True)
    ):
        part = slice(at, at + segment.length)
        vector[part] = vector[part] * (total / count) if total > 0 and count > 0 else 0.0
        if i and not (total > 0 and count > 0):
            kept.append(i - 1)
        at += segment.length
    still = still_at(what.thaws, round_)
    new = {
        name: before[name]
        if name in still
        else (before[name].double() + update).to(before[name].dtype)
        for name, update in shaped(vector, what).items()
    }
    return new, kept


def tally_segments(plan: Plan, hellos: Mapping[str, Hello]) -> list[Segment]:
    """Of what is summed before the first round: cases by split, then three numbers an organ."""
    rows = [members(hellos, "train", i) for i in range(len(plan.organ_names))]
    return [Segment(3, frozenset(hellos)), *(Segment(len(TALLIED), m) for m in rows)]


def tally(
    cases: Sequence[int],
    annotated: Sequence[float],
    voxels: Sequence[float],
    totals: Sequence[float],
) -> Floats:
    """That vector of a site; rows that it does not tell are empty."""
    organs = len(annotated)
    rows = [list(r) or [0.0] * organs for r in (annotated, voxels, totals)]
    by_organ = [rows[k][i] for i in range(organs) for k in range(len(TALLIED))]
    return np.asarray([*cases, *by_organ], dtype=np.float64)


def tallied(vector: Floats) -> tuple[list[float], dict[str, list[float]]]:
    """Inverse of `tally`, of a sum: cases by split, and by name one number an organ."""
    values = [float(round(v)) for v in vector]
    rows = values[3:]
    return values[:3], {n: rows[k :: len(TALLIED)] for k, n in enumerate(TALLIED)}
