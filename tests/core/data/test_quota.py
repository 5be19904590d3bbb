"""A cache says what it holds and refuses; a store of what can be sent again is pruned."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from core.data.quota import bytes_below, preparations, prune, require_room
from core.errors import UserError
from core.plan.schema import Preprocess

SMALL = Preprocess(crop=[10, 10, 10])  # 6000 bytes an entry


def cache_of(root: Path, size: int) -> None:
    for name in ("entries/a", "index"):
        (root / name).mkdir(parents=True)
    (root / "entries" / "a" / "image.npy").write_bytes(bytes(size))
    made = {"spacing_mm": [3.0, 1.5, 1.25], "crop": [96, 128, 224], "organs": ["Larynx"]}
    made |= {"cases": {"train": 5, "val": 1, "test": 1}}
    (root / "index" / "k.json").write_text(json.dumps({"made_of": made}))
    (root / "index" / "l.json").write_text("{")


def test_a_full_cache_is_refused_with_what_it_holds_and_stays_whole(tmp_path: Path) -> None:
    cache_of(tmp_path, 5_000)
    require_room(tmp_path, SMALL, 11_000)
    with pytest.raises(UserError, match="cache_gb") as caught:
        require_room(tmp_path, SMALL, 10_999)
    assert "7 cases, 1 organs, crop [96, 128, 224]" in str(caught.value)
    assert "l.json, which cannot be read" in str(caught.value)
    assert bytes_below(tmp_path / "entries") == 5_000


def test_an_empty_cache_has_room_for_what_fits(tmp_path: Path) -> None:
    require_room(tmp_path / "none", SMALL, 6_000)
    with pytest.raises(UserError, match="no whole preparation"):
        require_room(tmp_path / "none", SMALL, 5_999)
    assert preparations(tmp_path / "none") == []


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    for i, stem in enumerate("abcd"):
        for suffix in (".json", ".safetensors"):
            path = tmp_path / f"{stem}{suffix}"
            path.write_bytes(bytes(10))
            os.utime(path, (i, i))
    assert prune(tmp_path, "*.*", 45, frozenset("a")) == ["b", "c"]
    assert {p.stem for p in tmp_path.iterdir()} == {"a", "d"}
    assert prune(tmp_path, "*.*", 45, frozenset()) == []
