"""The sites of a phase: orders go out to them, their replies come in and are judged."""

from __future__ import annotations

import math
import secrets
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from core.plan.schema import Federation, Phase, Plan
from core.plan.secure import ALL
from core.secure.layout import EVIDENCE, Sum, Travelling
from core.wire.messages import FINAL, OF_THE_PLAN, Description, Header, Order
from core.wire.partition import size_bytes, state_hash, still_at
from core.wire.state import packed
from server.exchange import Call, Exchange, exchange, record_of
from server.guards import AWAY, Accepted, Rejected, Verdicts
from server.progress import Progress, State
from server.record import Recorder, tell
from server.secure_round import Masked, Secure, add_up, inspect_masked, number_length
from server.strategy import ARRAYS, ORDER

# A deadline that is learned: from so many rounds, with time for a process to start.
REMEMBERED, FEWEST_ROUNDS, SLACK_SECONDS = 9, 3, 30.0
# Where a site is not connected the next try begins so long after that was known: a client that
# starts again after a hard kill is let in within about a minute.
AWAY_SECONDS = 40.0
LOST = {"E_LOST", "E_ERROR"}  # of a simulated site: its process hung or died


class RunFailed(RuntimeError):  # noqa: N818
    """The run cannot go on; its state is intact and can be resumed."""


def quorum_of(plan: Plan, phase: Phase) -> int:
    """How many sites must answer rightly; never more than the phase has."""
    return min(max(1, plan.federation.min_sites), len(phase.sites))


def deadline(federation: Federation, slowest: Sequence[float]) -> float:
    """Seconds for an exchange: the plan's, or learned from how long the last rounds took.

    Args:
        federation: `round_timeout_factor` times the median of the last rounds, never more than
            `round_timeout_s`; 0 leaves the latter.
        slowest: seconds until the last reply came, of the last rounds.
    """
    cap, factor = federation.round_timeout_s, federation.round_timeout_factor
    if not factor or len(slowest) < FEWEST_ROUNDS:
        return cap
    return min(cap, factor * statistics.median(slowest) + SLACK_SECONDS)


class RunIncomplete(RunFailed):
    """A simulation lacks one of its sites for longer than a round; it can be resumed with all."""


@dataclass(frozen=True)
class Correspondence:
    """With the sites of one phase.

    Attributes:
        grid: Flower's.
        plan, phase: what is run.
        recorder: of the run.
        nodes: node id by site, in the order of asking.
        described: what each site said of itself.
        fingerprint: of the code that the sites must have.
        shared: names of the tensors that travel in every round.
        base: tensors that a site gets once; empty where it has them from its own disk.
        thaws: what of them is frozen at first, and the round from which on it trains.
        keeps: whether sites keep tensors of their own.
        voxels, totals: class frequencies over the federation; empty where they do not count.
        secure: who takes part in sums, where the server may learn nothing else; else None.
        travelling: what of the weights is summed then.
        whole: whether no site may stay away, as in a simulation, where a lost one is a dead process
    """

    grid: Grid
    plan: Plan
    phase: Phase
    recorder: Recorder
    nodes: Mapping[str, int]
    described: Mapping[str, Description]
    fingerprint: str
    shared: Sequence[str]
    base: State
    thaws: Mapping[str, int]
    keeps: bool
    voxels: list[float]
    totals: list[float]
    secure: Secure | None = None
    travelling: Travelling | None = None
    whole: bool = False

    @cached_property
    def base_hash(self) -> str:
        """SHA-256 of the base, by which a site finds it on its disk; "" without one."""
        return state_hash(self.base) if self.base else ""

    def trained(
        self, state: State, progress: Progress
    ) -> tuple[Exchange, dict[str, Accepted], dict[str, str]]:
        """The next round's replies; below the quorum all are asked again, `round_retries` times.

        Returns:
            What came, the accepted replies, and the reason codes of the others.

        Raises:
            RunFailed: fewer sites than the quorum answered rightly.
        """
        round_ = progress.round + 1
        asked = [s for s in self.nodes if not progress.stopped.get(s)]
        quorum = quorum_of(self.plan, self.phase)
        if self.phase.share == "none":
            quorum = min(quorum, len(asked))
        rejected: dict[str, str] = {}
        before = 0.0
        for left in reversed(range(self.plan.federation.round_retries + 1)):
            orders = {s: self._order(round_, "train", progress, s) for s in asked}
            verdicts = self._verdicts(round_, state)
            done = self._send(orders, state, "train", progress, answered=verdicts)
            lasted = done.lasted
            done.lasted += before
            before = done.lasted
            good, rejected = self._sift(done, asked, verdicts)
            if len(good) >= quorum:
                return done, good, rejected
            if len(asked) - sum(map(self._final, rejected.values())) < quorum:
                left = 0
            self.recorder.note(
                f"round {round_}: {len(good)} of {len(asked)} sites answered rightly, "
                f"{quorum} needed; {'asked again' if left else 'given up'}",
                self.phase.name,
            )
            if not left:
                break
            before += _wait(done, lasted)
        raise self.too_few(f"round {round_}", rejected)

    def evaluated(self, task: str, state: State, progress: Progress) -> dict[str, Accepted]:
        """Scores from every site; who fails is asked again, `round_retries` times.

        Raises:
            RunFailed: fewer sites than the quorum told any.
        RunIncomplete: a site told none, and none may stay away.
        """
        good: dict[str, Accepted] = {}
        rejected: dict[str, str] = {}
        for left in reversed(range(self.plan.federation.round_retries + 1)):
            asked = [s for s in self.nodes if s not in good]
            orders = {s: self._order(progress.round, task, progress, s) for s in asked}
            verdicts = self._verdicts(progress.round, None)
            done = self._send(orders, state, "evaluate", progress, answered=verdicts)
            more, rejected = self._sift(done, asked, verdicts)
            good |= more
            if not left or all(map(self._final, rejected.values())):
                break
            _wait(done, done.lasted)
        for site, code in rejected.items():
            self.recorder.note(f"no {task} scores from {site} ({code})", self.phase.name)
        if self.whole and rejected:
            raise self.incomplete(f"task {task}", rejected, "a simulation is scored at every site")
        if len(good) < quorum_of(self.plan, self.phase):
            raise self.too_few(f"task {task}", rejected)
        return dict(sorted(good.items()))

    def summed(
        self, task: str, state: State, progress: Progress, evidence: bytes = b""
    ) -> tuple[Exchange, list[Masked], Sum]:
        """Secure aggregation: the sum over all sites, who are all asked again where one is missing.

        Of a try that fails nothing can be opened. Each try has masks of its own.

        Args:
            task: train, or what evaluates.
            state: the weights that go out.
            progress: of the phase.
            evidence: of the round that made them, for the sites that ask for it.

        Returns:
            What came, the masked replies of all sites, and the sums of their numbers.

        Raises:
            RunFailed: a site did not answer rightly, too often.
        """
        assert self.secure is not None
        round_ = progress.round + (task == "train")
        kind, asked = ("train" if task == "train" else "evaluate"), list(self.nodes)
        most = self.plan.federation.guards.max_cases * len(asked)
        rejected: dict[str, str] = {}
        before = 0.0
        for left in reversed(range(self.plan.federation.round_retries + 1)):
            attempt = secrets.token_hex(16)
            orders = {s: self._order(round_, task, progress, s, attempt) for s in asked}
            done = self._send(orders, state, kind, progress, evidence=evidence)
            lasted = done.lasted
            done.lasted += before
            before = done.lasted
            good, rejected = self._sift_masked(done, asked, round_, task)
            if not rejected:
                replies = [good[s] for s in asked]
                try:
                    found = add_up(self.secure, self.phase, task, replies, most)
                except ValueError:
                    rejected = dict.fromkeys(asked, "E_MASK")
                else:
                    done.seconds[ALL] = max(done.seconds[s] for s in asked)
                    return done, replies, found
            self.recorder.note(
                f"{task} of round {round_}: the sum needs all of {len(asked)} sites, and "
                + (
                    "the masks do not cancel"
                    if len(rejected) == len(asked) == len(good)
                    else f"{', '.join(rejected)} did not answer rightly"
                )
                + f"; nothing is opened, {'all are asked again' if left else 'given up'}",
                self.phase.name,
            )
            if left:
                before += _wait(done, lasted)
        raise self.too_few(f"{task} of round {round_}", rejected)

    def _final(self, code: str) -> bool:
        """Whether a site that is asked again would say the same again."""
        return code in FINAL or (self.whole and code in {"E_INTERNAL", "E_MEMORY"} | OF_THE_PLAN)

    def too_few(self, what: str, rejected: Mapping[str, str]) -> RunFailed:
        """The error that says why the quorum was missed and how to go on."""
        codes = ", ".join(f"{s}: {c}" for s, c in rejected.items())
        needed = len(self.nodes) if self.secure else quorum_of(self.plan, self.phase)
        remedy = "Mend the sites (each keeps its own client.log) and continue with --resume"
        if self.whole and OF_THE_PLAN & set(rejected.values()):
            remedy = "The same plan would meet this again: change it (a lower train.lr, where it "
            remedy += "diverges), and start a new run"
        kind = RunIncomplete if self.whole and LOST & set(rejected.values()) else RunFailed
        return kind(
            f"phase {self.phase.name}, {what}: fewer than {needed} "
            f"sites answered rightly ({codes}). {remedy}"
        )

    def incomplete(self, what: str, rejected: Mapping[str, str], rule: str) -> RunIncomplete:
        """The error that ends a simulation which lost a site, and says how to go on."""
        codes = ", ".join(f"{s}: {c}" for s, c in rejected.items())
        return RunIncomplete(
            f"phase {self.phase.name}, {what}: without {codes}; {rule}. What was done before is "
            "kept: find the cause (journal.jsonl names it, each site keeps its own client.log; a "
            "process that dies has mostly run out of memory) and continue with --resume"
        )

    def _order(
        self, round_: int, task: str, progress: Progress, site: str, attempt: str = ""
    ) -> Order:
        own = progress.best_of.get(site, 0)
        return Order(
            run=self.recorder.run,
            phase=self.phase.name,
            round=round_,
            task=task,
            base_hash=self.base_hash,
            base_round=progress.acknowledged.get(site, 0),
            best_round=own if self.keeps else max(progress.best_round, 0),
            fingerprint=self.fingerprint,
            voxels=self.voxels,
            totals=self.totals,
            organ_factors=progress.organ_factors,
            attempt=attempt,
            peers=list(self.secure.peers) if self.secure else [],
            weights=self.secure.totals(self.phase) if self.secure else [],
            longest=progress.longest,
            **self.recorder.receipts.fields(site),
        )

    def _send(
        self,
        orders: Mapping[str, Order],
        state: State,
        kind: str,
        progress: Progress,
        *,
        evidence: bytes = b"",
        answered: Callable[[str, Message], None] | None = None,
    ) -> Exchange:
        contents = {}
        shared = {n: state[n] for n in self.shared}
        bits = self.plan.federation.update_bits
        parcel = packed(shared, bits) if shared else b""
        size = size_bytes(state, self.shared, bits)
        asking = self.secure.evidence if evidence and self.secure else frozenset()
        for site, order in orders.items():
            content = RecordDict({ORDER: ConfigRecord(order.to_config())})
            if parcel:
                content[ARRAYS] = record_of(parcel)
            if site in asking:
                content[EVIDENCE] = record_of(evidence)
            contents[site] = content
            self.recorder.say(
                {
                    "event": "sent",
                    "phase": order.phase,
                    "round": order.round,
                    "site": site,
                    "kind": order.task,
                    "bytes": size + (site in asking) * len(evidence),
                }
            )
        federation = self.plan.federation
        timeout_s = federation.round_timeout_s
        if kind == "train":
            timeout_s = deadline(federation, progress.slowest)

        def base() -> ArrayRecord:
            return record_of(packed(self.base))

        done = exchange(
            self.grid,
            contents,
            self.nodes,
            Call(kind, self.phase.name, timeout_s, base if self.base else None),
            seen=self.recorder.receipts.seen,
            answered=answered,
        )
        for content in contents.values():
            content.clear()  # a RecordDict is a circle: its arrays would stay until Python looks
        progress.sent += sum(done.sent.values())
        progress.received += sum(done.received.values())
        return done

    def _sift_masked(
        self, done: Exchange, asked: list[str], round_: int, task: str
    ) -> tuple[dict[str, Masked], dict[str, str]]:
        """Masked replies and reason codes by site."""
        assert self.secure is not None
        assert self.travelling is not None
        words = sum(math.prod(s) for s in self.travelling.shapes.values())
        good: dict[str, Masked] = {}
        rejected: dict[str, str] = {}
        for site in asked:
            verdict = inspect_masked(
                done.replies.get(site),
                Header(site, self.recorder.run, self.phase.name, round_),
                words=words if task == "train" else 0,
                numbers=number_length(self.secure, self.phase, task),
            )
            if isinstance(verdict, Masked):
                good[site] = verdict
            else:
                rejected[site] = verdict.code
            self._journal(done, site, round_, verdict)
        return good, rejected

    def _journal(
        self, done: Exchange, site: str, round_: int, verdict: Masked | Accepted | Rejected
    ) -> None:
        event: dict[str, Any] = {"phase": self.phase.name, "round": round_, "site": site}
        if isinstance(verdict, Rejected):
            event |= {"code": verdict.code, "detail": verdict.detail}
            tell(
                f"{self.phase.name} round {round_}: {site} rejected, {verdict.code} "
                f"({verdict.detail})"
            )
        else:
            event |= {
                "bytes": done.received.get(site, 0),
                "bytes_to_site": done.sent.get(site, 0),
                "seconds": round(done.seconds[site], 3),
            }
        if isinstance(verdict, Accepted):
            event |= {
                "seconds_compute": round(verdict.result.seconds, 3),
                "seconds_startup": round(verdict.result.startup, 3),
            }
        kind = "rejected" if isinstance(verdict, Rejected) else "accepted"
        self.recorder.say({"event": kind, **event})

    def _verdicts(self, round_: int, state: State | None) -> Verdicts:
        """What judges the answers of an exchange; without `state` no weights may come back."""
        return Verdicts(
            Header("", self.recorder.run, self.phase.name, round_),
            self.phase,
            {n: state[n] for n in self.shared} if state is not None else {},
            self.plan.federation,
            {s: d.cases for s, d in self.described.items()},
            self.recorder.store(self.phase.name).folder,
            still_at(self.thaws, round_),
        )

    def _sift(
        self, done: Exchange, asked: list[str], verdicts: Verdicts
    ) -> tuple[dict[str, Accepted], dict[str, str]]:
        """Accepted replies and reason codes by site, in the order of asking."""
        good: dict[str, Accepted] = {}
        rejected: dict[str, str] = {}
        for site in asked:
            verdict = verdicts.of(site)
            if isinstance(verdict, Accepted):
                good[site] = verdict
            else:
                rejected[site] = verdict.code
            self._journal(done, site, verdicts.asked.round, verdict)
        return good, rejected


def _wait(done: Exchange, lasted: float) -> float:
    """Before another try: gives a site that was not connected the time to come back.

    Returns:
        Seconds waited: none where no site was away, or where it is long enough ago.
    """
    away = [s for s, r in done.replies.items() if r.has_error() and int(r.error.code) == AWAY]
    if not away:
        return 0.0
    seconds = max(0.0, AWAY_SECONDS - (lasted - max(done.seconds[s] for s in away)))
    time.sleep(seconds)
    return seconds
