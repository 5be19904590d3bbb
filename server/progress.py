"""Where a phase stands, and which of its rounds is the best so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from core.metrics.scores import OrganSum
from core.plan.schema import Weighting
from core.training.loss_weights import organ_factors

State = dict[str, Tensor]
Sums = dict[str, dict[str, OrganSum]]


@dataclass
class Progress:
    """Where a phase stands; kept in the private store with the weights of the round.

    Attributes:
        round: last committed round.
        scored: last round whose weights have val scores.
        best_round: round of the best weights so far (-1: none scored yet).
        best: the sums of that round; {} where no site tells any.
        organ_factors: on the organs' weights in the next round; empty: 1.
        acknowledged: last round whose weights a site keeps, where the phase leaves it any.
        best_of: the site's own best round; of a shared phase with weights that stay, the round of
            these beside the best shared ones.
        odd: organs by site that stood out in the last scored round (`server.score_outliers`).
        flagged: organs by site that the coordinator was told of.
        stopped: personal phases: whether the site is through.
        sent: bytes to the sites so far.
        received: bytes from the sites so far.
        seconds: of all rounds so far.
        missing: sites without a right reply in the last round, with the reason code.
        slowest: of the last rounds, seconds until the last reply that was accepted came.
        longest: secure aggregation: length to which the sites hold their updates; 0: no bound yet.
        of_few: whether a score of fewer than `min_cell` cases stands behind the organ factors.
    """

    round: int = 0
    scored: int = -1
    best_round: int = -1
    best: Sums = field(default_factory=dict)
    organ_factors: list[float] = field(default_factory=list)
    acknowledged: dict[str, int] = field(default_factory=dict)
    best_of: dict[str, int] = field(default_factory=dict)
    odd: dict[str, list[str]] = field(default_factory=dict)
    flagged: dict[str, list[str]] = field(default_factory=dict)
    stopped: dict[str, bool] = field(default_factory=dict)
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    slowest: list[float] = field(default_factory=list)
    longest: float = 0.0
    of_few: bool = False
    missing: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Readable JSON."""
        plain = dict(self.__dict__)
        plain["best"] = {s: {o: vars(c) for o, c in m.items()} for s, m in self.best.items()}
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """Inverse of `to_json`."""
        plain = dict(values)
        plain["best"] = {
            s: {o: OrganSum(**c) for o, c in m.items()} for s, m in values["best"].items()
        }
        return cls(**plain)


def judge(progress: Progress, sums: Sums, round_: int) -> bool:
    """Is w(round_) the best so far? Compared over the same (site, organ) pairs only (D4).

    Args:
        progress: changed in place.
        sums: val sums by site; a site that tells none, or has no val case, counts as absent.
        round_: whose weights were scored.

    Returns:
        False where no site tells a score: then the latest weights stand for the best (D5).
    """
    progress.scored = round_
    told = {s: m for s, m in sums.items() if any(c.n > 0 for c in m.values())}
    if not told:
        if not progress.best:
            progress.best_round = round_
        return False
    common = _pairs(told) & _pairs(progress.best)
    better = bool(common) and score(told, common) > score(progress.best, common)
    if better or not progress.best:
        progress.best_round, progress.best = round_, told
    return True


def weigh(
    progress: Progress, settings: Weighting, organs: Sequence[str], sums: Sums
) -> tuple[str, ...]:
    """Sets the organ factors of the next round after these val scores.

    Args:
        progress: changed in place.
        settings: the plan's `weighting`.
        organs: of the phase.
        sums: val sums by site, {} of a site that tells none.

    Returns:
        Sites that tell no score: then all organs keep their static weight (D5).
    """
    if settings.by == "static":
        return ()
    silent = tuple(s for s, m in sums.items() if not _pairs({s: m}))
    dice = _organ_dice(sums, _pairs(sums))
    before = progress.organ_factors
    progress.organ_factors = [] if silent else organ_factors(settings, organs, dice, before)
    return silent


def score(sums: Sums, pairs: set[tuple[str, str]]) -> float:
    """Unweighted mean over the organs of the Dice over all cases of these (site, organ) pairs."""
    means = _organ_dice(sums, pairs)
    return sum(means.values()) / len(means)


def fewest_cases(sums: Sums) -> int:
    """Of the cells with cases, the number of the smallest; 0 where there are none."""
    return min((sums[s][o].n for s, o in _pairs(sums)), default=0)


def most_cases(sums: Sums) -> dict[str, float]:
    """By site the cases of its largest cell."""
    return {s: float(max((c.n for c in m.values()), default=0)) for s, m in sums.items()}


def _organ_dice(sums: Sums, pairs: set[tuple[str, str]]) -> dict[str, float]:
    means = {}
    for organ in sorted({o for _, o in pairs}):
        cells = [sums[s][o] for s, o in sorted(pairs) if o == organ]
        means[organ] = sum(c.dice for c in cells) / sum(c.n for c in cells)
    return means


def _pairs(sums: Sums) -> set[tuple[str, str]]:
    return {(s, o) for s, organs in sums.items() for o, cell in organs.items() if cell.n > 0}
