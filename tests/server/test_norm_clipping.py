from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import UserError
from core.plan.schema import Guards
from server.norm_clipping import limit


class One:
    """As much of an accepted reply as `limit` reads."""

    def __init__(self, value: float) -> None:
        self.state = {"w": torch.full((4,), value)}


BEFORE = {"w": torch.zeros(4)}


def test_reject_names_the_site_and_keeps_the_others(tmp_path: Path) -> None:
    good: Any = {"a": One(1.0), "b": One(-1.2), "c": One(100.0)}
    kept, factors, odd = limit(good, BEFORE, Guards(norm="reject"), tmp_path)
    assert (set(kept), factors, odd) == ({"a", "b"}, {}, ["c"])


@pytest.mark.parametrize("values", [(1.0, 100.0), (0.0, 0.0, 0.0), (1.0, 2.0, 4.9)])
def test_what_is_let_be(tmp_path: Path, values: tuple[float, ...]) -> None:
    good: Any = {str(i): One(v) for i, v in enumerate(values)}
    for how in ("clip", "reject"):
        kept, factors, odd = limit(good, BEFORE, Guards(norm=how), tmp_path)
        assert kept == good
        assert (factors, odd) == ({}, [])


def test_off_lets_all_through(tmp_path: Path) -> None:
    good: Any = {"a": One(1.0), "b": One(1.0), "c": One(1e9)}
    assert limit(good, BEFORE, Guards(norm="off"), tmp_path) == (good, {}, [])


def test_plans_with_other_words_are_refused() -> None:
    from core.plan.load import load

    with pytest.raises(UserError, match=r"guards\.norm"):
        load("smoke", ["federation.guards.norm=cut"])
    with pytest.raises(UserError, match="norm_factor"):
        load("smoke", ["federation.guards.norm_factor=0.5"])
