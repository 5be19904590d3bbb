"""Grids that no CT has are refused, with what is wrong with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.archives.possible_grid import require_possible
from core.data.geometry import Geometry
from core.errors import CaseError

SOUND = Geometry((100, 512, 512), (3.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spacing_mm": (0.04, 1.0, 1.0)}, "spacing"),
        ({"spacing_mm": (3.0, 1.0, 21.0)}, "spacing"),
        ({"spacing_mm": (float("nan"), 1.0, 1.0)}, "spacing"),
        ({"direction": (1, 0, 0, 0, 1, 0, 0, 1, 1)}, "no rotation"),
        ({"direction": (2, 0, 0, 0, 1, 0, 0, 0, 1)}, "no rotation"),
        ({"size": (1001, 512, 512)}, "size"),
        ({"origin_mm": (0.0, 2e6, 0.0)}, "origin"),
        ({"origin_mm": (0.0, 0.0, float("inf"))}, "origin"),
    ],
)
def test_what_no_ct_has(change: dict[str, Any], words: str) -> None:
    require_possible(SOUND, "ct")
    with pytest.raises(CaseError, match=words) as caught:
        require_possible(replace(SOUND, **change), "ct")
    assert caught.value.code == "E_IMAGE_GEOMETRY"
    assert caught.value.remedy
