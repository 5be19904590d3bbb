"""The round loop of one phase: shared rounds with best, patience and resume, or rounds of a personal phase."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from core.config import Phase, Plan, plan_hash
from core.metrics import OrganSum
from core.models.stages import head_rows
from core.phases import Parts, network, parts_of, size_bytes, start_state, state_hash
from core.protocol import LOSS_TERMS, Description, Order, published
from core.versions import versions
from server.aggregate import aggregate_head
from server.exchange import Exchange, exchange
from server.guards import Accepted, inspect
from server.record import Recorder, mean_of, tell
from server.strategy import ARRAYS, METRICS, ORDER, WEIGHT, build_strategy

State = dict[str, Tensor]
Sums = dict[str, dict[str, OrganSum]]


class RunFailed(RuntimeError):
    """The run cannot go on; its state is intact and can be resumed."""


@dataclass
class Progress:
    """Where a phase stands; kept in the private store with the weights of the round.

    Attributes:
        round: last committed round.
        scored: last round whose weights have val scores.
        best_round, best: round of the best weights so far (-1: none scored yet), and its sums.
        acknowledged: personal phases: last round whose weights a site keeps.
        best_of, stopped: personal phases: the site's own best round, and whether it is through.
    """

    round: int = 0
    scored: int = -1
    best_round: int = -1
    best: Sums = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    best_of: dict[str, int] = field(default_factory=dict)
    stopped: dict[str, bool] = field(default_factory=dict)
    sent: int = 0
    received: int = 0
    seconds: float = 0.0

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


class PhaseRun:
    """One phase of one run, from its start weights to its metrics block."""

    def __init__(
        self,
        grid: Grid,
        plan: Plan,
        phase: Phase,
        recorder: Recorder,
        nodes: Mapping[str, int],
        described: Mapping[str, Description],
        fingerprint: str,
        previous: tuple[State, list[str]] | None,
        local_start: bool,
    ) -> None:
        self.grid = grid
        self.plan = plan
        self.phase = phase
        self.recorder = recorder
        self.described = {s: described[s] for s in phase.sites if s in described}
        self.nodes = {s: nodes[s] for s in sorted(phase.sites) if s in nodes}
        self.fingerprint = fingerprint
        model = network(plan, phase)
        self.parts: Parts = parts_of(model, plan, phase)
        self.heads = head_rows(model)
        self.start = start_state(plan, phase, previous)
        self.personal = phase.share == "none"
        self.base_hash = "" if local_start or not self.parts.base else state_hash(self.start, self.parts.base)
        self.store = recorder.store(phase.name)
        self.strategy = build_strategy(plan.federation.strategy)
        self.voxels, self.totals = self._frequencies()
        self.meta = self._meta()

    # ---------------------------------------------------------------------------------- the loop

    def run(self, resume: bool) -> tuple[State, dict[str, Any]]:
        """Runs the phase to its end.

        Returns:
            The best weights (the start weights of a personal phase), and the phase's metrics block.

        Raises:
            RunFailed: fewer sites than the quorum answered, too often.
        """
        state, progress = self._begin(resume)
        shared = [n for n in self.parts.shared]
        trainable = size_bytes(self.start, [n for n in self.start if n not in self.parts.frozen])
        total = sum(v.numel() for v in self.start.values())
        self.recorder.say({
            "event": "phase-start", "phase": self.phase.name, "organs": list(self.phase.organs),
            "sites": list(self.nodes), "rounds": self.phase.rounds, "parameters": total,
            "trainable": total - sum(self.start[n].numel() for n in self.parts.frozen),
            "frozen": sum(self.start[n].numel() for n in self.parts.frozen),
            "shared": sum(self.start[n].numel() for n in shared),
            "trainable_bytes": trainable,
        })
        reason = "all rounds done"
        while progress.round < self.phase.rounds:
            if self.personal and all(progress.stopped.get(s) for s in self.nodes):
                reason = "no gain at any site within patience"
                break
            state = self._round(state, progress)
            waited = (progress.scored - max(progress.best_round, 0)) * self.phase.local_epochs
            if not self.personal and progress.best_round >= 0 and waited >= self.phase.patience:
                reason = f"no gain within patience ({self.phase.patience} epochs)"
                break
        if not self.personal:
            self._score_last(state, progress)
        best = self.store.get(max(progress.best_round, 0))[0] if not self.personal else self.start
        block = self._close(best, progress)
        self.recorder.say({
            "event": "phase-end", "phase": self.phase.name, "best_round": block["best_round"],
            "rounds": progress.round, "reason": reason, "seconds": progress.seconds,
        })
        return best, block

    def _begin(self, resume: bool) -> tuple[State, Progress]:
        rounds = self.store.rounds() if resume else []
        if rounds:
            state, meta = self.store.get(rounds[-1])
            tell(f"{self.phase.name}: resumed after round {rounds[-1]}")
            return state, Progress.from_json(meta["progress"])
        self.store.clear()
        progress = Progress()
        self._commit(self.start, progress)
        return self.start, progress

    def _round(self, state: State, progress: Progress) -> State:
        round_ = progress.round + 1
        asked = [s for s in self.nodes if not progress.stopped.get(s)]
        quorum = min(self.plan.federation.min_sites or 1, len(asked)) if self.personal else (
            self.plan.federation.min_sites or 1
        )
        for attempt in range(self.plan.federation.round_retries + 1):
            started = time.monotonic()
            orders = {s: self._order(round_, "train", progress, s) for s in asked}
            done = self._send(orders, state, "train")
            good, rejected = self._sift(done, asked, round_, state)
            if len(good) >= quorum:
                break
            self.recorder.note(
                f"round {round_}: {len(good)} of {len(asked)} sites answered rightly, {quorum} needed; "
                f"{'asked again' if attempt < self.plan.federation.round_retries else 'given up'}",
                self.phase.name,
            )
        else:
            codes = ", ".join(f"{s}: {c}" for s, c in rejected.items())
            raise RunFailed(
                f"phase {self.phase.name}, round {round_}: fewer than {quorum} sites answered rightly "
                f"({codes}). Mend the sites (each keeps its own client.log) and continue with --resume"
            )
        if self.personal:
            for site, reply in good.items():
                progress.acknowledged[site] = round_
                progress.best_of[site] = reply.header.best_round
                progress.stopped[site] = reply.header.stopped
            new, scored = state, round_
        else:
            self._judge({s: dict(r.result.scores.get("val", {})) for s, r in good.items()}, round_ - 1, progress)
            new, scored = self._aggregate(state, good, round_), round_ - 1
        progress.round = round_
        progress.sent += sum(done.sent.values())
        progress.received += sum(done.received.values())
        progress.seconds += time.monotonic() - started
        self._commit(new, progress)
        self._tell_round(done, good, rejected, round_, scored, progress, time.monotonic() - started)
        return new

    def _score_last(self, state: State, progress: Progress) -> None:
        """After the last round one evaluate exchange scores the last weights on val (D4)."""
        if progress.scored >= progress.round:
            return
        orders = {s: self._order(progress.round, "validate", progress, s) for s in self.nodes}
        done = self._send(orders, state, "evaluate")
        good, _ = self._sift(done, list(self.nodes), progress.round, None)
        self._judge({s: dict(r.result.scores.get("val", {})) for s, r in good.items()}, progress.round, progress)
        progress.sent += sum(done.sent.values())
        progress.received += sum(done.received.values())
        self._commit(state, progress)

    def _close(self, best: State, progress: Progress) -> dict[str, Any]:
        """The best weights are scored on test, once; a personal phase scores each site's own best."""
        cell = self.plan.federation.min_cell
        orders = {s: self._order(progress.round, "test", progress, s) for s in self.nodes}
        done = self._send(orders, best, "evaluate")
        good, rejected = self._sift(done, list(self.nodes), progress.round, None)
        for site, code in rejected.items():
            self.recorder.note(f"no test scores from {site} ({code})", self.phase.name)
        tests: Sums = {s: dict(r.result.scores.get("test", {})) for s, r in good.items()}
        vals: Sums = {s: dict(r.result.scores.get("val", {})) for s, r in good.items()} if self.personal else progress.best
        organs = self.phase.organs
        best_rounds = progress.best_of if self.personal else {}
        best_round = max(best_rounds.values(), default=0) if self.personal else max(progress.best_round, 0)
        test_cells, test_mean = published(tests, organs, cell)
        val_cells, val_mean = published(vals, organs, cell)
        block: dict[str, Any] = {
            "name": self.phase.name, "organs": list(organs), "rounds": progress.round,
            "best_round": best_round, "seconds": round(progress.seconds, 3),
            "bytes_to_sites": progress.sent + sum(done.sent.values()),
            "bytes_from_sites": progress.received + sum(done.received.values()),
            "sites": {
                s: {"test": test_cells.get(s, {}), "val": val_cells.get(s, {})} for s in self.nodes
            },
            "mean": test_mean, "mean_val": val_mean,
        }
        if self.personal:
            block["best_rounds"] = best_rounds
            self.recorder.export_scores(self.phase.name, self.meta | {"round": best_round, "score": block["sites"]})
        else:
            self._export("best", best, best_round, block["mean_val"])
        return block

    # ------------------------------------------------------------------------------------- parts

    def _order(self, round_: int, task: str, progress: Progress, site: str) -> Order:
        return Order(
            run=self.recorder.run, phase=self.phase.name, round=round_, task=task, base_hash=self.base_hash,
            base_round=progress.acknowledged.get(site, 0),
            best_round=progress.best_of.get(site, 0) if self.personal else max(progress.best_round, 0),
            fingerprint=self.fingerprint, voxels=self.voxels, totals=self.totals,
        )

    def _send(self, orders: Mapping[str, Order], state: State, kind: str) -> Exchange:
        contents = {}
        shared = {n: state[n] for n in self.parts.shared}
        for site, order in orders.items():
            content = RecordDict({ORDER: ConfigRecord(order.to_config())})
            if shared:
                content[ARRAYS] = ArrayRecord(shared)
            contents[site] = content
            self.recorder.say({
                "event": "sent", "phase": order.phase, "round": order.round, "site": site,
                "kind": order.task, "bytes": size_bytes(state, self.parts.shared),
            })
        base = None
        if self.base_hash:
            def base() -> ArrayRecord:
                return ArrayRecord({n: self.start[n] for n in self.parts.base})
        return exchange(
            self.grid, contents, self.nodes, kind=kind, group=f"{self.phase.name}",
            timeout_s=self.plan.federation.round_timeout_s, base=base,
        )

    def _sift(
        self, done: Exchange, asked: list[str], round_: int, state: State | None
    ) -> tuple[dict[str, Accepted], dict[str, str]]:
        good: dict[str, Accepted] = {}
        rejected: dict[str, str] = {}
        expected = {n: state[n] for n in self.parts.shared} if state is not None else {}
        for site in asked:
            event: dict[str, Any] = {"phase": self.phase.name, "round": round_, "site": site}
            if site not in done.replies:
                rejected[site] = "E_LOST"
                self.recorder.say({"event": "rejected", **event, "code": "E_LOST", "detail": "no reply before the deadline"})
                continue
            verdict = inspect(
                done.replies[site], site=site, run=self.recorder.run, phase=self.phase, round_=round_,
                expected=expected, guards=self.plan.federation.guards,
            )
            if isinstance(verdict, Accepted):
                good[site] = verdict
                self.recorder.say({
                    "event": "accepted", **event, "bytes": done.received.get(site, 0),
                    "seconds": round(done.seconds[site], 3), "seconds_compute": round(verdict.result.seconds, 3),
                })
            else:
                rejected[site] = verdict.code
                self.recorder.say({"event": "rejected", **event, "code": verdict.code, "detail": verdict.detail})
                tell(f"{self.phase.name} round {round_}: {site} rejected, {verdict.code} ({verdict.detail})")
        return good, rejected

    def _judge(self, sums: Sums, round_: int, progress: Progress) -> None:
        """Is w(round_) the best? Compared over the same (site, organ) pairs only (D4)."""
        progress.scored = round_
        sums = {s: m for s, m in sums.items() if m}
        if set(sums) != set(self.nodes):
            if round_ == 0 or progress.best_round < 0:
                progress.best_round, progress.best = round_, sums
            elif not sums:
                progress.best_round = round_
            if not sums and progress.round == 0:
                self.recorder.note("no site tells its scores: fixed number of rounds", self.phase.name)
        if not sums:
            return
        common = {(s, o) for s in sums for o in sums[s] if sums[s][o].n > 0} & {
            (s, o) for s in progress.best for o in progress.best[s] if progress.best[s][o].n > 0
        }
        if progress.best_round < 0 or not progress.best:
            progress.best_round, progress.best = round_, sums
        elif common and _score(sums, common) > _score(progress.best, common):
            progress.best_round, progress.best = round_, sums

    def _aggregate(self, state: State, good: Mapping[str, Accepted], round_: int) -> State:
        sites = sorted(good)
        told = all(good[s].result.annotated for s in sites)
        if not told:
            self.recorder.note("not every site tells its counts: all sites weigh equally", self.phase.name)
        replies = []
        for site in sites:
            message = good[site].message
            arrays = message.content[ARRAYS]
            weight = float(good[site].result.cases) if told else 1.0
            message.content = RecordDict({ARRAYS: arrays, METRICS: MetricRecord({WEIGHT: weight})})
            replies.append(message)
        averaged, _ = self.strategy.aggregate_train(round_, replies)
        assert averaged is not None
        new = dict(state)
        for name, tensor in averaged.to_torch_state_dict().items():
            new[name] = tensor.to(state[name].dtype)
        weights = [
            [float(c) for c in good[s].result.annotated] if told else [float(c > 0) for c in self._declared(s)]
            for s in sites
        ]
        heads = [n for n in self.heads if n in self.parts.shared]
        new, kept = aggregate_head(state, new, [good[s].state for s in sites], weights, heads)
        if kept:
            names = ", ".join(self.phase.organs[c] for c in kept)
            self.recorder.note(f"round {round_}: nobody annotates {names}; the head keeps its rows", self.phase.name)
        return new

    def _declared(self, site: str) -> list[int]:
        told = self.described[site].annotated
        order = self.plan.organ_names
        return [told[order.index(o)] if told else 1 for o in self.phase.organs]

    def _frequencies(self) -> tuple[list[float], list[float]]:
        """Class frequencies over the federation; with ``share: none`` each site uses its own (D9)."""
        rows = [d for d in self.described.values() if d.voxels and d.totals]
        if self.phase.share == "none" or self.plan.loss.class_weight == "none":
            return [], []
        if len(rows) < len(self.described):
            self.recorder.note("not every site tells class frequencies: class_weight none", self.phase.name)
            return [], []
        order = self.plan.organ_names
        index = [order.index(o) for o in self.phase.organs]
        return (
            [sum(d.voxels[i] for d in rows) for i in index],
            [sum(d.totals[i] for d in rows) for i in index],
        )

    def _meta(self) -> dict[str, Any]:
        pre = self.plan.preprocess
        return {
            "run": self.recorder.run, "phase": self.phase.name, "organs": list(self.phase.organs),
            "preprocess": {"spacing_mm": list(pre.spacing_mm), "crop": list(pre.crop), "window_hu": list(pre.window_hu)},
            "model": _plain(self.plan.model), "plan_hash": plan_hash(self.plan),
            "splits": {s: d.split_hash for s, d in sorted(self.described.items())},
            "versions": versions(),
        }

    def _commit(self, state: State, progress: Progress) -> None:
        self.store.put(progress.round, state, self.meta | {"round": progress.round, "progress": progress.to_json()})
        self.store.prune({progress.round, progress.round - 1, max(progress.best_round, 0)})
        if not self.personal:
            self._export("last", state, progress.round, None)

    def _export(self, stem: str, state: State, round_: int, score: object) -> None:
        self.recorder.export(self.phase.name, stem, state, self.meta | {"round": round_, "score": score})

    def _tell_round(
        self, done: Exchange, good: Mapping[str, Accepted], rejected: Mapping[str, str], round_: int,
        scored: int, progress: Progress, seconds: float,
    ) -> None:
        cell = self.plan.federation.min_cell
        organs = self.phase.organs
        sums = {s: dict(r.result.scores["val"]) for s, r in good.items() if "val" in r.result.scores}
        losses = [r.result.loss for r in good.values() if r.result.loss]
        compute = max((r.result.seconds for r in good.values()), default=0.0)
        slowest = max((done.seconds[s] for s in good), default=0.0)
        cells, mean = published(sums, organs, cell)
        event: dict[str, Any] = {
            "event": "round", "phase": self.phase.name, "round": round_, "scored_round": scored,
            "loss": {k: mean_of([x[i] for x in losses]) for i, k in enumerate(LOSS_TERMS)} if losses else {},
            "sites": {s: {"val": c} for s, c in cells.items()},
            "mean": {"dice": mean["dice"], "hd95_mm": mean["hd95_mm"]},
            "best_round": max(progress.best_of.values(), default=0) if self.personal else max(progress.best_round, 0),
            "seconds": round(seconds, 3), "seconds_compute": round(compute, 3),
            "seconds_waiting": round(max(slowest - compute, 0.0), 3),
            "seconds_transport": round(max(seconds - slowest, 0.0), 3),
            "bytes_to_sites": sum(done.sent.values()), "bytes_from_sites": sum(done.received.values()),
            "accepted": sorted(good), "rejected": dict(rejected),
        }
        self.recorder.say(event)
        self.recorder.track(self.phase.name, round_, event)
        left = progress.seconds / round_ * (self.phase.rounds - round_)
        dice = "suppressed" if mean["dice"] is None else f"{mean['dice']:.3f}"
        loss = f"{event['loss']['total']:.3f}" if losses else "-"
        tell(
            f"{self.phase.name} {round_}/{self.phase.rounds}  loss {loss}  val Dice {dice} (weights of round {scored})  "
            f"best {event['best_round']}  {', '.join(sorted(good))}"
            f"{'  rejected ' + ', '.join(rejected) if rejected else ''}  {seconds:.1f} s, about {left / 60:.1f} min left"
        )


def _score(sums: Sums, pairs: set[tuple[str, str]]) -> float:
    organs = sorted({o for _, o in pairs})
    means = []
    for organ in organs:
        cells = [sums[s][o] for s, o in pairs if o == organ]
        means.append(sum(c.dice for c in cells) / sum(c.n for c in cells))
    return sum(means) / len(means)


def _plain(model: object) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(model)  # type: ignore[call-overload, no-any-return]

