"""What runs leave on a site's disk has a limit, and what would outgrow it is not trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from client.personal_weights import Kept, Personal, Stamp
from core.data.quota import GB, bytes_below
from core.wire.messages import Order
from core.wire.partition import network
from core.wire.round_checkpoints import RoundStore
from hnfed.guard.order import Asked
from hnfed.guard.rules import Policy, PolicyError
from hnfed.guard.runs_room import NUMBER_BYTES, require_room
from tests.client.conftest import tiny_phase, tiny_plan
from tests.hnfed.guard.conftest import LENIENT, ORGANS, Hospital


def asked(run: str = "r-2", **changes: Any) -> Asked:
    plan = tiny_plan(tiny_phase(organs=list(ORGANS), **changes))
    phase = plan.phases[0]
    return Asked("train", "north", run, plan, Order(run, phase.name, 1, "train"), phase)


def test_a_phase_whose_weights_stay_must_fit_beside_the_runs_before_it(tmp_path: Path) -> None:
    own, shared = asked(share="none"), asked(share="all")
    need = NUMBER_BYTES * sum(p.numel() for p in network(own.plan, own.plan.phases[0]).parameters())
    room = Policy(runs_gb=(need + 1000) / GB)
    require_room(tmp_path, room, own)
    before = tmp_path / "r-1" / "p" / "rounds" / "0001.safetensors"
    before.parent.mkdir(parents=True)
    before.write_bytes(b"0" * 2000)
    with pytest.raises(PolicyError, match=r"runs_gb: .*delete folders of runs that are over"):
        require_room(tmp_path, room, own)
    require_room(tmp_path, room, shared)
    with pytest.raises(PolicyError, match="runs_gb"):
        require_room(tmp_path, replace(room, runs_gb=1000 / GB), shared)
    scored = replace(own, kind="evaluate")  # leaves cases and pictures, but no weights
    require_room(tmp_path, replace(room, runs_gb=3000 / GB), scored)
    query = replace(own, kind="query", phase=None)
    for other in (scored, query):
        with pytest.raises(PolicyError, match="runs_gb"):
            require_room(tmp_path, replace(room, runs_gb=1000 / GB), other)
    before.rename(tmp_path / "r-1.safetensors")  # no run's
    require_room(tmp_path, room, own)


def test_what_the_phase_itself_keeps_is_not_counted_twice(tmp_path: Path) -> None:
    own = asked(share="none")
    need = NUMBER_BYTES * sum(p.numel() for p in network(own.plan, own.plan.phases[0]).parameters())
    for folder in ("r-2/p", "base", "guard"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x").write_bytes(b"0" * 5000)
    require_room(tmp_path, Policy(runs_gb=(need + 1000) / GB), own)


def test_what_lies_in_the_phase_beyond_its_need_counts(tmp_path: Path) -> None:
    own = asked(share="none")
    need = NUMBER_BYTES * sum(p.numel() for p in network(own.plan, own.plan.phases[0]).parameters())
    (tmp_path / "r-2" / "p" / "overlays").mkdir(parents=True)
    (tmp_path / "r-2" / "p" / "overlays" / "x.png").write_bytes(b"0" * (need + 2000))
    with pytest.raises(PolicyError, match="runs_gb"):
        require_room(tmp_path, Policy(runs_gb=(need + 1000) / GB), own)


def test_a_phase_keeps_no_more_than_it_is_taken_to_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All moments and an average, two rounds that the server counts on, the best, and the last.

    A sixth lies there until the oldest goes.
    """
    most, prune = [0], RoundStore.prune

    def measured(self: RoundStore, keep: Any) -> None:
        most.append(bytes_below(tmp_path))
        prune(self, keep)

    monkeypatch.setattr(RoundStore, "prune", measured)
    store = Personal(tmp_path, Stamp("r-2", "a" * 64, "p", "none"))
    state = {"w": torch.zeros(100_000)}
    moments = {"a": torch.zeros(100_000), "b": torch.zeros(100_000)}
    for round_ in range(1, 8):
        store.keep(
            round_,
            Kept(state, moments, min(round_, 3), 0.5, average={"w": torch.ones(100_000)}),
            {1, 2},
        )
        store.export_best(state, {"round": 3})
    assert len(store.store.rounds()) == 5
    assert 0.9 < bytes_below(tmp_path) / (100_000 * 4 * 21) < 1.0 + 1e-2
    assert 0.99 < max(most) / (NUMBER_BYTES * 100_000) < 1.0 + 1e-2


def test_the_guard_refuses_before_anything_is_trained(
    tmp_path: Path, patients: Path, own_bundle: bytes
) -> None:
    plan = tiny_plan(tiny_phase(organs=list(ORGANS), rounds=1))
    hospital = Hospital(tmp_path, patients, own_bundle, plan)
    hospital.policy(*LENIENT, "runs_gb: 0.01")
    query = {k: hospital.order()[k] for k in ("run", "fingerprint")}
    assert hospital.ask("query", query).code == "OK", hospital.log
    full = hospital.state / "r-0" / "own.safetensors"
    full.parent.mkdir(parents=True)
    with full.open("wb") as file:
        file.truncate(11_000_000)
    for kind, task in (("train", "train"), ("evaluate", "validate"), ("evaluate", "test")):
        told = hospital.ask(kind, hospital.order(task=task), arrays=hospital.start())
        assert (told.code, told.parcel) == ("E_POLICY", b"")
        assert "runs_gb" in hospital.log
        (hospital.state / "client.log").unlink()
    hospital.wire.config = hospital.settings(plan, "r-000002")
    assert hospital.ask("query", query | {"run": "r-000002"}).code == "E_POLICY"
    assert not (hospital.state / "r-000002").exists()
