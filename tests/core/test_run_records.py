"""Values of a foreign run's JSON."""

from __future__ import annotations

from typing import Any

import pytest

from core.run_records import mapping, number, require_shallow


def test_a_number_of_no_usual_size_counts_as_none() -> None:
    assert number(3) == 3.0
    assert [number(v) for v in (1e308, -1e19, 10**400, float("nan"), True, "3")] == [None] * 6


def test_what_is_no_mapping_is_an_empty_one() -> None:
    assert mapping({"a": 1}) == {"a": 1}
    assert [mapping(value) for value in (None, [1], "a")] == [{}] * 3


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: (1, v)])
def test_what_is_nested_too_deep(wrap: Any) -> None:
    value: Any = 1
    for _ in range(3):
        value = wrap(value)
    require_shallow(value, 3)
    with pytest.raises(ValueError, match="too deep"):
        require_shallow(value, 2)
    require_shallow([[{"a": [1]}], [], {}])
