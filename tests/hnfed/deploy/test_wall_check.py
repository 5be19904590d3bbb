from __future__ import annotations

import pytest

from hnfed.deploy import wall_check as doctor
from hnfed.deploy.doctor import FAIL, PASS, WARN
from hnfed.deploy.wall_check import examine_walls
from hnfed.guard.sandbox import Enforceable


@pytest.mark.parametrize(
    ("found", "mode", "state"),
    [
        (Enforceable(7, True, True), "required", PASS),
        (Enforceable(0, True, False), "required", FAIL),
        (Enforceable(0, True, False), "preferred", WARN),
        (Enforceable(7, True, False), "required", FAIL),
    ],
)
def test_the_walls_are_tried_and_held_against_the_policy(
    found: Enforceable, mode: doctor.Mode, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "enforceable", lambda: found)
    check = examine_walls(mode)
    assert check.state == state
    assert bool(check.remedy) == (state != PASS)
    assert found.words in check.detail
