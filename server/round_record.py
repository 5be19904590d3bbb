"""A round in published figures (D5): the journal's event, and the line for whoever follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.metrics.scores import without_distances
from core.plan.schema import LOSS_TERMS, LOSSES, Phase, Plan
from core.training.loss_weights import organ_weights, term_factors
from core.wire.messages import published
from server.exchange import Exchange
from server.guards import Accepted
from server.progress import Progress, Sums
from server.record import mean_of


@dataclass(frozen=True)
class Replies:
    """What came back in a round.

    Attributes:
        exchange: bytes and seconds.
        accepted: replies by site.
        rejected: reason codes by site.
    """

    exchange: Exchange
    accepted: Mapping[str, Accepted]
    rejected: Mapping[str, str]


def round_event(
    phase: Phase,
    replies: Replies,
    progress: Progress,
    *,
    scored: int,
    seconds: float,
    min_cell: int,
) -> dict[str, Any]:
    """The journal's ``round`` event.

    Seconds of compute are those of all sites together, at most until the slowest one answered: so
    waiting is never another site's computing, whether sites work side by side or in turn. Where a
    message has its own process (in deployment) sites do work side by side: there it is the
    slowest site's own, startup what its process took to begin, and transport holds the time in
    which messages moved between here and Flower's server. What is left is waiting: a node that
    looks for its message every few seconds and sends its reply on, a site that is late or lost.

    Args:
        phase: of the round.
        replies: of the round.
        progress: after the round.
        scored: round of the weights that the val scores belong to (D4).
        seconds: of the whole round.
        min_cell: smallest number of cases that is published.
    """
    done, good, rejected = replies.exchange, replies.accepted, replies.rejected
    sums = {s: dict(r.result.scores["val"]) for s, r in good.items() if "val" in r.result.scores}
    # A loss of few cases, or of a number that is not told, may be one patient's.
    told = [r.result for r in good.values() if r.result.cases >= min_cell or min_cell <= 1]
    losses = [result.loss for result in told if result.loss]
    slowest = max((done.seconds[s] for s in good), default=0.0)
    last = max(good, key=lambda s: done.seconds[s], default="")
    startup = max(good[last].result.startup, 0.0) if last else 0.0
    working = [good[last]] if startup else list(good.values())
    compute = min(sum(r.result.seconds for r in working), slowest)
    startup = min(startup, slowest - compute)
    moving = min(done.moving, slowest - compute - startup) if startup else 0.0
    cells, mean = published(control_scores(sums, phase), phase.organs, min_cell)
    terms = {k: mean_of([x[i] for x in losses]) for i, k in enumerate(LOSSES)}
    return {
        "event": "round",
        "phase": phase.name,
        "round": progress.round,
        "scored_round": scored,
        "loss": terms if losses else {},
        "sites": {s: {"val": c} for s, c in cells.items()},
        "mean": {"dice": mean["dice"], "hd95_mm": mean["hd95_mm"]},
        "best_round": best_round(phase, progress),
        "seconds": round(seconds, 3),
        "seconds_compute": round(compute, 3),
        "seconds_startup": round(startup, 3),
        "seconds_waiting": round(done.lasted - compute - startup - moving, 3),
        "seconds_transport": round(seconds - done.lasted + moving, 3),
        "bytes_to_sites": sum(done.sent.values()),
        "bytes_from_sites": sum(done.received.values()),
        "accepted": sorted(good),
        "rejected": dict(rejected),
    }


def control_scores(sums: Sums, phase: Phase) -> Sums:
    """Val sums as they may be shown: where HD95 is not computed, 0 travels in its place."""
    return sums if phase.validate_hd95 else without_distances(sums)


def published_weights(
    plan: Plan,
    phase: Phase,
    progress: Progress,
    event: Mapping[str, Any],
    factors: Sequence[float],
) -> dict[str, dict[str, float]]:
    """The weights that the round trained with, by loss term and by organ, for its event.

    Organ weights that follow the scores tell the scores: withheld, as {}, where one of these, or
    of those before, which they are made of as well, is (D5).
    """
    moved = term_factors(plan.weighting, event["round"], phase.rounds)
    terms = {t: getattr(plan.loss, t) * moved.get(t, 1.0) for t in LOSS_TERMS}
    if plan.weighting.by != "static" and progress.of_few:
        return {"terms": terms, "organs": {}}
    weights = organ_weights(plan.weighting, phase.organs, factors)
    return {"terms": terms, "organs": dict(zip(phase.organs, weights, strict=True))}


def round_line(phase: Phase, event: Mapping[str, Any], seconds_so_far: float) -> str:
    """The same for people, with an estimate of what is left."""
    number = event["round"]
    dice, loss = event["mean"]["dice"], event["loss"].get("total")
    untold = "withheld (few cases)" if _withholds(event) else "-"
    left = seconds_so_far / number * (phase.rounds - number)
    personal = phase.share == "none"
    parts = [
        f"{phase.name} {number}/{phase.rounds}",
        "" if loss is None else f"loss {loss:.3f}",
        f"val Dice {untold if dice is None else f'{dice:.3f}'} "
        f"(weights of round {event['scored_round']})"
        if personal or phase.validates(event["scored_round"])
        else "",
        f"best {event['best_round']}",
        ", ".join(event["accepted"]),
        f"rejected {', '.join(event['rejected'])}" if event["rejected"] else "",
        f"{event['seconds']:.1f} s, "
        + (f"about {left / 60:.1f} min of rounds left" if left else "the last round"),
    ]
    return "  ".join(p for p in parts if p)


def told_mean(block: Mapping[str, Any], split: str) -> str:
    """The mean Dice of a phase's split for people; where there is none, why."""
    dice = block["mean" if split == "test" else "mean_val"]["dice"]
    if dice is not None:
        return f"{dice:.3f}"
    cells = [cell for site in block["sites"].values() for cell in site[split].values()]
    few = any(cell.get("suppressed") for cell in cells)
    return "withheld (few cases)" if few else f"- (no {split} score was told)"


def _withholds(event: Mapping[str, Any]) -> bool:
    """Whether a val score of the round is suppressed at some site."""
    return any(c.get("suppressed") for s in event["sites"].values() for c in s["val"].values())


def best_round(phase: Phase, progress: Progress) -> int:
    """The round of the best weights; of a personal phase the latest of the sites' own."""
    if phase.share == "none":
        return max(progress.best_of.values(), default=0)
    return max(progress.best_round, 0)
