"""A long-running process of ours: stopped by a signal, its children ended with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from core.text import shown_text

GRACE_SECONDS, KILL_SECONDS = 8.0, 5.0
Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


LEAVE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, an end asked for, a lost terminal
_told: list[int] = []  # signals that asked this process to leave


class Stopped(BaseException):
    """A signal asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def stop_by_signal() -> None:
    """Makes Ctrl-C, SIGTERM and SIGHUP raise `Stopped`."""
    _listen(_stop)


def leave_by_signal() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt, SIGTERM and SIGHUP SystemExit(143 and 129).

    They are remembered, see `leave_if_told`.
    """
    _told.clear()
    _listen(leave)


def leave_if_told() -> None:
    """Raises again what a signal raised and some code lost.

    A handler's exception comes up wherever the program is at work. Inside a library that may be a
    place that swallows it, or turns it into an error of its own; the work would go on to its end.
    To be called where errors of libraries are caught, and wherever a long work takes a breath.
    """
    if _told:
        _raise(_told[-1])


@contextlib.contextmanager
def handling(handler: Any, *numbers: int) -> Iterator[None]:
    """While it lasts, these signals have that handler (in the main thread; elsewhere nothing)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def deaf() -> contextlib.AbstractContextManager[None]:
    """While it lasts, Ctrl-C, SIGTERM and SIGHUP do nothing."""
    return handling(signal.SIG_IGN, *LEAVE)


def leaving() -> contextlib.AbstractContextManager[None]:
    """While it lasts, SIGTERM and SIGHUP raise SystemExit also where nobody else cares for them.

    A signal that whoever started us ignores stays ignored.
    """
    heard = [n for n in LEAVE[1:] if signal.getsignal(n) is not signal.SIG_IGN]
    return handling(leave, *heard)


def with_parent() -> None:
    """For `preexec_fn`: the child is asked to end when its parent dies, even by SIGKILL (Linux)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def end_with_parent(maker: int | None = None) -> None:
    """This process is killed when the one that made it is gone, or at once where it is (Linux).

    For workers that have nothing to tidy up; the kernel sees to it, at any moment of their life.

    Args:
        maker: process id of the parent, where it is known; it may be 1, in a container. Without
            it, a parent with the id 1 is taken for the one that orphans get.
    """
    if LIBC is None:
        return
    expected = os.getppid() if maker is None else maker
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != expected or (maker is None and expected == 1):
        os._exit(1)


def end(child: subprocess.Popen[Any]) -> None:
    """SIGTERM to the child's group, SIGKILL to what is left of it, also where the child is gone."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(child.pid, number)
            child.wait(seconds)


def held(lock: Path) -> bool:
    """Whether a process of this machine holds a lock file."""
    if not lock.is_file():
        return False
    from filelock import FileLock, Timeout  # takes longer than all the rest of this file

    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def tell(text: str) -> None:
    """Prints a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {shown_text(text)}", flush=True)


def _listen(handler: Callable[[int, FrameType | None], None]) -> None:
    """A signal that whoever started us ignores (a shell, for a job behind ``&``) stays ignored."""
    for number in LEAVE:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def leave(number: int, frame: FrameType | None) -> None:
    """The handler of `leave_by_signal`."""
    _told.append(number)
    _raise(number)


def _raise(number: int) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


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
