"""Calls of libraries that may wait for ever, on a process or a network that does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """What `call` returns, if it does so in time; it works in a thread of its own.

    A call that takes longer is left behind: it goes on for as long as the process lives, and what
    it returns or raises then is lost.

    Args:
        seconds: how long to wait.
        call: without arguments.

    Raises:
        TimeoutError: it takes longer.
        BaseException: what the call raised.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
