"""Secure aggregation: what it costs a site in a round, in seconds and bytes, and the mean's error.

Beside it what `weights: agreed` costs: the next weights computed at the site, and the parts of all
sites that an order brings for it.

python -m benchmarks.secure_sum [--sites N] [--json FILE]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import AtMost, report, row, seconds
from core.metrics.scores import OrganSum
from core.plan.schema import Federation, Model, Phase, Plan
from core.secure.hello import Hello
from core.secure.layout import (
    HELLO,
    SIGNED,
    SUMMED,
    Opened,
    counted,
    following,
    longest,
    travelling,
    weight_segments,
)
from core.secure.masked_sum import NUMBER_BITS, UPDATE_BITS, Evidence, opened
from core.wire.messages import Description, Header, Order, Result
from core.wire.partition import fingerprint, network, parts_of, start_state
from core.wire.state import packed, unpacked
from hnfed.guard.masking import secured
from hnfed.guard.masking_session import Keyring
from hnfed.guard.order import Asked
from hnfed.guard.simulated_keys import simulated_keyring
from hnfed.guard.weights import require_weights
from hnfed.guard.weights_record import Record, record_of
from server.secure_round import Masked, Secure, averaged

ORGANS = ["Brainstem", "Bone_Mandible", "Parotid_L", "Parotid_R", "OpticChiasm", "OpticNrv_L",
          "OpticNrv_R", "Glnd_Submand_L", "Glnd_Submand_R"]  # fmt: skip
LONGEST_S, LONGEST_DERIVED_S, MOST_BYTES = 0.3, 1.0, 2.0  # targets, a site and round
NETWORKS = ("res3dunet", "unetr")


def plan_of(sites: int, name: str) -> Plan:
    """A plan of one shared phase with the shipped network and nine organs."""
    names = [f"s{i}" for i in range(sites)]
    return Plan(
        model=Model(name=name),
        phases=[Phase(name="p", sites=names, organs=ORGANS, rounds=1000)],
        federation=Federation(secure_aggregation=True),
    )


def introduced(plan: Plan, keyring: Keyring, cases: int) -> str:
    """What a site says of itself; it annotates everything."""
    told = Description(
        site=keyring.site,
        fingerprint=fingerprint(),
        split_hash="s",
        cases=(cases, 11, 11),
        annotated=(cases,) * len(ORGANS),
        voxels=(),
        totals=(),
        left_out={},
        versions={},
        annotated_val=(11,) * len(ORGANS),
        annotated_test=(11,) * len(ORGANS),
    )
    asked = Asked("query", keyring.site, "r", plan, Order("r", "", 0, ""), None)
    return str(secured(asked, b"", *told.to_records(), {}, keyring)[0][HELLO])


def rows(name: str, sites: int, folder: Path, repeats: int = 3) -> list[dict[str, Any]]:
    """Measures one site's masking of a round's reply, and the mean over all sites."""
    plan = plan_of(sites, name)
    phase = plan.phases[0]
    before = start_state(plan, phase, None)
    shared = parts_of(network(plan, phase), plan, phase).shared
    before = {n: before[n] for n in shared}
    keyrings = {
        s: replace(simulated_keyring(folder, s, plan.site_names), agreed=True)
        for s in plan.site_names
    }
    cases = {s: 20 + 7 * i for i, s in enumerate(plan.site_names)}
    peers = [introduced(plan, keyrings[s], cases[s]) for s in plan.site_names]
    total = float(sum(cases.values()))
    parcel = packed(before)
    order = Order(
        run="r", phase="p", round=1, task="train", fingerprint=fingerprint(), peers=peers,
        weights=[total] * (1 + len(ORGANS)),
    )  # fmt: skip
    torch.manual_seed(0)
    after = {
        s: {n: t + 0.01 * torch.randn_like(t) for n, t in before.items()} for s in plan.site_names
    }
    tries = iter(range(10**6))

    def mask(site: str, attempt: str) -> tuple[Mapping[str, Any], bytes, str]:
        cell = OrganSum(11, 11, 8.0, 40.0, 40.0)
        result = Result(cases[site], (cases[site],) * len(ORGANS), (1.0,) * 5, 100,
                        scores={"val": dict.fromkeys(ORGANS, cell)})  # fmt: skip
        asked = Asked("train", site, "r", plan, replace(order, attempt=attempt), phase)
        header = Header(site, "r", "p", 1).to_config()
        told, numbers, weights = secured(
            asked, parcel, header, result.to_metrics(ORGANS), after[site], keyrings[site]
        )
        return numbers, weights, str(told[SIGNED])

    variants = {"ours": lambda: mask("s0", f"t{next(tries)}"), "plain": lambda: packed(after["s0"])}
    wall, cpu = seconds(variants, repeats), seconds(variants, repeats, cpu=True)
    sent = {s: mask(s, "all") for s in plan.site_names}
    most = max(len(w) + 8 * len(n[SUMMED]) for n, w, _ in sent.values())
    off = _error(plan, before, after, cases, sent, peers)
    size = sum(t.numel() for t in before.values()) / 1e6
    about = f"secure sum {name}, {size:.1f} M numbers, {sites} sites"
    told, bound = sum(map(len, peers)), cpu["ours"] / LONGEST_S
    ratio, error = most / len(parcel), off / 1e-6
    return [
        row(f"{about} cpu", cpu["ours"], "s", "0.3 s", bound, AtMost(1.0)),
        row(f"{about} wall", wall["ours"], "s", "0.3 s", wall["ours"] / LONGEST_S),
        row(f"{about} plain parcel cpu", cpu["plain"], "s"),
        row(f"{about} bytes", most, "B", "fp32 weights", ratio, AtMost(MOST_BYTES)),
        row(f"{about} order", told, "B", "fp32 weights", told / len(parcel)),
        *_derived(plan, asked_of(plan, order), sent, parcel, (keyrings["s0"], folder, about)),
        row(f"{about} error", off, "", "mean in float64", error, AtMost(1.0)),
    ]


def asked_of(plan: Plan, order: Order) -> Asked:
    """The order whose masked replies are added up."""
    return Asked("train", "s0", "r", plan, replace(order, attempt="all"), plan.phases[0])


def _derived(
    plan: Plan,
    asked: Asked,
    sent: Mapping[str, tuple[Mapping[str, Any], bytes, str]],
    parcel: bytes,
    where: tuple[Keyring, Path, str],
) -> list[dict[str, Any]]:
    """What it costs a site to compute the next weights itself, and an order to carry the parts."""
    keyring, folder, about = where
    phase, (body, order) = plan.phases[0], (unpacked(parcel), asked.order)
    record = record_of(folder / "record", "r", print)
    assert require_weights(asked, {"arrays": parcel}, keyring, record)
    numbers = np.stack(
        [np.asarray(n[SUMMED], np.int64).view(np.uint64) for n, _, _ in sent.values()]
    )
    words = np.stack([unpacked(w)[SUMMED].numpy().view(np.uint32) for _, w, _ in sent.values()])
    told = Evidence(
        words,
        numbers[:, counted(len(ORGANS))],
        tuple(bytes.fromhex(signed) for _, _, signed in sent.values()),
    )
    hellos = {h.site: h for h in map(Hello.read, order.peers)}
    what = travelling(plan, phase)
    counts = opened(list(told.counts), NUMBER_BITS)
    found = Opened(opened(list(words), UPDATE_BITS), order.weights, [round(c) for c in counts[:-1]])
    new, _ = following(1, body, what, weight_segments(plan, phase, hellos, what), found)
    evidence, after = told.to_parcel(), packed(new)
    bound = longest(counts[-1], len(hellos), plan.federation.guards.norm_factor)
    then = replace(asked, order=replace(order, round=2, attempt="then", longest=bound))
    tries = iter(range(10**6))

    def derive(records: Mapping[str, bytes]) -> None:
        fresh = folder / f"record{next(tries)}"
        shutil.copytree(record.folder, fresh)
        assert require_weights(then, records, keyring, replace_folder(record, fresh))

    def copy() -> None:
        shutil.copytree(record.folder, folder / f"record{next(tries)}")

    variants = {"ours": lambda: derive({"arrays": after, "evidence": evidence}), "copy": copy}
    cpu = seconds(variants, 3, cpu=True)
    spent = max(cpu["ours"] - cpu["copy"], 0.0)
    return [
        row(f"{about} derived cpu", spent, "s", "1 s", spent / LONGEST_DERIVED_S),
        row(f"{about} evidence", len(evidence), "B", "fp32 weights", len(evidence) / len(parcel)),
    ]


def replace_folder(record: Record, folder: Path) -> Record:
    """The record as it stands, which grows in another folder."""
    return Record(folder, list(record.known), list(record.parts))


def _error(
    plan: Plan,
    before: Mapping[str, Tensor],
    after: Mapping[str, Mapping[str, Tensor]],
    cases: Mapping[str, int],
    sent: Mapping[str, tuple[Mapping[str, Any], bytes, str]],
    peers: list[str],
) -> float:
    """Largest difference between the opened mean and the mean in double precision."""
    hellos = {h.site: h for h in map(Hello.read, peers)}
    total = sum(cases.values())
    tally = [float(total)] * len(ORGANS)
    zeros = dict.fromkeys(("voxels", "totals"), [0.0] * len(ORGANS))
    secure = Secure(plan, tuple(peers), hellos, (total, 0, 0), {"annotated": tally, **zeros})
    phase, organs = plan.phases[0], len(ORGANS)
    replies = [
        Masked(
            Header(s, "r", "p", 1),
            unpacked(weights)[SUMMED].numpy().view("uint32"),
            torch.zeros(0).numpy().view("uint32"),
        )
        for s, (_, weights, _) in sent.items()
    ]
    result = Result(cases=total, annotated=(total,) * organs)
    new, _ = averaged(secure, phase, travelling(plan, phase), before, replies, result)
    exact = {n: sum(after[s][n].double() * (cases[s] / total) for s in cases) for n in before}
    return max(float((new[n].double() - exact[n]).abs().max()) for n in before)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--networks", nargs="+", default=["res3dunet"], choices=NETWORKS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    torch.set_num_threads(1)
    for name in options.networks:
        for sites in options.sites:
            with tempfile.TemporaryDirectory() as folder:
                found += rows(name, sites, Path(folder), options.repeats)
    report(found, options.json)


if __name__ == "__main__":
    main()
