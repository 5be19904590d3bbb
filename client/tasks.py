"""What a site does for an order: train, validate, test; functions over a network and a site."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from client.local_epochs import Task, fit
from client.personal_weights import Kept, Personal, Stamp, mean_dice
from client.scoring import control_sums, score, write_cases, write_round_cases
from core.data.cached_case import Entry, annotating
from core.data.site import Site
from core.errors import UserError
from core.metrics.scores import OrganSum, organ_sums
from core.models.stages import head_rows, unique_state
from core.plan.schema import SPLITS, Phase, Plan, crop_words
from core.provenance import versions
from core.training.loss_weights import organ_factors
from core.training.optimisation import Averaged
from core.wire.messages import Description, Header, Result, withhold
from core.wire.partition import load_state, network, parts_of, weights_meta
from core.wire.state import length, shortened

State = dict[str, Tensor]
REMEDY_CROP = "correct preprocess.crop and preprocess.spacing_mm (millimetres), or the contours"


def describe(site: Site, plan: Plan, fingerprint: str) -> Description:
    """Counts of the prepared cases.

    Counts of organs that the site trains in personal phases only do not leave it (D9); of a site
    that has no other phase no count below `min_cell` does.

    Raises:
        UserError: no training case annotates an organ of a personal phase of this site.
    """
    entries = site.entries(plan)
    trained = [e for e in entries if e.split == "train"]
    own = [p for p in plan.phases if site.name in p.sites]
    for phase in own:
        if phase.share == "none":
            require_annotated(site.of_phase(plan, phase, "train"), plan, phase)
    shared = {o for p in own if p.share != "none" for o in p.organs}
    cell = 0 if shared else plan.federation.min_cell

    def told(count: int) -> int:
        return count if count == 0 or count >= cell else -1

    def annotate(split: str) -> tuple[int, ...]:
        """For the guard, which needs to know what this site contributes to."""
        if not plan.federation.secure_aggregation:
            return ()
        cases = [e.annotated for e in entries if e.split == split]
        return tuple(sum(o in shared and o in a for a in cases) for o in plan.organ_names)

    weighted = plan.loss.counts_classes
    rows = {o: annotating(trained, o) if o in shared else [] for o in plan.organ_names}
    return Description(
        site=site.name,
        fingerprint=fingerprint,
        split_hash=site.split_hash(),
        cases=tuple(told(sum(e.split == s for e in entries)) for s in SPLITS),  # type: ignore[arg-type]
        annotated=tuple(len(rows[o]) for o in plan.organ_names),
        voxels=tuple(float(sum(e.voxels.get(o, 0) for e in es)) for o, es in rows.items())
        if weighted
        else (),
        totals=tuple(float(sum(e.crop_voxels for e in es)) for es in rows.values())
        if weighted
        else (),
        left_out={k: told(n) for k, n in (dict(site.left_out) | overlaps(trained)).items()},
        versions=versions(),
        annotated_val=annotate("val"),
        annotated_test=annotate("test"),
    )


def train_shared(task: Task, state: State) -> tuple[State, Result]:
    """One round of a shared phase: scores the incoming weights on val, then trains (D4).

    What the phase keeps here joins the incoming weights, and is stored by round (D7). With `ditto`
    (Li et al., Ditto, ICML 2021, algorithm 1) that is a whole network beside the shared one,
    trained on the same cases and pulled towards the weights that came in.

    Args:
        task: which round.
        state: all weights that came in (base and shared).

    Returns:
        The trained weights and the numbers for the server.
    """
    started = time.perf_counter()
    plan, phase, order = task.plan, task.phase, task.order
    parts = parts_of(network(plan, phase), plan, phase)
    personal, kept = opened(task)
    model = own = loaded(plan, phase, state | kept.state)
    scores: dict[str, Mapping[str, OrganSum]] = {}
    if phase.validates(order.round - 1):
        scores["val"] = control_sums(task, model)
    incoming = {n: state[n] for n in parts.shared}
    strategy, factors = plan.federation.strategy, order.organ_factors
    pull = (strategy.proximal_mu, incoming) if strategy.name == "fedprox" else None
    if phase.ditto is not None:
        model = loaded(plan, phase, state)
        beside = (phase.ditto, incoming)
        fit(task, own, factors, pull=beside)
    result, _ = fit(task, model, factors, pull=pull)
    if parts.personal:
        now = unique_state(own)
        mine = Kept({n: now[n].detach().cpu().clone() for n in parts.personal}, {}, 0, -1.0)
        personal.keep(order.round, mine, {order.base_round, order.best_round})
    trained = unique_state(model)
    if not strategy.by_rows:
        rows = [n for n in head_rows(model) if n in parts.shared]
        trained = returned(trained, state, result.annotated, rows)
    if strategy.name == "dp":
        trained = clipped(trained, incoming, strategy.clip_norm)
    return trained, replace(result, seconds=time.perf_counter() - started, scores=scores)


def returned(
    trained: State, before: State, annotated: Sequence[int], heads: Sequence[str]
) -> State:
    """Rows of organs that no case here annotates go back as they came (D11).

    Args:
        trained: weights after training.
        before: weights that came in.
        annotated: training cases that annotate each organ.
        heads: parameters whose dim 0 is (background, organ 1, ...).
    """
    state = dict(trained)
    for name in heads:
        head = state[name].detach().clone()
        for c, count in enumerate(annotated, start=1):
            if count == 0:
                head[c] = before[name][c].to(head.device)
        state[name] = head
    return state


def clipped(trained: State, incoming: State, norm: float) -> State:
    """The update of what travels, shortened here to at most `norm` before it leaves (DP-FedAvg)."""
    after = {n: trained[n].detach().cpu() for n in incoming}
    long = length(after, incoming)
    return trained | shortened(after, incoming, norm / long) if long > norm else trained


def train_personal(task: Task, state: State) -> tuple[Header, Result]:
    """One personal round: trains, validates the outgoing weights, selects, keeps (D4, D7).

    Args:
        task: which round.
        state: the start weights of the phase.
    """
    started = time.perf_counter()
    plan, phase, order = task.plan, task.phase, task.order
    personal, kept = opened(task)
    model = loaded(plan, phase, state | kept.state)
    parts = parts_of(model, plan, phase)
    require_annotated(task.entries("train"), plan, phase)
    memory, factors = kept.optimiser or None, kept.organ_factors
    average = Averaged(phase.average_last, kept.steps, kept.average) if phase.average_last else None
    result, optimiser = fit(task, model, factors, optimiser_state=memory, average=average)
    now = unique_state(model)
    trained = {n: now[n].detach().cpu().clone() for n in parts.personal}
    mean = {n: t.detach().cpu() for n, t in average.mean.items()} if average else {}
    if mean:
        load_state(model, state | trained | mean)
    scored = phase.validates(order.round) or order.round == phase.rounds
    sums = control_sums(task, model) if scored else organ_sums((), phase.organs)
    dice = {o: c.dice / c.n for o, c in sums.items() if c.n > 0}
    factors = organ_factors(plan.weighting, phase.organs, dice, factors)
    value = mean_dice(sums, phase.organs)
    # Until a round has been scored the latest is the best.
    best_round, best_score = personal.best_before(order.round)
    if better := value > best_score or (value < 0 and best_score < 0):
        best_round, best_score = order.round, value
    steps = average.steps if average else 0
    mine = Kept(trained, optimiser, best_round, best_score, factors, mean, steps)
    personal.keep(order.round, mine, {order.base_round, order.best_round})
    if better:
        personal.export_best(unique_state(model), checkpoint_meta(task))
    if order.round in phase.test_rounds:
        write_round_cases(task, model)
    waited = (order.round - best_round) * phase.local_epochs
    header = task.header(stopped=waited >= phase.patience, best_round=best_round)
    enough = result.cases >= plan.federation.min_cell
    return header, Result(
        loss=result.loss if enough else (),
        seconds=time.perf_counter() - started,
        scores={"val": withhold(sums, plan.federation.min_cell)},
    )


def evaluate(task: Task, state: State) -> Result:
    """Scores the weights with what the site keeps: the latest on val, or the best on test."""
    started = time.perf_counter()
    plan, phase, order = task.plan, task.phase, task.order
    personal = phase.share == "none"
    if personal or phase.keep or phase.ditto is not None:
        state = own_weights(task, state)
    model = loaded(plan, phase, state)
    scores: dict[str, Mapping[str, OrganSum]] = {}
    if order.task != "test" or personal:
        scores["val"] = control_sums(task, model)
    if order.task == "test":
        cases = score(task, model, "test", draw=True)
        write_cases(task.site, phase, cases)
        scores["test"] = organ_sums(cases, phase.organs)
    if personal:
        cell = plan.federation.min_cell
        scores = {split: withhold(sums, cell) for split, sums in scores.items()}
    return Result(seconds=time.perf_counter() - started, scores=scores)


def kept_by(task: Task) -> Personal:
    """What the site keeps of the phase."""
    stamp = Stamp.of(task.order.run, task.plan, task.phase)
    return Personal(task.site.phase_folder(task.phase.name), stamp)


def opened(task: Task) -> tuple[Personal, Kept]:
    """What the site keeps of a phase, and of it the round that the order builds on.

    Raises:
        UserError: an earlier round than the site has come to: a server is one reply behind at most,
            and what the site has trained would be lost.
    """
    personal, order = kept_by(task), task.order
    if order.round < max(personal.store.rounds(), default=0):
        raise UserError(
            "base_round",
            order.base_round,
            "let the coordinator begin a new run, or resume this one",
            problem=f"phase {task.phase.name} has come further here; its weights are kept",
        )
    if order.base_round > 0:
        return personal, personal.load(order.base_round)
    if order.round == 1:
        personal.store.clear()
    return personal, Kept({}, {}, 0, -1.0)


def own_weights(task: Task, state: State) -> State:
    """All weights with the site's own of the latest round (``validate``) or of the best.

    The best is the round that the server knows as such; its weights become ``best.*`` (again).
    """
    personal, order = kept_by(task), task.order
    last = order.task == "validate"
    round_ = order.base_round if last else order.best_round
    own = personal.load(round_).scored if round_ > 0 or task.phase.share == "none" else {}
    whole = state | own
    if not last and personal.exported_round() != round_:
        personal.export_best(whole, checkpoint_meta(task) | {"round": round_})
    return whole


def require_annotated(entries: Sequence[Entry], plan: Plan, phase: Phase) -> None:
    """An organ that no training case annotates, or none within its crop, cannot be learnt.

    Raises:
        UserError: names the organs.
    """
    absent = [o for o in phase.organs if not any(o in e.annotated for e in entries)]
    if absent:
        raise UserError(
            "entries",
            ", ".join(absent),
            f"take them out of phases.{phase.name}.organs, or add cases that annotate them",
            problem="no training case annotates them",
        )
    outside = [o for o in phase.organs if not annotating(entries, o)]
    if outside:
        raise UserError(
            "entries",
            ", ".join(outside),
            REMEDY_CROP,
            problem=f"no training case has a voxel of them in its crop: {crop_words(plan)}",
        )


def overlaps(entries: Sequence[Entry]) -> dict[str, int]:
    """How many training cases have voxels that more than one organ claims (D16)."""
    count = sum(e.overlap_voxels > 0 for e in entries)
    return {"W_OVERLAP_RESOLVED": count} if count else {}


def loaded(plan: Plan, phase: Phase, state: Mapping[str, Tensor]) -> nn.Module:
    """The phase's network with these weights."""
    model = network(plan, phase)
    load_state(model, state)
    return model


def checkpoint_meta(task: Task) -> dict[str, Any]:
    """JSON beside a site's own best weights."""
    site, order = task.site, task.order
    meta = weights_meta(order.run, task.plan, task.phase, {site.name: site.split_hash()})
    return meta | {"round": order.round, "site": site.name, "score": None}
