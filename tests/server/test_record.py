from __future__ import annotations

import pytest

from server.record import tell


def test_every_line_that_is_told_bears_the_mark(capsys: pytest.CaptureFixture[str]) -> None:
    tell("error: x = 3\n  remedy: mend it")
    assert capsys.readouterr().out.splitlines() == [
        "hnfed| error: x = 3",
        "hnfed|   remedy: mend it",
    ]
