"""Weights that stay: a site's own rounds of a personal phase, its selection, and the base cache."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from core.data.quota import prune, touch
from core.errors import UserError
from core.files import private_folder
from core.identifiers import digest as parsed_digest
from core.plan.load import plan_hash
from core.plan.schema import Phase, Plan
from core.wire.checkpoint import load, load_meta, save
from core.wire.partition import state_hash
from core.wire.round_checkpoints import RoundStore

OPTIMISER = "optimiser."
AVERAGE = "average."
STAMP = "stamp"


@dataclass(frozen=True)
class Stamp:
    """For what a store was made; it is opened for that alone.

    Attributes:
        run: hnfed's id of the run.
        plan: hash of the plan.
        phase: name of the phase.
        share: what of the phase travels: what never leaves is not opened where anything does.
    """

    run: str
    plan: str
    phase: str
    share: str

    @classmethod
    def of(cls, run: str, plan: Plan, phase: Phase) -> Self:
        """Of a phase of a run."""
        return cls(run, plan_hash(plan), phase.name, phase.share)

    def require(self, meta: Mapping[str, Any]) -> None:
        """Requires that stored weights carry this stamp.

        Raises:
            UserError: they carry another, or none.
        """
        if meta.get(STAMP) != asdict(self):
            raise UserError(
                "base_round",
                meta.get("round", "best"),
                "begin a new run: weights that a site keeps serve the run, plan and phase that "
                "made them, and no other",
                problem="the weights that are kept here belong to another run, plan or share",
            )


@dataclass(frozen=True)
class Kept:
    """What a site keeps of one personal round; `average` with `average_last`, after `steps`."""

    state: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    best_round: int
    best_score: float
    organ_factors: list[float] = field(default_factory=list)
    average: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    @property
    def scored(self) -> dict[str, Tensor]:
        """The weights that are scored and exported: averaged, where the phase averages."""
        return self.state | self.average


class Personal:
    """Personal weights by (run, phase, round), never overwritten (D7).

    Args:
        folder: of the phase at the site.
        stamp: what they are opened for.
    """

    def __init__(self, folder: Path, stamp: Stamp) -> None:
        self.folder = folder
        self.stamp = stamp
        self.store = RoundStore(folder / "rounds")

    def load(self, round_: int) -> Kept:
        """Weights and optimiser of a round.

        Raises:
            UserError: the site does not have them.
        """
        if round_ not in self.store.rounds():
            raise UserError("base_round", round_, "resume from a round that this site still keeps")
        tensors, meta = self.store.get(round_)
        self.stamp.require(meta)

        def below(prefix: str) -> dict[str, Tensor]:
            found = [k for k in tensors if k.startswith(prefix)]
            return {k.removeprefix(prefix): tensors[k] for k in found}

        return Kept(
            state={k: v for k, v in tensors.items() if not k.startswith((OPTIMISER, AVERAGE))},
            optimiser=below(OPTIMISER),
            average=below(AVERAGE),
            steps=int(meta.get("steps", 0)),
            best_round=int(meta["best_round"]),
            best_score=float(meta["best_score"]),
            organ_factors=[float(f) for f in meta.get("organ_factors", [])],
        )

    def keep(self, round_: int, kept: Kept, acknowledged: Iterable[int] = ()) -> None:
        """Commits a round and keeps {best, last two}, and what the server still counts on.

        Args:
            round_: the round.
            kept: its weights.
            acknowledged: rounds that the order named: where the server stands if a reply is lost.
        """
        tensors = dict(kept.state) | {OPTIMISER + k: v for k, v in kept.optimiser.items()}
        tensors |= {AVERAGE + k: v for k, v in kept.average.items()}
        meta = {
            "round": round_,
            "best_round": kept.best_round,
            "best_score": kept.best_score,
            "organ_factors": kept.organ_factors,
            "steps": kept.steps,
            STAMP: asdict(self.stamp),
        }
        self.store.put(round_, tensors, meta)
        self.store.prune({round_, round_ - 1, kept.best_round, *acknowledged})

    def best_before(self, round_: int) -> tuple[int, float]:
        """The best round of those before this one, also of one whose reply was lost; its score."""
        found = [(0, -1.0)]
        for kept in self.store.rounds():
            meta = self.store.meta(kept)
            self.stamp.require(meta)
            if kept < round_:
                found.append((int(meta["best_round"]), float(meta["best_score"])))
        return max(found, key=lambda one: (one[1], one[0]))

    def export_best(self, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Writes ``PHASE/best.safetensors``: complete (encoder and personal), loadable as MODEL."""
        save(self.folder, "best", dict(state), dict(meta) | {STAMP: asdict(self.stamp)})

    def best(self) -> dict[str, Tensor]:
        """The complete best weights of this phase.

        Raises:
            UserError: the site does not have them, or has them from another run, plan or share.
        """
        state, meta = load(self.folder / "best.safetensors")
        self.stamp.require(meta)
        return state

    def exported_round(self) -> int:
        """The round whose weights ``best.safetensors`` holds; -1 where there are none."""
        path = self.folder / "best.safetensors"
        return int(load_meta(path).get("round", -1)) if path.is_file() else -1


def cached_base(folder: Path, digest: str) -> dict[str, Tensor] | None:
    """The base with that SHA-256 from the site's disk (D8); None where it is absent or damaged."""
    path = folder / f"{parsed_digest(digest)}.safetensors"
    if not path.is_file():
        return None
    try:
        state, _ = load(path)
    except (UserError, OSError, json.JSONDecodeError):
        return None
    if state_hash(state) != digest:
        return None
    touch(path)
    return state


def keep_base(folder: Path, digest: str, state: Mapping[str, Tensor], quota_bytes: int = 0) -> bool:
    """Stores a base under its hash; False (and nothing stored) where the hash does not fit.

    Args:
        folder: of the bases.
        digest: SHA-256 of the base.
        state: its tensors, of the names and shapes that the plan asks for.
        quota_bytes: of all bases together: those not used for longest go, the server sends them
            again; 0 for no limit.

    Raises:
        UserError: this base alone is larger.
    """
    if state_hash(state) != parsed_digest(digest):
        return False
    private_folder(folder)
    size = sum(t.numel() * t.element_size() for t in state.values())
    if quota_bytes and size > quota_bytes:
        raise UserError("base", f"{size} bytes", "raise base_gb in the site file")
    save(folder, digest, dict(state), {"kind": "base"})
    if quota_bytes:
        prune(folder, "*.*", quota_bytes, frozenset((digest,)))
    return True


def mean_dice(sums: Mapping[str, Any], organs: Sequence[str]) -> float:
    """Unweighted mean over the organs that have cases; -1 without any."""
    means = [sums[o].dice / sums[o].n for o in organs if o in sums and sums[o].n > 0]
    return sum(means) / len(means) if means else -1.0
