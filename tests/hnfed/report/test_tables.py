"""What trained and travelled; old organs before and after."""

from __future__ import annotations

import pytest

from hnfed.report.tables import before_and_after, parts


def test_the_course_of_trained_parameters_tells_the_changes_only() -> None:
    start = {"parameters": 10, "trainable": 10, "frozen": 0, "shared": 4, "base_bytes": 8}
    rounds = [{"round": 1, "trainable": 3}, {"round": 2}, {"round": 3, "trainable": 10}]
    found = parts(start, rounds)
    assert found["course"] == [(1, 3), (3, 10)]
    assert (found["parameters"], found["base_bytes"], found["personal"]) == (10, 8, None)
    assert parts(start, rounds[:1])["course"] == []
    assert parts({}, rounds) == {}


def test_old_organs_before_and_after_on_the_same_site() -> None:
    def sites(site: str, **dice: float | None) -> dict[str, object]:
        cells = {o: {"n": 5, "dice": d, **({"suppressed": True} if d is None else {})}
                 for o, d in dice.items()}  # fmt: skip
        return {site: {"test": cells, "val": {}}}

    earlier = {"organs": ["X", "Y", "W"], "sites": sites("a", X=0.8, Y=0.6, W=0.1)}
    later = {"organs": ["X", "Y", "New"], "sites": sites("a", X=0.79, Y=0.65, New=0.5)}
    (found,) = before_and_after(later, earlier)
    assert found["site"] == "a"
    assert [r["organ"] for r in found["rows"]] == ["X", "Y", "Mean"]
    assert [r["test"]["change"] for r in found["rows"]] == pytest.approx([-0.01, 0.05, 0.02])
    assert not found["rows"][0]["val"]["shown"]

    hidden = before_and_after(later | {"sites": sites("a", X=None, Y=0.65)}, earlier)[0]["rows"]
    assert hidden[0]["test"]["withheld"]
    assert hidden[0]["test"]["change"] is None
    assert hidden[-1]["test"]["change"] == pytest.approx(0.05)  # of Y alone
    assert not hidden[-1]["test"]["withheld"]
    hidden = before_and_after(later | {"sites": sites("a", X=None, Y=None)}, earlier)[0]["rows"]
    assert hidden[-1]["test"]["withheld"]

    assert before_and_after({"organs": ["New"], "sites": sites("a", New=0.5)}, earlier) == []
    assert before_and_after(later, {}) == []
    assert before_and_after(later | {"sites": sites("b", X=0.1)}, earlier) == []
