"""A federation without data: sites that answer with numbers, through the real ServerApp."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from core.journal import read_events
from core.metrics.scores import OrganSum
from core.plan.load import plan_json
from core.plan.schema import Augment, Federation, Model, Phase, Plan, Preprocess
from core.wire.messages import NEED_BASE, Description, Header, Order, Result
from core.wire.partition import fingerprint, state_hash
from core.wire.state import packed
from server.exchange import record_of
from tests.weights import weights_in

ORGANS = ["Brainstem", "Parotid_L"]
Act = Callable[[Message, Message], Message]


def tiny_plan(*phases: Phase, **federation: Any) -> Plan:
    chosen = phases or (Phase(name="p", sites=["a", "b"], organs=ORGANS, rounds=2),)
    return Plan(
        preprocess=Preprocess(spacing_mm=[8.0, 8.0, 8.0], crop=[16, 16, 16]),
        augment=Augment(enabled=False),
        model=Model(channels=[4, 8]),
        phases=list(chosen),
        federation=Federation(**({"min_cell": 1, "query_timeout_s": 2.0} | federation)),
    )


@dataclass
class Fakes:
    """Sites that add a number to every weight, and say what they are told to say.

    Attributes:
        plan: of the run.
        add: by site, what its training adds to all weights.
        cases: by site, training cases.
        annotated: by site, cases per organ.
        dice: by site and round, val Dice of the weights that come in (or the own ones).
        acts: by (site, task, round): changes the reply before it goes out; used up when called.
        seen: every order that came in: (site, task, round).
        bases: by site, hash -> base.
        came: the weights of every order to train.
    """

    plan: Plan
    add: dict[str, float] = field(default_factory=lambda: {"a": 1.0, "b": 4.0})
    cases: dict[str, int] = field(default_factory=lambda: {"a": 3, "b": 1})
    annotated: dict[str, list[int]] = field(default_factory=dict)
    dice: dict[tuple[str, int], float] = field(default_factory=dict)
    acts: dict[tuple[str, str, int], list[Act]] = field(default_factory=dict)
    seen: list[tuple[str, str, int]] = field(default_factory=list)
    bases: dict[str, dict[str, Any]] = field(default_factory=dict)
    pushed: list[tuple[str, str]] = field(default_factory=list)
    came: list[dict[str, Tensor]] = field(default_factory=list)
    code: str = field(default_factory=fingerprint)
    tells_scores: bool = True
    stop_after: dict[str, int] = field(default_factory=dict)
    val_cases: int = 2

    def name(self, context: Context) -> str:
        return self.plan.site_names[int(context.node_config["partition-id"])]

    def app(self) -> ClientApp:
        app = ClientApp()
        app.query()(self._query)
        app.train()(self._train)
        app.evaluate()(self._evaluate)
        return app

    def _query(self, message: Message, context: Context) -> Message:
        site = self.name(context)
        count = [self.cases[site]] * len(self.plan.organ_names)
        header, metrics = Description(
            site=site,
            fingerprint=self.code,
            split_hash="s",
            cases=(self.cases[site], 2, 2),
            annotated=tuple(count),
            voxels=tuple(10.0 * c for c in count),
            totals=tuple(16.0**3 * c for c in count),
            left_out={},
            versions={},
        ).to_records()
        content = {"header": ConfigRecord(header), "metrics": MetricRecord(metrics)}
        return self._acted(site, "query", 0, message, content)

    def _acted(
        self, site: str, task: str, round_: int, message: Message, content: dict[str, Any]
    ) -> Message:
        reply = Message(RecordDict(content), reply_to=message)
        waiting = self.acts.get((site, task, round_), [])
        return waiting.pop(0)(message, reply) if waiting else reply

    def _sums(self, site: str, round_: int, organs: Iterable[str]) -> dict[str, OrganSum]:
        n = self.val_cases
        dice = self.dice.get((site, round_), 0.1 * round_)
        return {o: OrganSum(n, n, dice * n, 2.0 * n, 2.0 * n) for o in organs}

    def _begin(
        self, message: Message, context: Context
    ) -> tuple[str, Phase, Order, dict[str, Any] | None]:
        site = self.name(context)
        order = Order.from_config(message.content["order"])
        phase = self.plan.phase(order.phase)
        self.seen.append((site, order.task, order.round))
        known = self.bases.setdefault(site, {})
        if "base" in message.content:
            self.pushed.append((site, order.base_hash))
            known[order.base_hash] = weights_in(message.content["base"])
        if order.base_hash and order.base_hash not in known:
            header = Header(site, order.run, order.phase, order.round, NEED_BASE)
            return site, phase, order, {"header": ConfigRecord(header.to_config())}
        if order.base_hash:
            assert state_hash(known[order.base_hash]) == order.base_hash
        return site, phase, order, None

    def _train(self, message: Message, context: Context) -> Message:
        site, phase, order, lacking = self._begin(message, context)
        if lacking is not None:
            return Message(RecordDict(lacking), reply_to=message)
        personal = phase.share == "none"
        cases = 0 if personal else self.cases[site]
        rows = self.annotated.get(site, [cases] * len(phase.organs))
        scored = order.round - (0 if personal else 1)
        sums = {"val": self._sums(site, scored, phase.organs)} if self.tells_scores else {}
        result = Result(
            cases=cases,
            annotated=() if personal else tuple(rows),
            loss=(1.0,) * 5,
            steps=1,
            scores=sums,
        )
        header = Header(site, order.run, order.phase, order.round)
        if personal:
            stop = order.round >= self.stop_after.get(site, 10**6)
            header = replace(header, best_round=order.round, stopped=stop)
        content: dict[str, Any] = {
            "header": ConfigRecord(header.to_config()),
            "metrics": MetricRecord(result.to_metrics(phase.organs)),
        }
        if "arrays" in message.content:
            bits = self.plan.federation.update_bits
            state = weights_in(message.content["arrays"], bits)
            self.came.append(state)
            made = {k: v + self.add[site] for k, v in state.items()}
            content["arrays"] = record_of(packed(made, bits, state))
        return self._acted(site, order.task, order.round, message, content)

    def _evaluate(self, message: Message, context: Context) -> Message:
        site, phase, order, lacking = self._begin(message, context)
        if lacking is not None:
            return Message(RecordDict(lacking), reply_to=message)
        split = "test" if order.task == "test" else "val"
        round_ = order.best_round if split == "test" else order.round
        sums = self._sums(site, round_, phase.organs) if self.tells_scores else None
        result = Result(scores={split: sums} if sums else {})
        content = {
            "header": ConfigRecord(Header(site, order.run, order.phase, order.round).to_config()),
            "metrics": MetricRecord(result.to_metrics(phase.organs)),
        }
        return self._acted(site, order.task, order.round, message, content)


@dataclass
class Federated:
    """A run folder and the fakes behind it."""

    fakes: Fakes
    out: Path
    run_id: str = "r"
    local: str = ""  # the site map of a simulation

    def run(self, *, resume: bool = False) -> None:
        from server.app import app
        from simulations.inline import run_inline

        config = {
            "plan": plan_json(self.fakes.plan),
            "run_id": self.run_id,
            "out": str(self.out),
            "resume": "1" if resume else "",
            "tracking": "",
            "local": self.local,
        }
        run_inline(app, self.fakes.app(), config, len(self.fakes.plan.site_names))

    def events(self, kind: str, **match: Any) -> list[Mapping[str, Any]]:
        found = [e for e in read_events(self.out / "journal.jsonl") if e["event"] == kind]
        return [e for e in found if all(e.get(k) == v for k, v in match.items())]

    def notes(self) -> str:
        return "\n".join(e["text"] for e in self.events("note"))

    def weights(self, stem: str, phase: str = "p") -> dict[str, Tensor]:
        from core.wire.checkpoint import load

        return load(self.out / "checkpoints" / phase / f"{stem}.safetensors")[0]


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    return tiny_plan


@pytest.fixture
def federate(
    tmp_path: Path, task_identity: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Federated]:
    """Makes a federation of fakes in a fresh run folder."""
    monkeypatch.setattr("server.exchange.POLL_SECONDS", 0.001)
    monkeypatch.setattr("server.dispatch.AWAY_SECONDS", 0.0)

    def make(plan: Plan | None = None, folder: str = "run", **settings: Any) -> Federated:
        return Federated(Fakes(plan or tiny_plan(), **settings), tmp_path / folder)

    return make


def header(**changes: Any) -> Act:
    def do(message: Message, reply: Message) -> Message:
        reply.content["header"] = ConfigRecord(dict(reply.content["header"]) | changes)
        return reply

    return do


def metrics(**changes: Any) -> Act:
    def do(message: Message, reply: Message) -> Message:
        merged = dict(reply.content["metrics"]) | {
            k.replace("__", "."): v for k, v in changes.items()
        }
        reply.content["metrics"] = MetricRecord(merged)
        return reply

    return do


def arrays(change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Act:
    def do(message: Message, reply: Message) -> Message:
        state = weights_in(reply.content["arrays"])
        reply.content["arrays"] = record_of(packed(change(state)))
        return reply

    return do


def error(code: int = 1) -> Act:
    return lambda message, reply: Message(Error(code, "text of Jane Doe"), reply_to=message)


def drop(record: str) -> Act:
    def do(message: Message, reply: Message) -> Message:
        del reply.content[record]
        return reply

    return do


@pytest.fixture
def act() -> dict[str, Callable[..., Act]]:
    """Ways in which a reply can be wrong."""
    return {
        "header": header,
        "metrics": metrics,
        "arrays": arrays,
        "error": error,
        "drop": drop,
    }
