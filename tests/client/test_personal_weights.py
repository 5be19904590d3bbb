from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.personal_weights import Kept, Personal, Stamp, cached_base, keep_base, mean_dice
from core.errors import UserError
from core.metrics.scores import OrganSum
from core.wire.partition import state_hash

STAMP = Stamp("r-000001", "a" * 64, "p", "none")


def kept(value: float, best_round: int, best_score: float = 0.5) -> Kept:
    state = {"head.weight": torch.full((2,), value)}
    return Kept(state, {"0.exp_avg": torch.full((3,), -value)}, best_round, best_score)


@pytest.fixture
def personal(tmp_path: Path) -> Personal:
    return Personal(tmp_path / "p", STAMP)


def test_a_round_comes_back_with_its_optimiser(personal: Personal) -> None:
    personal.keep(4, kept(2.5, 3, 0.75))
    found = personal.load(4)
    assert torch.equal(found.state["head.weight"], torch.full((2,), 2.5))
    assert set(found.state) == {"head.weight"}
    assert set(found.optimiser) == {"0.exp_avg"}
    assert torch.equal(found.optimiser["0.exp_avg"], torch.full((3,), -2.5))
    assert (found.best_round, found.best_score) == (3, 0.75)


def test_best_and_the_last_two_are_kept(personal: Personal) -> None:
    for round_, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        personal.keep(round_, kept(round_, best))
    assert personal.store.rounds() == [2, 4, 5]


def test_a_round_that_is_gone_is_named(personal: Personal) -> None:
    personal.keep(1, kept(1, 1))
    with pytest.raises(UserError) as caught:
        personal.load(2)
    assert (caught.value.field, caught.value.value) == ("base_round", 2)


def test_the_best_is_a_whole_model(personal: Personal) -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(1)}
    meta = {"organs": ["Larynx"], "round": 3}
    personal.export_best(state, meta)
    assert {k: v.tolist() for k, v in personal.best().items()} == {"a": [1.0, 1.0], "b": [0.0]}
    assert (personal.folder / "best.json").is_file()


@pytest.mark.parametrize(
    "change", [{"share": "all"}, {"plan": "b" * 64}, {"run": "other"}, {"phase": "q"}]
)
def test_weights_that_stay_are_opened_for_nothing_else(
    personal: Personal, change: dict[str, str]
) -> None:
    """A second plan of the same run and phase name, `share: all`, would send them."""
    personal.keep(1, kept(1, 1))
    personal.export_best({"a": torch.ones(2)}, {"organs": ["Larynx"]})
    other = Personal(personal.folder, replace(STAMP, **change))
    with pytest.raises(UserError, match="another run, plan or share") as caught:
        other.load(1)
    assert caught.value.field == "base_round"
    with pytest.raises(UserError, match="another run, plan or share"):
        other.best()
    assert personal.load(1).best_round == 1


def test_weights_without_a_stamp_are_not_opened(personal: Personal) -> None:
    personal.store.put(1, {"a": torch.ones(2)}, {"round": 1, "best_round": 1, "best_score": 0.5})
    with pytest.raises(UserError, match="another run, plan or share"):
        personal.load(1)


BASE: dict[str, Tensor] = {"w": torch.arange(6.0), "b": torch.ones(1)}


def test_a_base_is_found_by_its_hash(tmp_path: Path) -> None:
    digest = state_hash(BASE)
    assert cached_base(tmp_path, digest) is None
    assert keep_base(tmp_path, digest, BASE)
    found = cached_base(tmp_path, digest)
    assert found is not None
    assert state_hash(found) == digest
    assert cached_base(tmp_path, "0" * 64) is None


def test_a_base_under_a_wrong_hash_is_not_stored(tmp_path: Path) -> None:
    assert not keep_base(tmp_path / "base", "0" * 64, BASE)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_base_is_as_good_as_none(tmp_path: Path, suffix: str, damage: str) -> None:
    digest = state_hash(BASE)
    keep_base(tmp_path, digest, BASE)
    path = tmp_path / f"{digest}{suffix}"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(data) // 2
        changed = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
        path.write_bytes({"flip": changed, "cut": data[:middle], "empty": b""}[damage])
    assert cached_base(tmp_path, digest) is None


def test_another_base_under_this_name_is_noticed(tmp_path: Path) -> None:
    from core.wire.checkpoint import save

    digest = state_hash(BASE)
    save(tmp_path, digest, {"w": torch.zeros(6)}, {"kind": "base"})
    assert cached_base(tmp_path, digest) is None


def test_the_mean_is_over_organs_that_have_cases() -> None:
    sums = {"X": OrganSum(2, 2, 1.0, 0.0, 0.0), "Y": OrganSum(4, 4, 1.0, 0.0, 0.0), "Z": OrganSum()}
    assert mean_dice(sums, ["X", "Y", "Z"]) == pytest.approx((0.5 + 0.25) / 2)
    assert mean_dice(sums, ["Y"]) == 0.25
    assert mean_dice(sums, ["Z"]) == -1.0
    assert mean_dice({}, ["X"]) == -1.0


def test_bases_that_were_not_used_for_longest_go_first(tmp_path: Path) -> None:
    made = [{"conv.weight": torch.full((1000,), float(i))} for i in range(4)]
    hashes = [state_hash(base) for base in made]
    room = 3 * 5000
    for i, (digest, base) in enumerate(zip(hashes[:3], made, strict=False)):
        assert keep_base(tmp_path, digest, base, room)
        for path in tmp_path.glob(f"{digest}.*"):
            os.utime(path, (i, i))
    assert cached_base(tmp_path, hashes[0]) is not None, "used again: now the newest"
    assert keep_base(tmp_path, hashes[3], made[3], room)
    left = [cached_base(tmp_path, digest) is not None for digest in hashes]
    assert left == [True, False, True, True]
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= room


def test_a_base_that_alone_is_too_large_is_refused(tmp_path: Path) -> None:
    base = {"conv.weight": torch.zeros(1000)}
    with pytest.raises(UserError, match="base_gb"):
        keep_base(tmp_path, state_hash(base), base, 100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("digest", ["../secret", "/etc/passwd", "", "0" * 63])
def test_no_base_is_looked_for_by_a_name_that_is_no_hash(tmp_path: Path, digest: str) -> None:
    with pytest.raises(UserError):
        cached_base(tmp_path, digest)
    with pytest.raises(UserError):
        keep_base(tmp_path, digest, BASE)
