from __future__ import annotations

import pytest

from core.errors import UserError, suggestion


def test_the_nearest_known_word_is_suggested() -> None:
    known = ["pretrain", "personalise"]
    assert suggestion("pretain", known) == "did you mean pretrain? "
    assert suggestion("qqq", known) == ""
    assert suggestion("prsnls", known, cutoff=0.9) == ""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\x0b"])
def test_a_value_stays_on_its_line(end: str) -> None:
    error = UserError("root", f"x{end}  remedy: run something", "give a folder")
    assert str(error).splitlines() == [
        "root = x\\n  remedy: run something",
        "  remedy: give a folder",
    ]
