"""The round loop of one phase: shared rounds with best, patience and resume, or personal rounds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.serverapp import Grid

from core.errors import UserError
from core.models.stages import head_rows
from core.plan.schema import Phase, Plan
from core.plan.secure import ALL
from core.secure.layout import Sum, longest, travelling
from core.wire.messages import OK, Description, Header, published
from core.wire.partition import (
    network,
    parts_of,
    size_bytes,
    start_state,
    thaw_rounds,
    trainable_by_round,
    weights_meta,
)
from core.wire.state import beyond, in_bytes, rounded
from server.aggregate import Federated, aggregate, dominant
from server.dispatch import REMEMBERED, Correspondence, deadline, quorum_of
from server.enrolment import frequencies, require_same_split
from server.guards import Accepted
from server.norm_clipping import limit
from server.progress import Progress, State, Sums, fewest_cases, judge, most_cases, weigh
from server.record import Recorder, tell
from server.round_record import (
    Replies,
    best_round,
    control_scores,
    published_weights,
    round_event,
    round_line,
)
from server.score_outliers import repeated, standing_out, words
from server.secure_round import (
    Masked,
    Secure,
    averaged,
    evidence_of,
    keep_evidence,
    kept_evidence,
)
from server.strategy import LEFT, STRATEGIES, Moments, joined, require_moments, separated
from server.update_measures import update_measures


@dataclass(frozen=True)
class Parties:
    """Who takes part in a run.

    Attributes:
        grid: Flower's.
        plan: what is run.
        recorder: of the run.
        nodes: node id by site.
        described: what each site said of itself.
        fingerprint: of the code that the sites must have.
        secure: who takes part in sums; None where the plan does not ask for them.
        whole: whether no site may stay away, as in a simulation.
    """

    grid: Grid
    plan: Plan
    recorder: Recorder
    nodes: Mapping[str, int]
    described: Mapping[str, Description]
    fingerprint: str
    secure: Secure | None = None
    whole: bool = False


@dataclass(frozen=True)
class Start:
    """What a phase begins with.

    Attributes:
        previous: weights and organs of the phase (or file) before it; None for scratch.
        at_sites: whether each site begins with weights of its own.
        splits: keyed hash of each site's split, of the phases before.
    """

    previous: tuple[State, list[str]] | None
    at_sites: bool
    splits: Mapping[str, str]


class PhaseRun:
    """One phase of one run, from its start weights to its metrics block."""

    def __init__(self, parties: Parties, phase: Phase, start: Start) -> None:
        self.plan = plan = parties.plan
        self.phase = phase
        self.recorder = parties.recorder
        described, nodes = parties.described, parties.nodes
        self.described = {s: described[s] for s in phase.sites if s in described}
        self.nodes = {s: nodes[s] for s in sorted(phase.sites) if s in nodes}
        model = network(plan, phase)
        self.parts = parts_of(model, plan, phase)
        self.trainable = trainable_by_round(model, plan, phase)
        heads = [n for n in head_rows(model) if n in self.parts.shared]
        thaws = thaw_rounds(model, plan, phase)
        self.federated = Federated(plan, phase, self.described, heads, thaws)
        self.moments: Moments = {}  # what the strategy carries to the next round
        self.start, self.left = self._as_sent(start_state(plan, phase, start.previous))
        self.personal = phase.share == "none"
        self.kept = bool(self.parts.personal) and not self.personal
        self.secure = None if self.personal else parties.secure
        self.travelling = travelling(plan, phase) if self.secure else None
        self.store = self.recorder.store(phase.name)
        self.event: dict[str, Any] = {}  # of the last committed round
        self.evidence = b""  # of that round, where a site asks for it
        voxels, totals = self._frequencies()
        self.sites = Correspondence(
            parties.grid,
            plan,
            phase,
            self.recorder,
            self.nodes,
            self.described,
            parties.fingerprint,
            shared=self.parts.shared,
            base={} if start.at_sites else {n: self.start[n] for n in self.parts.base},
            thaws=thaws,
            keeps=bool(self.parts.personal),
            voxels=voxels,
            totals=totals,
            secure=self.secure,
            travelling=self.travelling,
            whole=parties.whole,
        )
        self.meta = self._meta(start.splits)

    def run(self, resume: bool) -> tuple[State, dict[str, Any]]:
        """Runs the phase to its end.

        Returns:
            The best weights (the start weights of a personal phase), and the phase's metrics block.

        Raises:
            RunFailed: fewer sites than the quorum answered, too often.
            RunIncomplete: of a simulation a site missed two rounds in a row, or the last.
        """
        state, progress = self._begin(resume)
        self._say_start()
        self.start = {}  # is in `state`, and not held twice
        if not self.personal and not self.plan.federation.strategy.by_rows:
            name = self.plan.federation.strategy.name
            self.recorder.note(
                f"strategy {name}: all sites weigh equally, head rows too", self.phase.name
            )
        reason = self._reason_to_stop(progress)
        while not reason:
            state = self._round(state, progress)
            reason = self._reason_to_stop(progress)
        best = state
        if not self.personal:
            self._score_last(state, progress)
            best = separated(self.store.get(max(progress.best_round, 0))[0])[0]
        block = self._close(best, progress)
        self.recorder.say(
            {
                "event": "phase-end",
                "phase": self.phase.name,
                "best_round": block["best_round"],
                "rounds": progress.round,
                "reason": reason,
                "seconds": progress.seconds,
            }
        )
        return best, block

    def _as_sent(self, state: State) -> tuple[State, State]:
        """Weights as the sites get them: what is scored, kept and trained on are the same ones.

        And what rounding to 8 bits left out, for the next round: a small step would be lost else
        (error feedback: Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019).
        """
        bits, shared = self.plan.federation.update_bits, {n: state[n] for n in self.parts.shared}
        sent = rounded(shared, bits)
        rest = {n: t - sent[n] for n, t in shared.items() if bits == 8 and in_bytes(t)}
        return dict(state) | sent, rest

    def _say_start(self) -> None:
        numbers = {n: v.numel() for n, v in self.start.items()}
        frozen = sum(numbers[n] for n in self.parts.frozen)
        trainable = [n for n in self.start if n not in self.parts.frozen]
        if self.phase.init == "scratch" and self.phase.freeze not in ("none", []):
            note = "what it freezes has random weights: init is scratch"
            self.recorder.note(note, self.phase.name)
        self.recorder.say(
            {
                "event": "phase-start",
                "phase": self.phase.name,
                "organs": list(self.phase.organs),
                "sites": list(self.nodes),
                "rounds": self.phase.rounds,
                "local_epochs": self.phase.local_epochs,
                "init": self.phase.init,
                "freeze": self.phase.freeze,
                "share": self.phase.share,
                "parameters": sum(numbers.values()),
                "trainable": sum(numbers.values()) - frozen,
                "frozen": frozen,
                "shared": sum(numbers[n] for n in self.parts.shared),
                "personal": sum(numbers[n] for n in self.parts.personal),
                "trainable_bytes": size_bytes(self.start, trainable),
                "base_bytes": size_bytes(self.sites.base, list(self.sites.base)),
                "shared_bytes": size_bytes(
                    self.start, self.parts.shared, self.plan.federation.update_bits
                ),
                "personal_bytes": size_bytes(self.start, self.parts.personal),
            }
        )

    def _begin(self, resume: bool) -> tuple[State, Progress]:
        found = self._last_whole() if resume else None
        if found is not None:
            state, carried = separated(found[0])
            meta = found[1]
            require_same_split(meta, self.described, "--resume", self.recorder.run)
            require_moments(
                self.plan.federation.strategy,
                carried,
                meta.get("moments"),
                {n: self.start[n] for n in self.parts.shared},
                f"{self.phase.name}, round {meta['round']}",
            )
            self.left, self.moments = carried.pop(LEFT, {}), carried
            tell(f"{self.phase.name}: resumed after round {meta['round']}")
            progress = Progress.from_json(meta["progress"])
            self.event = dict(meta["event"])
            self._recall(progress.round)
            if self.event and not self.recorder.told(self.phase.name, progress.round):
                self._announce(self.event, progress.seconds)
            return state, progress
        self.store.clear()
        progress = Progress()
        self._commit(self.start, progress)
        return self.start, progress

    def _recall(self, round_: int) -> None:
        """Takes up what shows the sites how the weights of the last round were made."""
        if not (self.secure and self.secure.evidence and round_):
            return
        self.evidence = kept_evidence(self.store.folder, round_)
        if not self.evidence:
            self.recorder.note(
                f"what the sites signed in round {round_} is not in this folder: a site with "
                "weights: agreed that has not seen that round's weights will refuse them "
                "(E_WEIGHTS); a new run is then the remedy",
                self.phase.name,
            )

    def _last_whole(self) -> tuple[State, dict[str, Any]] | None:
        """The last round that is whole on disk, with what is written beside it.

        Raises:
            UserError: there are rounds, and all are damaged.
        """
        rounds = self.store.rounds()
        for round_ in reversed(rounds):
            try:
                return self.store.get(round_)
            except UserError as error:
                if round_ == rounds[0]:
                    raise
                self.recorder.note(
                    f"round {round_} is damaged on disk: {error.problem}; "
                    "the one before it is used",
                    self.phase.name,
                )
        return None

    def _reason_to_stop(self, progress: Progress) -> str:
        """Why the phase is through; "" where another round follows."""
        if progress.round >= self.phase.rounds:
            return "all rounds done"
        if self.personal:
            through = all(progress.stopped.get(s) for s in self.nodes)
            return "no gain at any site within patience" if through else ""
        waited = (progress.scored - progress.best_round) * self.phase.local_epochs
        if progress.best_round >= 0 and waited >= self.phase.patience:
            return f"no gain within patience ({self.phase.patience} epochs)"
        return ""

    def _round(self, state: State, progress: Progress) -> State:
        started = time.monotonic()
        factors = list(progress.organ_factors)
        rejected: dict[str, str] = {}
        if self.secure:
            done, masked, found = self.sites.summed("train", state, progress, self.evidence)
            good = {ALL: self._pooled(found, progress.round + 1)}
        else:
            done, good, rejected = self.sites.trained(state, progress)
        missing = dict(rejected)
        clipped: dict[str, float] = {}
        mean, moments, left = state, self.moments, self.left
        progress.round += 1
        if self.personal:
            for site, reply in good.items():
                progress.acknowledged[site] = progress.round
                progress.best_of[site] = reply.header.best_round
                progress.stopped[site] = reply.header.stopped
            new, scored = state, progress.round
        else:
            scored = progress.round - 1
            if self.phase.validates(scored):
                self._judged(progress, good, scored, factors)
            at = list(self.nodes) if self.secure else list(good)
            progress.acknowledged |= dict.fromkeys(at, progress.round) if self.kept else {}
            if self.secure:
                new, notes = self._added(self.secure, state, masked, found, progress)
            else:
                good, clipped = self._limited(good, state, rejected, progress.round)
                made = aggregate(self.federated, state, self.moments, good, progress.round)
                new, moments, notes = made.state, made.moments, made.notes
            mean = new
            new, left = self._as_sent(dict(new) | {n: new[n] + t for n, t in left.items()})
            for note in notes:
                self.recorder.note(note, self.phase.name)
            if far := beyond({n: new[n] for n in self.parts.shared}, state):
                note = f"round {progress.round}: the average of {far} is unusable; the weights of "
                self.recorder.note(f"{note}before are kept", self.phase.name)
                new, mean, moments, left = dict(state), state, self.moments, self.left
        seconds, replies = time.monotonic() - started, Replies(done, good, rejected)
        progress.seconds += seconds
        progress.slowest = [*progress.slowest, self._lasted(replies, progress)]
        progress.slowest = progress.slowest[-REMEMBERED:]
        event = round_event(
            self.phase,
            replies,
            progress,
            scored=scored,
            seconds=seconds,
            min_cell=self.plan.federation.min_cell,
        )
        if not self.personal:
            event["weights"] = published_weights(self.plan, self.phase, progress, event, factors)
        if self.secure:
            event["accepted"] = list(self.nodes)
            event |= {"clipped_sites": found.shortened} if found.shortened else {}
        elif measures := update_measures(good, state, mean):  # before it is rounded
            event["updates"] = measures
        if clipped:
            event["clipped"] = {site: round(factor, 4) for site, factor in clipped.items()}
        if progress.round in self.trainable:
            event["trainable"] = self.trainable[progress.round]
        self._require_whole(progress, missing)
        progress.missing = missing
        self.moments, self.left = moments, left
        if self.secure:
            self.evidence = evidence_of(self.secure, self.phase, masked)
        self._commit(new, progress, event)
        self._announce(event, progress.seconds)
        return new

    def _judged(
        self,
        progress: Progress,
        good: Mapping[str, Accepted],
        scored: int,
        factors: Sequence[float],
    ) -> None:
        """What the val scores of a round say: the best so far, organ weights, who stands out."""
        sums: Sums = {s: {} for s in good} | _scores(good, "val")
        first = progress.scored < 0
        told = judge(progress, sums, scored)
        self._flag(progress, sums)
        self._remember_kept(progress, scored)
        if not told and scored == 0:
            self.recorder.note("no site tells val scores: all rounds are run", self.phase.name)
        silent = weigh(progress, self.plan.weighting, self.phase.organs, sums)
        progress.of_few |= 0 < fewest_cases(sums) < self.plan.federation.min_cell
        most, share = dominant(most_cases(sums))
        if most and first:
            note = f"{most} has {share:.1%} of the validation cases, whose scores choose the best"
            self.recorder.note(note, self.phase.name)
        if silent and (factors or progress.round == 1):
            names = ", ".join(silent)
            note = f"organ weights are static: no val score of {names}"
            self.recorder.note(note, self.phase.name)

    def _pooled(self, found: Sum, round_: int) -> Accepted:
        """All sites of a sum as one, whose name is `ALL`."""
        header = Header(ALL, self.recorder.run, self.phase.name, round_, OK)
        return Accepted(header, found.result, {}, None)

    def _added(
        self,
        secure: Secure,
        state: State,
        replies: list[Masked],
        found: Sum,
        progress: Progress,
    ) -> tuple[State, list[str]]:
        """The next weights from the sum of the shares, and what the journal should know."""
        assert self.travelling is not None
        notes = []
        if self.plan.federation.guards.norm == "clip":
            factor, before = self.plan.federation.guards.norm_factor, progress.longest
            progress.longest = longest(found.square, len(self.nodes), factor)
            if progress.longest < before / 2:
                notes.append(
                    f"round {progress.round}: the next updates are held to {progress.longest:.3g}, "
                    f"after {before:.3g}: much shorter ones, or a site that tells a false length"
                )
        new, kept = averaged(secure, self.phase, self.travelling, state, replies, found.result)
        if kept:
            notes.append(
                f"round {progress.round}: too few sites annotate {', '.join(kept)} for a sum of "
                f"{secure.fewest}; the head keeps its rows"
            )
        return new, notes

    def _require_whole(self, progress: Progress, missing: dict[str, str]) -> None:
        """Of a simulation a site may miss one round, which is journalled, but not two nor the last.

        Called before the round is committed: a resumed run asks for it again.

        Raises:
            RunIncomplete: it did.
        """
        if not self.sites.whole or not missing:
            return
        what = f"round {progress.round}"
        again = {s: code for s, code in missing.items() if s in progress.missing}
        if again:
            raise self.sites.incomplete(what, again, "it missed the round before too")
        if self._reason_to_stop(progress):
            raise self.sites.incomplete(what, missing, "no site may miss the last round")

    def _lasted(self, replies: Replies, progress: Progress) -> float:
        """Seconds that the round's sites took; where one was late, at least until the deadline."""
        if "E_LOST" in replies.rejected.values():
            return deadline(self.plan.federation, progress.slowest)
        return max(replies.exchange.seconds[s] for s in replies.accepted)

    def _announce(self, event: Mapping[str, Any], seconds_so_far: float) -> None:
        """A committed round, to the journal and to whoever follows."""
        self.recorder.say(event)
        tell(round_line(self.phase, event, seconds_so_far))

    def _flag(self, progress: Progress, sums: Sums) -> None:
        """Tells of a site that stood out in two rounds, once for each set of organs.

        Of an organ with a suppressed score only the site is told.
        """
        now = standing_out(sums)
        for site, organs in repeated(progress.odd, now).items():
            if progress.flagged.get(site) == organs:
                continue
            progress.flagged[site] = organs
            event = {"phase": self.phase.name, "round": progress.round, "site": site}
            cell = self.plan.federation.min_cell
            shown = [o for o in organs if sums[site][o].n >= cell]
            self.recorder.say({"event": "flagged", **event, "organs": shown})
            self.recorder.note(words(site, shown), self.phase.name)
        progress.odd = now

    def _limited(
        self,
        good: dict[str, Accepted],
        state: State,
        rejected: dict[str, str],
        round_: int,
    ) -> tuple[dict[str, Accepted], dict[str, float]]:
        """Updates held against the round's median length; what is refused goes to `rejected`."""
        guards = self.plan.federation.guards
        kept, clipped, odd = limit(good, state, guards, self.store.folder)
        if len(kept) < quorum_of(self.plan, self.phase):
            raise self.sites.too_few(f"round {round_}", dict.fromkeys(odd, "E_NORM"))
        for site in odd:
            rejected[site] = "E_NORM"
            self.recorder.say(
                {
                    "event": "rejected",
                    "phase": self.phase.name,
                    "round": round_,
                    "site": site,
                    "code": "E_NORM",
                    "detail": "the update is much longer than the round's median",
                }
            )
        return kept, clipped

    def _score_last(self, state: State, progress: Progress) -> None:
        """After the last round one evaluate exchange scores the last weights on val (D4)."""
        if progress.scored >= progress.round:
            return
        good = self._evaluated("validate", state, progress)
        judge(progress, _scores(good, "val"), progress.round)
        self._remember_kept(progress, progress.round)
        self._commit(state, progress)

    def _evaluated(self, task: str, state: State, progress: Progress) -> dict[str, Accepted]:
        """Scores by site; under secure aggregation those of all sites together."""
        if not self.secure:
            return self.sites.evaluated(task, state, progress)
        evidence = self.evidence if task == "validate" else b""
        _, _, found = self.sites.summed(task, state, progress, evidence)
        return {ALL: self._pooled(found, progress.round)}

    def _remember_kept(self, progress: Progress, scored: int) -> None:
        """Which round of its own each site had beside the shared weights that are now the best."""
        if self.kept and progress.best_round == scored:
            progress.best_of = dict(progress.acknowledged)

    def _close(self, best: State, progress: Progress) -> dict[str, Any]:
        """Scores the best weights on test, once; of a personal phase each site's own best.

        With ``test: false`` no test case is opened; a site with weights of its own still writes its
        best ones, and tells their val scores.
        """
        good: dict[str, Accepted] = {}
        if self.phase.test or self.phase.best_at_site:
            good = self._evaluated("test" if self.phase.test else "finish", best, progress)
        vals = _scores(good, "val") if self.personal else progress.best
        cell = self.plan.federation.min_cell
        test_cells, test_mean = published(_scores(good, "test"), self.phase.organs, cell)
        val_cells, val_mean = published(control_scores(vals, self.phase), self.phase.organs, cell)
        chosen = best_round(self.phase, progress)
        block: dict[str, Any] = {
            "name": self.phase.name,
            "organs": list(self.phase.organs),
            "rounds": progress.round,
            "best_round": chosen,
            "seconds": round(progress.seconds, 3),
            "bytes_to_sites": progress.sent,
            "bytes_from_sites": progress.received,
            "sites": {
                s: {"test": test_cells.get(s, {}), "val": val_cells.get(s, {})}
                for s in ([ALL] if self.secure else self.nodes)
            },
            "mean": test_mean,
            "mean_val": val_mean,
        }
        if not self.phase.test:
            block["tested"] = False
        if self.parts.personal:
            block["best_rounds"] = progress.best_of
        if self.phase.best_at_site:
            meta = self.meta | {"round": chosen, "score": block["sites"]}
            self.recorder.export_scores(self.phase.name, meta)
        else:
            self._export("best", best, chosen, val_mean)
        return block

    def _frequencies(self) -> tuple[list[float], list[float]]:
        """Class frequencies over the federation; with ``share: none`` each site's own (D9)."""
        if self.personal or not self.plan.loss.counts_classes:
            return [], []
        if self.secure:
            told = self.secure.frequencies(self.phase)
        else:
            told = frequencies(self.described.values(), self.plan, self.phase)
            sizes = {s: max(d.totals, default=0.0) for s, d in self.described.items()}
            if told[0] and (most := dominant(sizes)[0]):
                note = f"class weights follow {most}, by the cases that it says it has"
                self.recorder.note(note, self.phase.name)
        if not told[0]:
            self.recorder.note(
                "not every site tells class frequencies: class_weight none", self.phase.name
            )
        return told

    def _meta(self, inherited: Mapping[str, str]) -> dict[str, Any]:
        """Beside the weights; `splits` also names the sites of what they began from (D17)."""
        own = {s: d.split_hash for s, d in self.described.items()}
        splits = dict(sorted((dict(inherited) | own).items()))
        return weights_meta(self.recorder.run, self.plan, self.phase, splits)

    def _commit(
        self, state: State, progress: Progress, event: Mapping[str, Any] | None = None
    ) -> None:
        """Weights, moments, where the phase stands, and the round's event, in one piece."""
        meta = self.meta | {"round": progress.round, "progress": progress.to_json()}
        meta["event"] = self.event = dict(event or self.event)
        carried = dict(self.moments) | ({LEFT: self.left} if self.left else {})
        if carried or STRATEGIES[self.plan.federation.strategy.name].moments:
            meta["moments"] = sorted(carried)  # so that one that is missing is missed
        if self.evidence:
            keep_evidence(self.store.folder, progress.round, self.evidence)
        self.store.put(progress.round, joined(state, carried), meta)
        self.store.prune({progress.round, progress.round - 1, max(progress.best_round, 0)})
        if not self.phase.best_at_site:
            self._export("last", state, progress.round, None)

    def _export(self, stem: str, state: State, round_: int, score: object) -> None:
        about = self.meta | {"round": round_, "score": score}
        self.recorder.export(self.phase.name, stem, state, about)


def _scores(good: Mapping[str, Accepted], split: str) -> Sums:
    return {s: dict(r.result.scores.get(split, {})) for s, r in good.items()}
