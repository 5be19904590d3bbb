from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.errors import UserError
from core.wire.round_checkpoints import RoundStore


def state(value: float) -> dict[str, Tensor]:
    return {"w": torch.full((2, 3), value), "b": torch.tensor([value])}


@pytest.fixture
def store(tmp_path: Path) -> RoundStore:
    return RoundStore(tmp_path / "private" / "p")


def test_what_is_put_comes_back(store: RoundStore) -> None:
    store.put(3, state(1.5), {"round": 3, "progress": {"best": [1]}})
    found, meta = store.get(3)
    assert all(torch.equal(found[k], v) for k, v in state(1.5).items())
    assert set(found) == {"w", "b"}
    assert meta["progress"] == {"best": [1]}


def test_rounds_ascend_by_number(store: RoundStore) -> None:
    assert store.rounds() == []
    for round_ in (10, 2, 0, 12345):
        store.put(round_, state(round_), {})
    assert store.rounds() == [0, 2, 10, 12345]


def test_prune_keeps_what_is_named(store: RoundStore) -> None:
    for round_ in range(5):
        store.put(round_, state(round_), {})
    store.prune([1, 4, 9])
    assert store.rounds() == [1, 4]
    assert sorted(p.name for p in store.folder.iterdir()) == [
        "round-00001.json",
        "round-00001.safetensors",
        "round-00004.json",
        "round-00004.safetensors",
    ]


def test_weights_without_their_json_are_not_a_round(store: RoundStore) -> None:
    store.put(1, state(1), {})
    store.put(2, state(2), {})
    (store.folder / "round-00002.json").unlink()
    assert store.rounds() == [1]


def test_damage_is_noticed(store: RoundStore) -> None:
    store.put(1, state(1), {})
    path = store.folder / "round-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError):
        store.get(1)
    with pytest.raises(UserError):
        store.get(2)


def test_the_folder_is_private_and_can_be_cleared(store: RoundStore) -> None:
    store.put(1, state(1), {})
    assert store.folder.stat().st_mode & 0o077 == 0
    store.clear()
    assert store.rounds() == []
    assert not store.folder.exists()
    store.clear()
