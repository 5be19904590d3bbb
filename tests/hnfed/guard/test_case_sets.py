from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.data.cached_case import Entry
from core.data.geometry import Geometry
from core.plan.schema import Phase
from hnfed.guard.case_sets import FILE, remember_cases, require_apart_from_earlier
from hnfed.guard.policy import Policy, PolicyError

GRID = Geometry((8, 8, 8), (1.0, 1.0, 1.0))
WHOLE = Phase("p", ["nyu"], ["Brainstem"])
CUT = replace(WHOLE, max_cases=19)


def entries(*numbers: int) -> list[Entry]:
    return [
        Entry(
            case=f"case_{i}", split="train", folder=Path("none"), organs=("Brainstem",),
            annotated=frozenset({"Brainstem"}), source=GRID, crop=GRID, voxels={"Brainstem": 1},
            crop_voxels=512, overlap_voxels=0, image_sha256=f"{i:064x}",
        )
        for i in numbers
    ]  # fmt: skip


def leave(folder: Path, phase: Phase, split: str, *numbers: int) -> None:
    require_apart_from_earlier(folder, Policy(), phase, split, entries(*numbers))
    remember_cases(folder, phase, split, entries(*numbers))


def test_a_second_run_may_not_leave_one_case_out(tmp_path: Path) -> None:
    leave(tmp_path, WHOLE, "s", *range(20))
    with pytest.raises(PolicyError, match="1 other cases"):
        leave(tmp_path, CUT, "s", *range(19))
    leave(tmp_path, WHOLE, "s", *range(20))
    leave(tmp_path, CUT, "s", *range(12))


def test_nor_draw_others_with_another_seed(tmp_path: Path) -> None:
    leave(tmp_path, CUT, "s", *range(19))
    with pytest.raises(PolicyError, match="2 other cases"):
        leave(tmp_path, CUT, "s", *range(18), 19)


def test_what_a_site_adds_to_its_archive_is_of_no_plans_choosing(tmp_path: Path) -> None:
    leave(tmp_path, CUT, "s", *range(19))
    leave(tmp_path, CUT, "after one more case", *range(20))


def test_an_order_that_nothing_came_of_bars_no_later_run(tmp_path: Path) -> None:
    """One refused order with a `max_cases` of its choosing would have barred the whole archive."""
    require_apart_from_earlier(tmp_path, Policy(), CUT, "s", entries(*range(19)))
    leave(tmp_path, WHOLE, "s", *range(20))


def test_what_was_refused_is_not_remembered_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    leave(tmp_path, WHOLE, "s", *range(20))
    with pytest.raises(PolicyError):
        leave(tmp_path, CUT, "s", *range(19))
    assert (tmp_path / FILE).read_text().count("{") == 1
    with (tmp_path / FILE).open("a") as file:
        file.write('{"split": "s", "cases": [')
    leave(tmp_path, CUT, "s", *range(12))
    with pytest.raises(PolicyError):
        leave(tmp_path, CUT, "s", *range(11))
