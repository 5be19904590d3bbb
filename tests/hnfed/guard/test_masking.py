"""A site whose plan asks for sums, through its whole guard, with two other sites that add zeros."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from core.metrics.scores import OrganSum
from core.plan.schema import Phase
from core.secure.hello import Hello, require_signed
from core.secure.layout import (
    Opened,
    counted,
    flat,
    following,
    longest,
    summed,
    tallied,
    travelling,
    weight_segments,
)
from core.secure.masked_sum import NUMBER_BITS, UPDATE_BITS, Evidence, opened
from core.wire.messages import Description, Header, Order, Result
from core.wire.partition import fingerprint, start_state
from core.wire.state import packed, unpacked
from hnfed.deploy.provision import Federation, provision
from hnfed.guard import exit
from hnfed.guard.keyring import keyring_of
from hnfed.guard.kit import Kit, read_kit
from hnfed.guard.masking import secured
from hnfed.guard.order import Asked
from hnfed.guard.peers import confirm, seen_peer, write_peers
from hnfed.guard.receipt_words import summary
from hnfed.guard.receipts import read_receipts
from hnfed.guard.rules import Policy
from tests.client.conftest import tiny_phase, tiny_plan
from tests.hnfed.guard.conftest import LENIENT, ORGANS, Hospital

SITES = ["east", "north", "west"]


def secure_phase() -> Phase:
    return tiny_phase(organs=list(ORGANS), sites=SITES)


@pytest.fixture
def clinic(tmp_path: Path, patients: Path, own_bundle: bytes) -> Hospital:
    plan = tiny_plan(secure_phase())
    federation = replace(plan.federation, secure_aggregation=True)
    made = Hospital(tmp_path, patients, own_bundle, replace(plan, federation=federation))
    made.policy(*(r for r in LENIENT if r != "weights: any"))
    return made


@pytest.fixture
def others(clinic: Hospital, tmp_path: Path) -> dict[str, Kit]:
    """Kits of the two other sites, all three confirmed with each other."""
    provision(Federation("hn", "x", 1, 2, ("east", "west"), 30), tmp_path / "others")
    kits = {s: read_kit(tmp_path / "others" / s, "site") for s in ("east", "west")}
    everybody = {**kits, "north": clinic.kit}
    for site, kit in everybody.items():
        peers = {
            s: seen_peer(s, k.client_certificate.read_text())
            for s, k in everybody.items()
            if s != site
        }
        write_peers(kit, peers)
        for name, peer in peers.items():
            confirm(kit, name, peer.sha256)
    return kits


class Other:
    """A site that trains nothing: its update is zero."""

    def __init__(self, hospital: Hospital, kit: Kit, site: str, folder: Path) -> None:
        self.site, self.hospital = site, hospital
        self.keyring = keyring_of(kit, site, folder / site, Policy())

    def say(self, kind: str, order: Order, incoming: bytes, *reply: Any) -> Any:
        phase = self.hospital.plan.phases[0] if order.phase else None
        asked = Asked(kind, self.site, order.run, self.hospital.plan, order, phase)
        return secured(asked, incoming, *reply, self.keyring)

    def describe(self, order: Order) -> Any:
        count = (1,) * len(ORGANS)
        told = Description(self.site, fingerprint(), "s", (1, 1, 1), count, (5.0,) * len(ORGANS),
                           (9.0,) * len(ORGANS), {}, {}, count, count)  # fmt: skip
        return self.say("query", order, b"", *told.to_records(), {})

    def train(self, order: Order, incoming: bytes) -> Any:
        sums = {o: OrganSum(1, 1, 0.5, 1.0, 1.0) for o in ORGANS}
        result = Result(1, (1,) * len(ORGANS), (0.0,) * 5, 1, scores={"val": sums})
        header = Header(self.site, order.run, "p", order.round).to_config()
        return self.say(
            "train", order, incoming, header, result.to_metrics(ORGANS), unpacked(incoming)
        )


def words(metrics: Any) -> Any:
    return np.asarray(metrics["masked"], dtype=np.int64).view(np.uint64)


def test_nothing_is_told_where_no_other_site_was_confirmed(clinic: Hospital) -> None:
    said = clinic.ask("query")
    assert said.code == "E_SITE", clinic.log
    assert said.metrics["cases"] == 0
    assert "hello" not in said.config
    assert "hnfed join" in clinic.log


def test_a_plan_of_a_thousand_sites_makes_no_room_for_what_they_would_send(
    clinic: Hospital, others: dict[str, Kit], tmp_path: Path
) -> None:
    """What comes lies in this machine's memory before anything of it is looked at."""
    assert clinic.ask("query").code == "OK", clinic.log
    alone, usual = exit.plan_bytes(clinic.plan), clinic.wire.most_bytes
    shapes = travelling(clinic.plan, clinic.plan.phases[0]).shapes.values()
    assert usual > alone + 3 * 4 * sum(int(np.prod(s)) for s in shapes)
    many = replace(secure_phase(), sites=[*SITES, *(f"x{i}" for i in range(997))])
    plan = replace(clinic.plan, phases=[many])
    clinic.wire.config = clinic.settings(plan, "r-000002")
    clinic.ask("query", {"run": "r-000002", "fingerprint": fingerprint()})
    assert clinic.wire.pulled == 2
    assert clinic.wire.most_bytes <= exit.plan_bytes(plan)


def test_only_the_sum_over_all_sites_can_be_read(
    clinic: Hospital, others: dict[str, Kit], tmp_path: Path
) -> None:
    told = clinic.ask("query")
    assert told.code == "OK", clinic.log
    assert told.metrics["cases"] == [-1, -1, -1]
    assert not {"annotated", "voxels", "totals"} & set(told.metrics)
    hello = Hello.read(told.config["hello"])
    assert (hello.site, hello.train, hello.val, hello.test) == ("north", "11", "11", "11")
    certificate = x509.load_pem_x509_certificate(clinic.kit.client_certificate.read_bytes())
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    require_signed(told.config["hello"], key)

    rest = {s: Other(clinic, kit, s, tmp_path / "states") for s, kit in others.items()}
    query = Order("r-000001", "", 0, "", fingerprint=fingerprint())
    hellos = {s: o.describe(query)[0]["hello"] for s, o in rest.items()}
    peers = [{**hellos, "north": told.config["hello"]}[s] for s in SITES]

    tally = replace(query, task="tally", attempt="a0", peers=peers)
    mine = clinic.ask("query", tally.to_config())
    assert mine.code == "OK", clinic.log
    parts = [words(mine.metrics), *(words(o.describe(tally)[1]) for o in rest.values())]
    cases, rows = tallied(opened(parts, NUMBER_BITS))
    assert cases == [5.0, 3.0, 3.0]  # 3, 1, 1 here and 1, 1, 1 there
    assert rows["annotated"] == [5.0, 5.0]

    order = Order("r-000001", "p", 1, "train", fingerprint=fingerprint(), peers=peers,
                  attempt="a1", weights=[5.0, 5.0, 5.0])  # fmt: skip
    start = clinic.start()
    trained = clinic.ask("train", order.to_config(), arrays=start)
    assert trained.code == "OK", clinic.log
    assert set(trained.state) == {"masked"}
    replies = [o.train(order, start) for o in rest.values()]
    found = summed(clinic.plan.phases[0], "train", opened(
        [words(trained.metrics), *(words(m) for _, m, _ in replies)], NUMBER_BITS
    ))  # fmt: skip
    assert found.result.cases == 5
    assert found.result.annotated == (5, 5)
    assert found.result.scores["val"]["Brainstem"].n == 3
    vectors = [trained.state["masked"], *(unpacked(p)["masked"] for _, _, p in replies)]
    update = opened([v.numpy().view(np.uint32) for v in vectors], UPDATE_BITS)
    what = travelling(clinic.plan, clinic.plan.phases[0])
    size = flat(start_state(clinic.plan, clinic.plan.phases[0], None), what).size
    assert update.shape == (size,)
    assert 0 < np.abs(update).max() < 1
    assert found.square == pytest.approx(float(np.sum((update * 5 / 3) ** 2)), rel=1e-3)

    again = clinic.ask("train", order.to_config(), arrays=start)
    assert again.code == "E_MASK"
    assert again.parcel == b""
    assert "masks are used once" in clinic.log
    assert "masked" in summary(read_receipts(clinic.state))
    kept = list((clinic.house.guard / "sums").iterdir())
    assert (clinic.house.guard / "sums").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept if path.suffix == ".json")
    assert "key" in json.loads(next(p for p in kept if len(p.stem) == 32).read_text())


def test_the_next_round_needs_what_all_sites_signed(
    clinic: Hospital, others: dict[str, Kit], tmp_path: Path
) -> None:
    """Through the whole guard: nothing of other weights comes behind the walls."""
    rest = {s: Other(clinic, kit, s, tmp_path / "states") for s, kit in others.items()}
    query = Order("r-000001", "", 0, "", fingerprint=fingerprint())
    hellos = {s: o.describe(query)[0]["hello"] for s, o in rest.items()}
    hellos["north"] = clinic.ask("query").config["hello"]
    assert Hello.read(hellos["north"]).evidence
    order = Order("r-000001", "p", 1, "train", fingerprint=fingerprint(), attempt="a1",
                  peers=[hellos[s] for s in SITES], weights=[5.0, 5.0, 5.0])  # fmt: skip
    start = clinic.start()
    crafted = unpacked(start)
    crafted[min(crafted)].view(-1)[0] += 0.01
    said = clinic.ask("train", order.to_config(), arrays=packed(crafted))
    assert said.code == "E_WEIGHTS"
    assert "its start is not what the plan's seed gives" in clinic.said[-1]
    mine = clinic.ask("train", order.to_config(), arrays=start)
    assert mine.code == "OK", clinic.log
    told = {s: o.train(order, start) for s, o in rest.items()}
    told["north"] = (mine.config, mine.metrics, mine.parcel)
    phase, places = clinic.plan.phases[0], counted(len(ORGANS))
    evidence = Evidence(
        np.stack([unpacked(told[s][2])["masked"].numpy().view(np.uint32) for s in SITES]),
        np.stack([words(told[s][1])[places] for s in SITES]),
        tuple(bytes.fromhex(told[s][0]["signed"]) for s in SITES),
    )
    numbers = opened(list(evidence.counts), NUMBER_BITS)
    what = travelling(clinic.plan, phase)
    segments = weight_segments(clinic.plan, phase, {s: Hello.read(h) for s, h in hellos.items()},
                               what)  # fmt: skip
    found = Opened(opened(list(evidence.words), UPDATE_BITS), order.weights, [5, 5, 5])
    after, _ = following(1, unpacked(start), what, segments, found)
    guards = clinic.plan.federation.guards
    then = replace(order, round=2, attempt="a2",
                   longest=longest(numbers[-1], 3, guards.norm_factor))  # fmt: skip
    assert clinic.ask("train", then.to_config(), arrays=packed(after)).code == "E_WEIGHTS"
    parcel = evidence.to_parcel()
    other = {n: t + 1e-6 for n, t in after.items()}
    said = clinic.ask("train", then.to_config(), arrays=packed(other), evidence=parcel)
    assert said.code == "E_WEIGHTS"
    assert said.parcel == b""
    assert "not what the sites' signed parts add up to" in clinic.said[-1]
    said = clinic.ask("train", then.to_config(), arrays=packed(after), evidence=parcel)
    assert said.code == "OK", clinic.log


def test_a_policy_that_requires_sums_refuses_a_plan_without(clinic: Hospital) -> None:
    plain = replace(
        clinic.plan, federation=replace(clinic.plan.federation, secure_aggregation=False)
    )
    clinic.wire.config = clinic.settings(plain)
    clinic.policy("secure_aggregation: required", "min_cell: 1", "models: any")
    said = clinic.ask("query")
    assert said.code == "E_POLICY"
    assert "federation.secure_aggregation=true" in clinic.log
