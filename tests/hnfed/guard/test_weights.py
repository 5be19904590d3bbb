"""Weights that a site works with are those that it derives itself: a whole run, and attacks on it.

The server is the real one; each site looks at what comes as its guard does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
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

from core.errors import UserError
from core.plan.schema import Phase
from core.secure.hello import part_signed
from core.secure.layout import counted, numbers, travelling
from core.secure.masked_sum import Evidence
from core.wire.messages import Order, Result
from core.wire.partition import start_state, state_hash
from core.wire.state import packed, unpacked
from hnfed.guard import exit
from hnfed.guard.masking_session import Keyring
from hnfed.guard.node import _needs_base
from hnfed.guard.order import Asked
from hnfed.guard.simulated import _plain, read
from hnfed.guard.weights import WeightsError, _close, hashes, require_weights
from hnfed.guard.weights_record import (
    MOST_RUNS,
    Known,
    Part,
    Record,
    forget,
    heads_parcel,
    is_kept,
    record_of,
)
from server.dispatch import RunFailed
from server.exchange import record_of as weights_record
from server.rounds import PhaseRun
from server.secure_round import Secure
from tests.client.conftest import BALLS, tiny_phase
from tests.client.conftest import tiny_plan as small_plan
from tests.hnfed.guard.conftest import LENIENT, Hospital
from tests.server.conftest import Federated, tiny_plan
from tests.server.test_secure_rounds import ORGANS, Cases

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
        if isinstance(sites, Listening) and site == "s1":
            records = {n: _plain(r) for n, r in message.content.items() if n != "order"}
            sites.heard.append((asked, records))
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


def test_a_run_goes_on_in_the_middle(start: Start) -> None:
    run = start(*two_phases(2)[:2], folder="halted")

    def lost(message: Message) -> None:
        message.content["arrays"] = weights_record(packed({"x": torch.zeros(1)}))

    run.fakes.before = {("s2", "train", "p", 2): lost}
    with pytest.raises(RunFailed, match="s2: E_WEIGHTS"):
        run.run()
    run.fakes.before = {}
    run.fakes.why.clear()
    run.run(resume=True)  # s0 and s1 have seen the weights of round 1, s2 has not
    assert not run.fakes.why
    whole = start(*two_phases(2)[:2], folder="whole")
    whole.run()
    for phase in ("p", "q"):
        ours, theirs = run.weights("last", phase), whole.weights("last", phase)
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs), phase


def test_a_server_that_has_lost_the_evidence_says_so(start: Start) -> None:
    run = start(two_phases(2)[0])
    run.fakes.away = {("train", 2): [{"s0"}]}
    with pytest.raises(RunFailed):
        run.run()
    for site in SITES[1:]:
        (run.fakes.record(site).folder / "states.jsonl").unlink()
    for path in (run.out / "state").rglob("evidence-*"):
        path.unlink()
    with pytest.raises(RunFailed, match="s1: E_WEIGHTS, s2: E_WEIGHTS"):
        run.run(resume=True)
    assert "what the sites signed in round 1 is not in this folder" in run.notes()
    assert "weights: any until now" in run.fakes.why[-1][1]


@pytest.mark.parametrize("kept", [{}, {"s1": {"counts": False}}, {"s1": {"scores": False}}])
def test_kept_rows_counts_and_scores_change_nothing_of_it(
    start: Start, kept: dict[str, dict[str, Any]]
) -> None:
    run = start(two_phases(2)[0], keyrings=kept)
    run.fakes.annotated = {"s0": [3, 3, 2], "s1": [4, 2, 2], "s2": [5, 1, 0]}
    run.run()
    assert not run.fakes.why
    assert "fewer than 3 sites annotate Parotid_R" in run.notes()


def test_weights_that_only_apply_are_looked_at(start: Start) -> None:
    """A phase of no rounds: the best of the one before, scored."""
    applied = Phase(name="q", sites=SITES, organs=ORGANS, rounds=0, init="p")
    run = start(two_phases(1)[0], applied)
    run.run()
    assert not run.fakes.why
    assert ("s1", "validate", "q", 0) in run.fakes.checked


def test_a_site_that_asks_for_nothing_is_sent_nothing(start: Start) -> None:
    run = start(replace(two_phases(2)[0]), agreed=("s1",))
    run.run()
    assert not run.fakes.why
    assert {site for site, _, _ in run.fakes.evidence} == {"s1"}


@pytest.mark.parametrize("asking", [tuple(SITES), ("s2",)])
def test_a_server_that_makes_weights_of_its_own_opens_no_sum(
    start: Start, monkeypatch: pytest.MonkeyPatch, asking: tuple[str, ...]
) -> None:
    """It was taken over after round 1; one site that looks is enough for the sum of all."""
    honest = PhaseRun._added

    def made(self: PhaseRun, *given: Any) -> Any:
        state, notes = honest(self, *given)
        return {n: torch.zeros_like(t) for n, t in state.items()}, notes

    monkeypatch.setattr(PhaseRun, "_added", made)
    run = start(two_phases(3)[0], agreed=asking)
    with pytest.raises(RunFailed, match="s2: E_WEIGHTS"):
        run.run()
    assert not run.events("round", round=2)
    assert all(site in asking for site, _ in run.fakes.why)
    trusting = start(two_phases(3)[0], agreed=(), folder="trusting")
    trusting.run()
    assert trusting.events("round", round=3), "which is what it is for"


@pytest.mark.parametrize("part", [0, 2])
def test_a_server_does_not_choose_which_parts_of_the_network_a_round_moves(
    start: Start, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """A share of nothing is none: body or row would stay, in a plan that freezes neither."""
    honest = Secure.totals

    def silenced(self: Secure, phase: Phase) -> list[float]:
        return [0.0 if i == part else t for i, t in enumerate(honest(self, phase))]

    monkeypatch.setattr(Secure, "totals", silenced)
    run = start(two_phases(2)[0])
    with pytest.raises(RunFailed, match="s0: E_MASK, s1: E_MASK, s2: E_MASK"):
        run.run()
    assert "of 0 at all sites" in run.fakes.refused[0]
    assert not run.events("round")


def test_a_site_that_lies_about_its_cases_spoils_a_round_and_not_the_run(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committed, the round was one that no site could go on from."""

    def lying(phase: Phase, task: str, result: Result, *rest: Any) -> Any:
        made = numbers(phase, task, result, *rest)
        made[0] += 1000.0 if task == "train" and result.cases == 5 else 0.0
        return made

    run = start(two_phases(2)[0])
    with monkeypatch.context() as patched:
        patched.setattr("hnfed.guard.masking.numbers", lying)
        with pytest.raises(RunFailed):
            run.run()
    assert not run.events("round")
    run.run(resume=True)
    assert not run.fakes.why
    assert run.events("round", round=2)


# ------------------------------------------------------ orders of an honest run, looked at again


@dataclass
class Heard:
    """What one site of an honest run was sent, to be looked at again."""

    sites: Sites
    orders: list[tuple[Asked, dict[str, Any]]]

    def at(self, task: str, phase: str, round_: int, base: bool = True) -> int:
        """Place of the last order of that kind."""
        return max(
            i
            for i, (asked, _) in enumerate(self.orders)
            if (asked.order.task, asked.order.phase, asked.order.round) == (task, phase, round_)
        )

    def look(self, asked: Asked, records: dict[str, Any], record: Record) -> bool:
        return require_weights(asked, records, self.sites.keyring("s1"), record)

    def until(self, place: int, folder: Path) -> Record:
        """The record of a site that has seen all orders before one."""
        for asked, records in self.orders[:place]:
            record = record_of(folder, "r", print)
            self.look(asked, records, record)
        return record_of(folder, "r", print)


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    """Of site s1, in a run of three phases."""
    folder = tmp_path_factory.mktemp("heard")
    plan = tiny_plan(*two_phases(), secure_aggregation=True, round_retries=0)
    sites = Listening(
        plan,
        folder=folder / "sites",
        cases=dict.fromkeys(SITES, 4),
        annotated={s: [4] * len(plan.organ_names) for s in SITES},
        add={"s0": 0.01, "s1": -0.004, "s2": 0.02},
        dice={(s, r): 0.5 if r == 1 else 0.1 for s in SITES for r in range(9)},
    )
    (folder / "sites").mkdir()
    Federated(sites, folder / "run").run()
    return Heard(sites, sites.heard)


@dataclass
class Listening(Sites):
    heard: list[tuple[Asked, dict[str, Any]]] = field(default_factory=list)


def crafted(records: dict[str, Any], key: str = "arrays", **changes: Tensor) -> dict[str, Any]:
    """The message with other weights: one number in a hundred is another by a thousandth."""
    state = unpacked(records[key])
    name = max(state, key=lambda n: state[n].numel())
    state[name].view(-1)[::100] += 1e-3 * state[name].abs().max()
    return {**records, key: packed(state | changes)}


@pytest.mark.parametrize(
    ("task", "phase", "round_"),
    [("train", "p", 1), ("train", "p", 2), ("train", "p", 3), ("validate", "p", 3),
     ("test", "p", 3), ("train", "q", 1), ("train", "q", 2), ("test", "q", 2)],
)  # fmt: skip
def test_crafted_weights_are_refused(
    heard: Heard, tmp_path: Path, task: str, phase: str, round_: int
) -> None:
    place = heard.at(task, phase, round_)
    record = heard.until(place, tmp_path)
    asked, records = heard.orders[place]
    before = (record.folder / "states.jsonl").read_bytes() if place else b""
    with pytest.raises(WeightsError):
        heard.look(asked, crafted(records), record)
    if place:
        assert (record.folder / "states.jsonl").read_bytes() == before, "nothing is remembered"
    assert heard.look(asked, records, record), "and the honest ones pass"


@pytest.mark.parametrize(("phase", "task"), [("q", "train"), ("own", "train")])
def test_a_crafted_base_is_refused(heard: Heard, tmp_path: Path, phase: str, task: str) -> None:
    place = heard.at(task, phase, 1)
    asked, records = heard.orders[place]
    assert "base" in records
    # the order before it is the same without a base, which was asked for
    record = heard.until(place - 1, tmp_path)
    assert not heard.look(asked, {n: r for n, r in records.items() if n != "base"}, record)
    other = crafted(records, "base")
    digest = state_hash(unpacked(other["base"]))
    with pytest.raises(WeightsError, match="another one than the order names"):
        heard.look(asked, other, record)
    lying = replace(asked, order=replace(asked.order, base_hash=digest))
    with pytest.raises(WeightsError, match="no round of phase"):
        heard.look(lying, other, record)
    none = replace(asked, order=replace(asked.order, base_hash=""))
    with pytest.raises(WeightsError, match="base"):
        heard.look(none, records, record)
    assert heard.look(asked, records, record)


def test_all_of_a_start_is_of_one_round(heard: Heard, tmp_path: Path) -> None:
    """A frozen part of round 1 and the rest of round 2: both honest, and no weights of the run."""
    place = heard.at("train", "q", 1)
    asked, records = heard.orders[place]
    record = heard.until(place - 1, tmp_path)
    _, later = heard.orders[heard.at("train", "p", 3)]  # of round 2
    mixed = unpacked(later["arrays"])
    arrays = {n: t if "head" in n else mixed[n] for n, t in unpacked(records["arrays"]).items()}
    with pytest.raises(WeightsError, match="no round of phase p"):
        heard.look(asked, {**records, "arrays": packed(arrays)}, record)
    head = unpacked(records["arrays"])
    head["head.weight"][0] = mixed["head.weight"][0]
    with pytest.raises(WeightsError, match="no round of phase p"):
        heard.look(asked, {**records, "arrays": packed(head)}, record)
    state = unpacked(records["base"]) | {n: t for n, t in mixed.items() if n not in arrays}
    order = replace(asked.order, base_hash=state_hash(state))
    with pytest.raises(WeightsError, match="no round of phase p"):
        heard.look(replace(asked, order=order), {**records, "base": packed(state)}, record)


def evidence_in(heard: Heard, records: dict[str, Any], phase: str = "p") -> Evidence:
    plan = heard.sites.plan
    shapes = travelling(plan, plan.phase(phase)).shapes.values()
    words = sum(int(np.prod(s)) for s in shapes)
    counts = len(counted(len(plan.phase(phase).organs)))
    return Evidence.from_parcel(records["evidence"], len(SITES), words, counts)


def with_evidence(records: dict[str, Any], evidence: Evidence) -> dict[str, Any]:
    return {**records, "evidence": evidence.to_parcel()}


def changed_word(e: Evidence, heard: Heard, about: bytes) -> Evidence:
    words = e.words.copy()
    words[2, 5] += np.uint32(1)
    return replace(e, words=words)


def changed_count(e: Evidence, heard: Heard, about: bytes) -> Evidence:
    counts = e.counts.copy()
    counts[0, 0] += np.uint64(1)
    return replace(e, counts=counts)


def swapped_sites(e: Evidence, heard: Heard, about: bytes) -> Evidence:
    order = [2, 1, 0]
    signatures = tuple(e.signatures[i] for i in order)
    return replace(e, words=e.words[order], counts=e.counts[order], signatures=signatures)


def one_site_twice(e: Evidence, heard: Heard, about: bytes) -> Evidence:
    order = [0, 1, 0]
    signatures = tuple(e.signatures[i] for i in order)
    return replace(e, words=e.words[order], counts=e.counts[order], signatures=signatures)


def resigned(e: Evidence, row: int, key: ec.EllipticCurvePrivateKey, about: bytes) -> Evidence:
    content = e.words[row].tobytes(), e.counts[row].tobytes()
    signatures = list(e.signatures)
    signatures[row] = part_signed(key, about, *content)
    return replace(e, signatures=tuple(signatures))


def of_another_try(e: Evidence, heard: Heard, about: bytes) -> Evidence:
    return resigned(e, 0, heard.sites.keyring("s0").key, bytes(32))


def of_an_unknown_key(e: Evidence, heard: Heard, about: bytes) -> Evidence:
    return resigned(e, 2, ec.generate_private_key(ec.SECP384R1()), about)


def of_the_wrong_site(e: Evidence, heard: Heard, about: bytes) -> Evidence:
    return resigned(e, 2, heard.sites.keyring("s0").key, about)


def without_a_signature(e: Evidence, heard: Heard, about: bytes) -> Evidence:
    return replace(e, signatures=(e.signatures[0], e.signatures[1], b""))


@pytest.mark.parametrize(
    "change",
    [changed_word, changed_count, swapped_sites, one_site_twice, of_another_try,
     of_an_unknown_key, of_the_wrong_site, without_a_signature],
)  # fmt: skip
def test_evidence_that_not_every_site_signed_is_refused(
    heard: Heard, tmp_path: Path, change: Callable[[Evidence, Heard, bytes], Evidence]
) -> None:
    place = heard.at("train", "p", 3)
    record = heard.until(place, tmp_path)
    asked, records = heard.orders[place]
    (part,) = [p for p in record.parts if p.round == 2]
    other = change(evidence_in(heard, records), heard, bytes.fromhex(part.about))
    with pytest.raises(WeightsError, match=r"sign|own part"):
        heard.look(asked, with_evidence(records, other), record)


def test_no_damage_of_a_message_does_more_than_be_refused(heard: Heard, tmp_path: Path) -> None:
    place = heard.at("train", "p", 3)
    kept = heard.until(place, tmp_path)
    asked, records = heard.orders[place]
    honest = hashes(unpacked(records["arrays"]))

    @given(st.sampled_from(["arrays", "evidence"]), st.integers(0, 2**32), st.integers(1, 255))
    @settings(deadline=None, max_examples=60)
    def damaged(key: str, at: int, bits: int) -> None:
        content = bytearray(records[key])
        content[at % (4096 if at % 2 else len(content))] ^= bits
        record = Record(kept.folder, list(kept.known), list(kept.parts))
        other = {**records, key: bytes(content)}
        with suppress(WeightsError):
            assert heard.look(asked, other, record)
            assert hashes(unpacked(other["arrays"])) == honest

    damaged()


def test_evidence_of_another_round_or_none_is_refused(heard: Heard, tmp_path: Path) -> None:
    place = heard.at("train", "p", 3)
    record = heard.until(place, tmp_path)
    asked, records = heard.orders[place]
    _, earlier = heard.orders[heard.at("train", "p", 2)]
    with pytest.raises(WeightsError, match="own part is not one that it sent in that round"):
        heard.look(asked, {**records, "evidence": earlier["evidence"]}, record)
    with pytest.raises(WeightsError, match="did not come with them"):
        heard.look(asked, {n: r for n, r in records.items() if n != "evidence"}, record)
    again = {**records, "arrays": earlier["arrays"], "evidence": earlier["evidence"]}
    with pytest.raises(WeightsError):  # honest weights of round 1, as those of round 2
        heard.look(asked, again, record)


def test_a_bound_on_updates_that_does_not_follow_is_refused(heard: Heard, tmp_path: Path) -> None:
    place = heard.at("train", "p", 2)
    record = heard.until(place, tmp_path)
    asked, records = heard.orders[place]
    assert asked.order.longest > 0
    with pytest.raises(WeightsError, match="longest"):
        heard.look(replace(asked, order=replace(asked.order, longest=1e-9)), records, record)


@pytest.mark.parametrize(
    "change", [{"voxels": [1.0, 1.0, 1.0]}, {"organ_factors": [1.0, 1.0, 2.0]}]
)
def test_nothing_else_of_an_order_moves_from_round_to_round(
    heard: Heard, tmp_path: Path, change: dict[str, list[float]]
) -> None:
    place = heard.at("train", "p", 2)
    record = heard.until(place, tmp_path)
    asked, records = heard.orders[place]
    assert asked.order.voxels
    with pytest.raises(WeightsError, match=next(iter(change))):
        heard.look(replace(asked, order=replace(asked.order, **change)), records, record)


def test_own_weights_are_gone_on_with_if_their_start_was_looked_at(tmp_path: Path) -> None:
    """A site that said ``weights: any`` until then has weights of its own made of anything."""
    first = Phase(name="own", sites=["s1"], organs=ORGANS, share="none")
    more = [replace(first, name=n, init=i) for n, i in (("more", "own"), ("most", "more"))]
    plan = tiny_plan(first, *more)
    record = record_of(tmp_path, "r", print)
    asked = Asked("train", "s1", "r", plan, Order("r", "most", 1, "train"), plan.phases[2])
    with pytest.raises(WeightsError, match="phase own: what it left here"):
        require_weights(asked, {}, None, record)
    state = start_state(plan, first, None)
    order = Order("r", "own", 1, "train", base_hash=state_hash(state))
    begun = Asked("train", "s1", "r", plan, order, first)
    assert not require_weights(begun, {}, None, record), "the base is asked for"
    assert require_weights(begun, {"base": packed(state)}, None, record)
    assert require_weights(begun, {}, None, record)
    assert require_weights(asked, {}, None, record)
    with pytest.raises(WeightsError, match="base"):
        require_weights(asked, {"base": packed(state)}, None, record)


def test_weights_that_stayed_are_gone_on_with_if_their_start_was_looked_at(tmp_path: Path) -> None:
    own = Phase(name="own", sites=["s1"], organs=ORGANS, rounds=3, share="none")
    plan, record = tiny_plan(own), record_of(tmp_path, "r", print)
    state = start_state(plan, own, None)
    order = Order("r", "own", 2, "train", base_hash=state_hash(state), base_round=1, best_round=1)
    asked = Asked("train", "s1", "r", plan, order, own)
    with pytest.raises(WeightsError, match="goes on from weights that stayed here"):
        require_weights(asked, {"base": packed(state)}, None, record)
    first = replace(asked, order=replace(order, round=1, base_round=0, best_round=0))
    assert require_weights(first, {"base": packed(state)}, None, record)
    assert require_weights(asked, {}, None, record)


def test_a_guard_asks_for_a_base_that_it_has_not_seen(
    tmp_path: Path, patients: Path, own_bundle: bytes
) -> None:
    """Through a whole guard: a hash alone, which a store on the disk may have, is not enough."""
    own = tiny_phase(organs=list(BALLS), sites=["north"], share="none")
    hospital = Hospital(tmp_path, patients, own_bundle, small_plan(own))
    hospital.policy(*(r for r in LENIENT if r != "weights: any"))
    assert hospital.ask("query").code == "OK", hospital.log
    state = start_state(hospital.plan, own, None)
    crafted = {n: t + 0.01 for n, t in state.items()}
    for base, code in ((crafted, "E_WEIGHTS"), (state, "OK")):
        order = hospital.order(base_hash=state_hash(base))
        assert hospital.ask("train", order).code == "NEED_BASE", hospital.log
        said = hospital.ask("train", order, base=packed(base))
        assert said.code == code, hospital.log
    assert hospital.ask("train", hospital.order(2, base_hash=state_hash(crafted))).code != "OK"


def test_a_run_under_any_does_not_become_agreed_in_the_middle(
    tmp_path: Path, patients: Path, own_bundle: bytes
) -> None:
    """Scored once from an honest start, it went on from what a crafted one had left here."""
    own = tiny_phase(organs=list(BALLS), sites=["north"], share="none", rounds=3)
    hospital = Hospital(tmp_path, patients, own_bundle, small_plan(own))
    assert hospital.ask("query").code == "OK", hospital.log
    state = start_state(hospital.plan, own, None)
    crafted = {n: t + 0.01 for n, t in state.items()}
    first = hospital.order(base_hash=state_hash(crafted))
    assert hospital.ask("train", first, base=packed(crafted)).code == "OK", hospital.log
    hospital.policy(*(r for r in LENIENT if r != "weights: any"))
    honest = {"base_hash": state_hash(state)}
    looked_at = hospital.order(1, "validate", **honest)
    hospital.ask("evaluate", looked_at, base=packed(state))
    then = hospital.order(2, base_round=1, best_round=1, **honest)
    said = hospital.ask("train", then, base=packed(state))
    assert said.code == "E_WEIGHTS", hospital.log
    assert "weights: any until now" in hospital.said[-1]


def test_a_run_that_was_looked_at_is_forgotten_under_any(tmp_path: Path) -> None:
    said: list[str] = []
    record_of(tmp_path, "r", print).add(Known("p", 0, "", {"a": "00"}, ""))
    assert is_kept(tmp_path, "r")
    forget(tmp_path, "r", said.append)
    forget(tmp_path, "r", said.append)
    assert not is_kept(tmp_path, "r")
    (line,) = said
    assert "cannot go on here" in line


def test_orders_that_are_refused_make_no_run_forgotten(tmp_path: Path) -> None:
    own = Phase(name="own", sites=["s1"], organs=ORGANS, share="none")
    plan = tiny_plan(own)
    record_of(tmp_path, "real", print).add(Known("own", 0, "", {"a": "00"}, ""))
    crafted = {n: t + 0.01 for n, t in start_state(plan, own, None).items()}
    for i in range(MOST_RUNS + 1):
        order = Order(f"r{i}", "own", 1, "train", base_hash=state_hash(crafted))
        asked = Asked("train", "s1", f"r{i}", plan, order, own)
        record = record_of(tmp_path, f"r{i}", print)
        with pytest.raises(WeightsError, match="its start is not"):
            require_weights(asked, {"base": packed(crafted)}, None, record)
    assert (tmp_path / "weights" / "real").is_dir()


def test_totals_that_the_counts_do_not_bear_out_are_refused(heard: Heard, tmp_path: Path) -> None:
    """Shares of far too much would leave of a sum what rounding leaves of it."""
    place = heard.at("train", "p", 2)
    record = heard.until(place, tmp_path)
    asked, records = heard.orders[place]
    (part,) = record.parts
    record.parts[:] = [replace(part, weights=tuple(1000 * w for w in part.weights))]
    with pytest.raises(WeightsError, match="at most 100 times"):
        heard.look(asked, records, record)
    record.parts[:] = [replace(part, weights=(0.0, *part.weights[1:]))]
    with pytest.raises(WeightsError, match="shares of 0, "):
        heard.look(asked, records, record)


def test_a_site_among_them_can_still_send_any_update(heard: Heard, tmp_path: Path) -> None:
    """What is not met, see docs/privacy.md: its part is signed, whatever it is made of."""
    place = heard.at("train", "p", 2)
    record = heard.until(place, tmp_path)
    asked, records = heard.orders[place]
    (part,) = record.parts
    told = evidence_in(heard, records)
    words = told.words.copy()
    words[2, 0] += np.uint32(2**26)  # half of what the first number may be moved by
    key = heard.sites.keyring("s2").key
    colluding = resigned(replace(told, words=words), 2, key, bytes.fromhex(part.about))
    state = unpacked(records["arrays"])
    name = min(state)
    state[name].view(-1)[0] += 0.5
    made = {**records, "arrays": packed(state), "evidence": colluding.to_parcel()}
    assert heard.look(asked, made, record)


def test_a_record_of_another_run_helps_nobody(heard: Heard, tmp_path: Path) -> None:
    place = heard.at("train", "p", 2)
    asked, records = heard.orders[place]
    heard.until(place, tmp_path)
    with pytest.raises(WeightsError, match="this site was not there"):
        heard.look(asked, records, record_of(tmp_path, "another", print))


# ------------------------------------------------------------------------------- starts, the record


@pytest.mark.parametrize("how", ["random", "background", "mean"])
def test_new_rows_of_a_head_begin_as_the_plan_says(tmp_path: Path, how: str) -> None:
    phases = [replace(p, freeze="none") for p in two_phases()[:2]]
    plan = tiny_plan(phases[0], replace(phases[1], head_init=how), secure_aggregation=True)
    earlier = start_state(plan, plan.phases[0], None)
    earlier = {n: t + 0.1 for n, t in earlier.items()}
    record = record_of(tmp_path, "r", print)
    heads = {n: t for n, t in earlier.items() if n.startswith("head")}
    record.add(Known("p", 0, "", hashes(earlier), heads_parcel(heads)))
    state = start_state(plan, plan.phases[1], (earlier, plan.phases[0].organs))
    order = Order("r", "q", 1, "train")
    asked = Asked("train", "s0", "r", plan, order, plan.phases[1])
    other = {n: t.clone() for n, t in state.items()}
    other["head.bias"][3] += 0.01  # the organ that is new
    with pytest.raises(WeightsError, match="no round of phase p"):
        require_weights(asked, {"arrays": packed(other)}, None, record)
    assert require_weights(asked, {"arrays": packed(state)}, None, record)


@given(st.floats(0, 3e-6), st.sampled_from([1.0, -1.0]))
@settings(deadline=None)
def test_a_start_may_differ_in_the_last_bits_alone(far: float, sign: float) -> None:
    state = {"a": torch.tensor([2.0, -0.5]).double(), "b": torch.zeros(3).double()}
    other = {"a": state["a"] + sign * far * 2.0, "b": state["b"]}
    assert _close(state, other) == (far <= 1e-6) or abs(far - 1e-6) < 1e-12
    assert not _close(state, {"a": state["a"], "b": state["b"] + 1e-30}), "zeros are zeros"
    assert not _close(state, {"a": state["a"]})
    assert not _close({"a": torch.tensor([float("inf")])}, {"a": torch.ones(1)}), "no bound at all"
    assert not _close(state, {**state, "a": torch.tensor([2.0, float("nan")])})


@given(st.binary(max_size=400))
def test_no_bytes_do_more_than_be_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        Evidence.from_parcel(content, 3, 7, 4)


def test_evidence_comes_back_as_it_was_and_in_no_other_size() -> None:
    random = np.random.default_rng(0)
    told = Evidence(
        random.integers(0, 2**32, (3, 7), np.uint32),
        random.integers(0, 2**64, (3, 4), np.uint64),
        (b"one", b"", bytes(range(104))),
    )
    found = Evidence.from_parcel(told.to_parcel(), 3, 7, 4)
    assert np.array_equal(found.words, told.words)
    assert np.array_equal(found.counts, told.counts)
    assert found.signatures == told.signatures
    for size in ((2, 7, 4), (3, 8, 4), (3, 7, 5)):
        with pytest.raises(ValueError):
            Evidence.from_parcel(told.to_parcel(), *size)


def test_the_record_survives_a_torn_line_and_forgets_the_oldest_runs(tmp_path: Path) -> None:
    said: list[str] = []
    line = Known("p", 1, "", {"a": "00"}, "", 2.5)
    part = Part("ab", "p", 1, "", "cd", (1.0, 2.0))
    for i in range(MOST_RUNS + 2):
        record = record_of(tmp_path, f"r{i}", said.append)
        record.add(line)
        record.add(line)
        os.utime(record.folder / "states.jsonl", (i, i))
    assert [text.split(":")[0] for text in said] == ["run r0", "run r1"]
    path = record.folder / "states.jsonl"
    assert path.stat().st_mode & 0o077 == record.folder.stat().st_mode & 0o077 == 0
    with path.open("a") as file:
        file.write('\n{"kind": "Known", "phase"')
    record = record_of(tmp_path, record.folder.name, said.append)
    assert record.known == [line]
    record.add(part)
    record.keep_start(b"weights")
    assert (record.folder / "start.safetensors").stat().st_mode & 0o077 == 0
    again = record_of(tmp_path, record.folder.name, said.append)
    assert (again.known, again.parts) == ([line], [part])
    path.write_text('{"kind": "Known", "other": 1}')
    with pytest.raises(UserError, match="begin a new run"):
        record_of(tmp_path, record.folder.name, said.append)
