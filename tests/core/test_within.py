from __future__ import annotations

import threading
import time

import pytest

from core.processes import within


def test_a_call_in_time_gives_what_it_returns_or_raises() -> None:
    assert within(10.0, lambda: 3) == 3
    assert within(10.0, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        within(10.0, lambda: 1 // 0)


def test_a_call_that_waits_for_ever_is_left_behind() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        within(0.2, threading.Event().wait)
    assert time.monotonic() - begun < 10.0
