"""Weights that a site works with are those that it derives itself: a whole run, and attacks on it.

The server is the real one; each site looks at what comes as its guard does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.plan.schema import Phase
from core.secure.hello import part_signed
from core.secure.layout import counted, travelling
from core.secure.masked_sum import Evidence
from core.wire.messages import Header
from core.wire.partition import start_state
from core.wire.state import packed
from hnfed.guard import exit
from hnfed.guard.node import _needs_base
from hnfed.guard.masking_session import Keyring
from hnfed.guard.order import Asked
from hnfed.guard.simulated import _plain, read
from hnfed.guard.weights import WeightsError, _close, require_weights
from hnfed.guard.weights_record import MOST_RUNS, Known, Part, Record, record_of
from server.dispatch import RunFailed
from server.exchange import record_of as weights_record
from tests.server.conftest import Federated, tiny_plan
from tests.server.test_secure_rounds import ORGANS, Cases, Outside
from tests.weights import weights_in

SITES = ["s0", "s1", "s2"]
NEW = ["Parotid_R", "Brainstem", "Bone_Mandible"]


@dataclass
class Sites(Cases):
    """Sites whose policy says ``weights: agreed``.

    Attributes:
        why: by site, why weights were refused.
        agreed: sites that ask for evidence.
        checked: orders that passed, as (site, task, phase, round).
        before: by (site, task, phase, round), changes an order before the site looks at it.
    """

    why: list[tuple[str, str]] = field(default_factory=list)
    agreed: tuple[str, ...] = tuple(SITES)
    checked: list[tuple[str, str, str, int]] = field(default_factory=list)
    before: dict[tuple[str, str, str, int], Callable[[Message], None]] = field(default_factory=dict)
    evidence: list[tuple[str, str, int]] = field(default_factory=list)

    def app(self) -> ClientApp:
        return Looks(super().app(), self)

    def _train(self, message: Message, context: Context) -> Message:
        organs = len(self.plan.phase(str(message.content["order"]["phase"])).organs)
        whole = self.annotated
        self.annotated = {s: rows[:organs] for s, rows in whole.items()}
        try:
            return super()._train(message, context)
        finally:
            self.annotated = whole

    def keyring(self, site: str) -> Keyring:
        return replace(super().keyring(site), agreed=site in self.agreed)

    def record(self, site: str, run: str = "r") -> Record:
        return record_of(self.folder / site / "guard", run, print)


class Looks(ClientApp):
    """A site's guard, as far as it looks at weights."""

    def __init__(self, app: ClientApp, sites: Sites) -> None:
        super().__init__()
        self._app, self._sites = app, sites

    def __call__(self, message: Message, context: Context) -> Message:
        sites, site = self._sites, self._sites.name(context)
        asked = read(message, context, site)
        if asked.phase is None or site not in sites.agreed:
            return self._app(message, context)
        key = (site, asked.order.task, asked.order.phase, asked.order.round)
        if change := sites.before.get(key):
            change(message)
            asked = read(message, context, site)
        records = {n: _plain(r) for n, r in message.content.items()}
        if "evidence" in records:
            sites.evidence.append((site, *key[1:2], asked.order.round))
        try:
            known = require_weights(asked, records, sites.keyring(site), sites.record(site))
        except Exception as error:
            sites.why.append((site, str(error)))
            return reply(message, exit.refusal(exit.code_of(error), site, asked).config)
        if not known:
            return reply(message, _needs_base(asked).to_config())
        sites.checked.append(key)
        return self._app(message, context)


def reply(message: Message, config: Any) -> Message:
    content = {"header": ConfigRecord(dict(config)), "metrics": MetricRecord({})}
    return Message(RecordDict(content), reply_to=message)


def two_phases(rounds: int = 3) -> list[Phase]:
    """Shared, shared again from its best with other organs and a frozen part, then personal."""
    return [
        Phase(name="p", sites=SITES, organs=ORGANS, rounds=rounds),
        Phase(name="q", sites=SITES, organs=NEW, rounds=2, init="p", freeze="encoder",
              head_init="mean"),
        Phase(name="own", sites=["s1"], organs=ORGANS[:1], rounds=1, init="q", share="none"),
    ]  # fmt: skip


@pytest.fixture
def start(
    tmp_path: Path, task_identity: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Federated]:
    monkeypatch.setattr("server.exchange.POLL_SECONDS", 0.001)
    monkeypatch.setattr("server.dispatch.AWAY_SECONDS", 0.0)

    def make(*phases: Phase, folder: str = "run", **given: Any) -> Federated:
        plan = tiny_plan(*(phases or two_phases()), secure_aggregation=True, round_retries=0)
        organs = len(plan.organ_names)
        rows = {s: [3 + i] * organs for i, s in enumerate(SITES)}
        sites = Sites(
            plan,
            folder=tmp_path / folder / "sites",
            cases={s: 3 + i for i, s in enumerate(SITES)},
            annotated=rows,
            add={"s0": 0.01, "s1": -0.004, "s2": 0.02},
            dice={(s, r): 0.5 if r == 1 else 0.1 for s in SITES for r in range(9)},
            **given,
        )
        (tmp_path / folder / "sites").mkdir(parents=True, exist_ok=True)
        return Federated(sites, tmp_path / folder)

    return make


Start = Callable[..., Federated]


def test_an_honest_run_passes_and_is_what_it_was_without(start: Start) -> None:
    plain, run = start(folder="plain", agreed=()), start()
    plain.run()
    assert not plain.fakes.evidence
    run.run()
    assert not run.fakes.why
    for phase in ("p", "q"):
        ours, theirs = run.weights("best", phase), plain.weights("best", phase)
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs), phase
    (event,) = run.events("phase-end", phase="p")
    assert event["best_round"] == 1, "an earlier round than the last"
    assert len([c for c in run.fakes.checked if c[2] == "own"]) == 2
    told = {(task, r) for _, task, r in run.fakes.evidence}
    assert told == {("train", 2), ("train", 3), ("validate", 3), ("validate", 2)}
    kept = sorted(path.name for path in (run.out / "state" / "p").glob("evidence-*"))
    assert kept == ["evidence-00002.safetensors", "evidence-00003.safetensors"]
