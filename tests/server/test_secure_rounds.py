"""Secure aggregation through the real ServerApp: the guard's own function at every site."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from core.errors import UserError
from core.plan.schema import Phase
from core.wire.messages import Description, Order
from core.wire.state import packed
from hnfed.guard.masking_session import Keyring
from hnfed.guard.simulated import let_out
from hnfed.guard.simulated_keys import simulated_keyring
from server.dispatch import RunFailed
from server.exchange import record_of
from tests.server.conftest import Fakes, Federated, tiny_plan
from tests.weights import weights_in

ORGANS = ["Brainstem", "Parotid_L", "Parotid_R"]
Hook = Callable[[str, Message, Message], Message]


@dataclass
class Cases(Fakes):
    """Sites that say which organs they annotate, and mask what they say.

    Attributes:
        folder: of the sites.
        keyrings: by site, what differs from the usual one.
        asked: (site, order) as it came.
        left: messages that left, by site.
        away: by (task, round), sites that do not answer; used up.
        refused: why a reply was not let out.
        server: by task, changes an order before a site sees it.
    """

    folder: Path = Path()
    secure: bool = True
    keyrings: dict[str, dict[str, Any]] = field(default_factory=dict)
    left: list[tuple[str, Message]] = field(default_factory=list)
    away: dict[tuple[str, int], list[set[str]]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    changes: dict[tuple[str, str], Callable[[Message], None]] = field(default_factory=dict)

    def app(self) -> ClientApp:
        return Outside(super().app(), self)

    def _query(self, message: Message, context: Context) -> Message:
        site = self.name(context)
        rows = self.annotated[site]
        header, metrics = Description(
            site=site,
            fingerprint=self.code,
            split_hash="ab" * 32,
            cases=(self.cases[site], 2, 2),
            annotated=tuple(rows),
            voxels=tuple(10.0 * c for c in rows),
            totals=tuple(16.0**3 * c for c in rows),
            left_out={},
            versions={},
            annotated_val=tuple(2 for _ in rows),
            annotated_test=tuple(2 for _ in rows),
        ).to_records()
        content = {"header": ConfigRecord(header), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    def keyring(self, site: str) -> Keyring:
        from dataclasses import replace

        made = simulated_keyring(self.folder, site, self.plan.site_names)
        return replace(made, **self.keyrings.get(site, {}))


class Outside(ClientApp):
    """What stands between a site's code and the network."""

    def __init__(self, app: ClientApp, fakes: Cases) -> None:
        super().__init__()
        self._app, self._fakes = app, fakes

    def __call__(self, message: Message, context: Context) -> Message:
        fakes, site = self._fakes, self._fakes.name(context)
        order = Order.from_config(
            {"phase": "", "round": 0, "task": ""} | dict(message.content["order"])
        )
        waiting = fakes.away.get((order.task, order.round), [])
        if waiting and site in waiting[0]:
            waiting[0].discard(site)
            if not waiting[0]:
                waiting.pop(0)
            return Message(Error(1), reply_to=message)
        if change := fakes.changes.get((site, order.task)):
            change(message)
        reply = self._app(message, context)
        if not fakes.secure:
            return reply
        if "metrics" not in reply.content:  # a site's own client sends empty ones
            reply.content["metrics"] = MetricRecord({})
        with redirect_stderr(io.StringIO()) as said:
            made = let_out(
                message, reply, context, fakes.name, lambda _, asked: fakes.keyring(asked.site)
            )
        fakes.refused += [said.getvalue()] if said.getvalue() else []
        fakes.left.append((site, made))
        return made


Start = Callable[..., Federated]


@pytest.fixture
def start(tmp_path: Path, task_identity: None, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A federation of `n` sites with partial labels, in a fresh run folder."""
    monkeypatch.setattr("server.exchange.POLL_SECONDS", 0.001)
    monkeypatch.setattr("server.dispatch.AWAY_SECONDS", 0.0)

    def make(
        n: int = 3, *, secure: bool = True, rounds: int = 2, folder: str = "run", **settings: Any
    ) -> Federated:
        names = [f"s{i}" for i in range(n)]
        federation = settings.pop("federation", {})
        phases = settings.pop("phases", None) or [
            Phase(name="p", sites=names, organs=ORGANS, rounds=rounds)
        ]
        plan = tiny_plan(*phases, secure_aggregation=secure, round_retries=1, **federation)
        settings.setdefault("cases", {s: 3 + i for i, s in enumerate(names)})
        settings.setdefault(
            "annotated",
            {s: [3 + i, (i % 4 != 3) * (1 + i), 0 if i > 1 else 2] for i, s in enumerate(names)},
        )
        settings.setdefault("add", {s: 0.25 * (i + 1) - 0.4 for i, s in enumerate(names)})
        fakes = Cases(plan, folder=tmp_path / folder / "sites", secure=secure, **settings)
        (tmp_path / folder / "sites").mkdir(parents=True, exist_ok=True)
        return Federated(fakes, tmp_path / folder)

    return make


# ---------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("n", [3, 4, 7, 10])
def test_the_mean_is_that_of_plain_averaging(start: Start, n: int) -> None:
    plain, secure = start(n, secure=False, folder="plain"), start(n)
    plain.run()
    secure.run()
    from core.models.stages import head_rows
    from core.wire.partition import network

    heads = head_rows(network(secure.fakes.plan, secure.fakes.plan.phases[0]))
    for name, tensor in plain.weights("last").items():
        found = secure.weights("last")[name]
        rows = slice(0, 3) if name in heads else slice(None)  # the last organ has two sites only
        assert torch.allclose(found[rows], tensor[rows], atol=1e-6, rtol=0), name


def test_an_organ_of_too_few_sites_keeps_its_row_and_the_journal_says_so(start: Start) -> None:
    run = start(4)
    run.run()
    from core.models.stages import head_rows
    from core.wire.partition import network, start_state

    plan = run.fakes.plan
    begun = start_state(plan, plan.phases[0], None)
    for name in head_rows(network(plan, plan.phases[0])):
        assert torch.equal(run.weights("last")[name][3], begun[name][3])
        assert not torch.equal(run.weights("last")[name][2], begun[name][2])
    assert "too few sites annotate Parotid_R" in run.notes()
    for _, message in run.fakes.left:  # and nobody sent anything of it
        if "arrays" in message.content:
            words = weights_in(message.content["arrays"])["masked"]
            size = sum(begun[n][3].numel() for n in head_rows(network(plan, plan.phases[0])))
            assert not words[-size:].any()


def test_scores_are_sums_over_sites_and_choose_the_best_round(start: Start) -> None:
    dice = {(f"s{i}", r): d for i in range(3) for r, d in ((0, 0.1), (1, 0.8), (2, 0.3))}
    plain = start(3, secure=False, folder="plain", rounds=2, dice=dict(dice))
    secure = start(3, rounds=2, dice=dict(dice))
    plain.run()
    secure.run()
    import json

    blocks = [
        json.loads((r.out / "metrics.json").read_text())["phases"][0] for r in (plain, secure)
    ]
    assert blocks[1]["best_round"] == blocks[0]["best_round"] == 1
    means = [b["mean"] | b["mean"]["organs"].pop(ORGANS[0]) for b in blocks]
    for key in ("n", "missed", "dice", "hd95_mm", "hd95_mm_penalised"):
        assert means[1][key] == pytest.approx(means[0][key], abs=1e-5), key
    assert list(blocks[1]["sites"]) == ["all-sites"]


def test_no_number_of_one_site_leaves_it(start: Start) -> None:
    run = start(3, cases={"s0": 61, "s1": 62, "s2": 63})
    run.run()
    assert run.fakes.left
    for _, message in run.fakes.left:
        told = dict(message.content["metrics"])
        told.pop("masked", None)
        numbers = [n for v in told.values() for n in (v if isinstance(v, list) else [v])]
        assert set(numbers) <= {0, -1}
        for record in message.content.array_records.values():
            (array,) = record.values()
            assert list(weights_in(record)) == ["masked"]
            assert array.dtype == "uint8"


def test_class_frequencies_are_summed_before_the_first_round(start: Start) -> None:
    plain, secure = start(4, secure=False, folder="plain"), start(4)
    told: dict[bool, list[float]] = {}
    for run in (plain, secure):
        key = run.fakes.plan.federation.secure_aggregation

        def watch(message: Message, key: bool = key) -> None:
            told[key] = list(message.content["order"]["voxels"])

        run.fakes.changes = {("s0", "train"): watch}
        run.run()
    assert told[True][:2] == told[False][:2]
    assert told[True][2] == 0.0  # two sites only


def test_where_a_site_keeps_its_counts_all_weigh_equally(start: Start) -> None:
    run = start(3, rounds=1, keyrings={"s1": {"counts": False}})
    run.run()
    from core.wire.partition import start_state

    begun = start_state(run.fakes.plan, run.fakes.plan.phases[0], None)
    mean = sum(run.fakes.add.values()) / 3
    name = sorted(begun)[0]
    assert torch.allclose(run.weights("last")[name] - begun[name], torch.tensor(mean), atol=1e-6)
    assert "all sites weigh equally" in run.notes()


def test_where_a_site_keeps_its_scores_no_sum_of_scores_is_opened(start: Start) -> None:
    run = start(3, keyrings={"s1": {"scores": False}})
    run.run()
    assert "no site tells val scores" in run.notes()


def test_a_personal_phase_tells_no_score(start: Start) -> None:
    sites = ["s0", "s1", "s2"]
    phases = [
        Phase(name="p", sites=sites, organs=ORGANS, rounds=1),
        Phase(name="own", sites=["s0"], organs=ORGANS, rounds=1, init="p", freeze="encoder",
              share="none"),
    ]  # fmt: skip
    run = start(3, phases=phases)
    run.run()
    for _, message in run.fakes.left:
        if message.content["header"].get("phase") == "own":
            assert not [k for k in message.content["metrics"] if k.startswith(("val", "test"))]


def test_updates_are_held_to_a_bound_at_the_sites(start: Start) -> None:
    add = {"s0": 0.01, "s1": 0.01, "s2": 0.01}
    run = start(3, rounds=3, add=dict(add), federation={})
    seen: list[float] = []

    def leap(message: Message) -> None:
        seen.append(float(message.content["order"]["longest"]))
        if message.content["order"]["round"] == 2:
            run.fakes.add["s0"] = 5.0

    run.fakes.changes = {("s0", "train"): leap}
    run.run()
    assert seen[0] == 0.0
    assert seen[1] > 0
    (event,) = run.events("round", round=2)
    assert event["clipped_sites"] == 1


def test_a_bound_that_falls_by_half_is_noted(start: Start) -> None:
    """A site that tells a negative length shortens all others' next updates, in sums unseen."""
    run = start(3, rounds=3, add={"s0": 0.01, "s1": 0.01, "s2": 0.01}, federation={})

    def shrink(message: Message) -> None:
        if message.content["order"]["round"] == 2:
            run.fakes.add |= {"s0": 1e-4, "s1": 1e-4, "s2": 1e-4}

    run.fakes.changes = {("s0", "train"): shrink}
    run.run()
    assert "round 2: the next updates are held to" in run.notes()
    assert "round 3: the next updates are held to" not in run.notes()


# ------------------------------------------------------------------------------ a site that is lost


@pytest.mark.parametrize(
    ("stage", "lost"),
    [
        (("tally", 0), {"s1"}),
        (("tally", 0), {"s1", "s3"}),
        (("train", 1), {"s0", "s2"}),
        (("train", 2), {"s3"}),
        (("validate", 2), {"s0", "s1"}),
        (("test", 2), {"s2"}),
    ],
)
def test_the_round_is_repeated_with_a_site_that_was_lost(
    start: Start, stage: tuple[str, int], lost: set[str]
) -> None:
    plain = start(4, secure=False, folder="plain")
    run = start(4, away={stage: [set(lost)]})
    plain.run()
    run.run()
    assert "nothing is opened" in run.notes()
    name = sorted(plain.weights("last"))[0]
    assert torch.allclose(run.weights("last")[name], plain.weights("last")[name], atol=1e-6)


def test_a_site_that_stays_away_stops_the_run_which_goes_on_with_it(start: Start) -> None:
    undisturbed, run = start(4, folder="calm"), start(4, away={("train", 2): [{"s2"}, {"s2"}]})
    undisturbed.run()
    with pytest.raises(RunFailed, match="s2: E_ERROR"):
        run.run()
    run.run(resume=True)
    for name, tensor in undisturbed.weights("last").items():
        assert torch.equal(run.weights("last")[name], tensor), name


# --------------------------------------------------------------------------- what a server may not


def attacked(start: Start, change: Callable[[Message], None], task: str = "train") -> Federated:
    run = start(4)
    run.fakes.changes = {("s0", task): change}
    with pytest.raises(RunFailed):
        run.run()
    assert run.fakes.refused
    return run


def order_with(**values: Any) -> Callable[[Message], None]:
    def change(message: Message) -> None:
        message.content["order"] = ConfigRecord(dict(message.content["order"]) | values)

    return change


def test_a_server_that_claims_fewer_sites_gets_nothing(start: Start) -> None:
    def fewer(message: Message) -> None:
        peers = list(message.content["order"]["peers"])
        message.content["order"] = ConfigRecord(
            dict(message.content["order"]) | {"peers": peers[:3]}
        )

    run = attacked(start, fewer, "tally")
    assert "other sites than the plan's" in run.fakes.refused[0]


def test_a_server_that_stands_in_for_a_site_gets_nothing(start: Start) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from core.secure.hello import Hello

    own = ec.generate_private_key(ec.SECP384R1())

    def swap(message: Message) -> None:
        from dataclasses import replace

        peers = list(message.content["order"]["peers"])
        key = X25519PrivateKey.generate().public_key().public_bytes_raw().hex()
        peers[2] = replace(Hello.read(peers[2]), key=key).signed(own)
        message.content["order"] = ConfigRecord(dict(message.content["order"]) | {"peers": peers})

    run = attacked(start, swap, "tally")
    assert "s2 did not sign that" in run.fakes.refused[0]


def test_keys_change_neither_within_a_run(start: Start) -> None:
    def swap(message: Message) -> None:
        peers = list(message.content["order"]["peers"])
        peers[1], peers[2] = peers[2], peers[1]
        message.content["order"] = ConfigRecord(dict(message.content["order"]) | {"peers": peers})

    run = attacked(start, swap)
    assert "than in this run so far" in run.fakes.refused[0]


def test_an_order_is_answered_once(start: Start) -> None:
    run = attacked(start, order_with(attempt="00"))
    assert "masks are used once" in run.fakes.refused[0]


@pytest.mark.parametrize(
    "change",
    [
        order_with(longest=1e-9),
        order_with(organ_factors=[1.0, 0.0, 0.0]),
        order_with(base_hash="", voxels=[1.0, 1.0, 1.0]),
        order_with(fingerprint="00"),
    ],
)
def test_sites_that_are_told_different_things_do_not_add_up(
    start: Start, change: Callable[[Message], None]
) -> None:
    run = start(4)
    run.fakes.changes = {("s0", "train"): change}
    with pytest.raises(RunFailed):
        run.run()
    assert "the masks do not cancel" in run.notes()
    assert not run.events("round")


def test_sites_that_are_given_different_weights_do_not_add_up(start: Start) -> None:
    def other(message: Message) -> None:
        state = weights_in(message.content["arrays"])
        message.content["arrays"] = record_of(packed({k: v * 0.0 for k, v in state.items()}))

    run = start(4)
    run.fakes.changes = {("s0", "train"): other}
    with pytest.raises(RunFailed):
        run.run()
    assert not run.events("round")


def test_another_set_of_sites_is_refused_in_any_run_until_a_person_says_so(start: Start) -> None:
    four, less = start(4, rounds=1), start(3, rounds=1, folder="less")
    four.run()
    less.fakes.folder, less.run_id = four.fakes.folder, "another"
    with pytest.raises(RunFailed):
        less.run()
    assert "not those of the sums before" in less.fakes.refused[0]
    less.fakes.keyrings = {s: {"may_change": True} for s in less.fakes.plan.site_names}
    less.run_id = "with-consent"
    less.run()


def test_an_organ_that_a_site_annotates_since_is_another_set_too(start: Start) -> None:
    four, more = start(4, rounds=1), start(4, rounds=1, folder="more")
    four.run()
    more.fakes.folder, more.run_id = four.fakes.folder, "another"
    more.fakes.annotated["s3"] = [6, 1, 0]
    with pytest.raises(RunFailed):
        more.run()
    assert "train Parotid_L" in more.fakes.refused[0]


def test_a_row_that_fewer_sites_contribute_to_than_was_said_is_not_masked(start: Start) -> None:
    run = start(4)

    def lose_the_contours(message: Message) -> None:
        run.fakes.annotated["s0"] = [3, 0, 2]

    run.fakes.changes = {("s0", "train"): lose_the_contours}
    with pytest.raises(RunFailed):
        run.run()
    assert "other organs are annotated" in run.fakes.refused[0]


def test_fewer_sites_than_a_site_asks_for_is_said_before_anything_is_sent(start: Start) -> None:
    run = start(3, keyrings={"s2": {"fewest": 5}})
    with pytest.raises(UserError, match=r"phases\.sites(.|\n)*s2 asks for sums over 5 sites"):
        run.run()
    assert all("masked" not in m.content["metrics"] for _, m in run.fakes.left)


def test_no_update_of_one_site_is_measured(start: Start) -> None:
    run = start(rounds=1)
    run.run()
    (event,) = run.events("round", phase="p")
    assert "updates" not in event
