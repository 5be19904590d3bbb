from __future__ import annotations

import pytest

from core.organs.vocabulary import BUILT_IN
from core.plan.validate import PUBLISHED
from hnfed.report.paper_tables import TABLES


@pytest.mark.parametrize("name", TABLES)
def test_each_column_has_a_value_for_each_organ(name: str) -> None:
    table = TABLES[name]
    assert set(table.organs) <= set(BUILT_IN)
    assert set(table.printed) == set(table.columns)
    assert {len(v) for v in table.columns.values()} == {len(table.organs)}
    limit = 100 if table.score == "dice" else 40
    assert all(0 < v < limit for values in table.columns.values() for v in values)


def test_the_averages_that_were_printed_wrongly_are_the_known_ones() -> None:
    found = {
        (name, column): (printed, round(mean, 2))
        for name, table in TABLES.items()
        for column, (printed, mean) in table.differing().items()
    }
    assert found == {
        ("table1", "UNETR, pretrained"): (61.3, 61.24),
        ("table2", "UNETR, transfer"): (4.14, 4.19),
        ("table4", "first half frozen"): (3.76, 3.52),
        ("table8", "Res3DUnet, first half frozen"): (3.76, 3.52),
    }


def test_they_are_those_that_a_plan_may_name() -> None:
    assert tuple(TABLES) == PUBLISHED


def test_tables_come_in_pairs_of_dice_and_distance() -> None:
    scores = [TABLES[f"table{i}"].score for i in range(1, 9)]
    assert scores == ["dice", "hd95_mm"] * 4
    organs = [TABLES[f"table{i}"].organs for i in range(1, 9)]
    assert [len(names) for names in organs] == [9, 9, 3, 3, 9, 9, 3, 3]
    assert all(a == b for a, b in zip(organs[:4], organs[4:], strict=True))
