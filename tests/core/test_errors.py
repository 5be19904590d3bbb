from __future__ import annotations

from core.errors import suggestion


def test_the_nearest_known_word_is_suggested() -> None:
    known = ["pretrain", "personalise"]
    assert suggestion("pretain", known) == "did you mean pretrain? "
    assert suggestion("qqq", known) == ""
    assert suggestion("prsnls", known, cutoff=0.9) == ""
