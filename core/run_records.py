"""Values of a run's JSON, which may come from anywhere: numbers, mappings, and how deep they go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LARGEST = 1e18  # beyond it a number of a foreign folder counts as none
DEEPEST = 40


def require_shallow(value: Any, deepest: int = DEEPEST) -> None:
    """Requires that a value of JSON can be walked through.

    Raises:
        ValueError: it is nested deeper.
    """
    level = [value]
    for _ in range(deepest + 1):
        inner = [item for item in level if isinstance(item, dict | list | tuple)]
        if not inner:
            return
        level = [p for item in inner for p in (item.values() if isinstance(item, dict) else item)]
    if level:
        raise ValueError("too deep")


def number(value: object) -> float | None:
    """The value as a float; None for anything but a number of a size that a run can have."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None


def mapping(value: object) -> Mapping[str, Any]:
    """The value, or an empty mapping where it is none."""
    return value if isinstance(value, Mapping) else {}
