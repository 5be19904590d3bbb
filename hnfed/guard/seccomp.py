"""A seccomp filter: which system calls a process and its children can make.

https://docs.kernel.org/userspace-api/seccomp_filter.html. The filter is a small program that the
kernel runs on each call; a call is refused with EPERM, which code inside sees as an `OSError`.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Iterable
from typing import Final

from hnfed.guard.libc import syscall
from hnfed.guard.syscalls import LAST, LOOKED_AT, REFUSED

# by processor: column of the tables, number of `seccomp`, value of the call's architecture
PROCESSORS: Final = {"x86_64": (0, 317, 0xC000003E), "aarch64": (1, 277, 0xC00000B7)}
SET_FILTER, ACTION_AVAILABLE, ALL_THREADS = 1, 2, 1
ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050000, 0x80000000

LOAD, EQUAL, GREATER, ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in what the filter sees of a call
X32: Final = 0x3FFFFFFF  # a larger number is a call by x86_64's second, shorter convention

NAMESPACES: Final = 0x7E020000  # CLONE_NEW*: user, mount, network, PID, IPC, UTS, cgroup
SIGNALS_TO_OTHERS: Final = (8, 10, 15)  # fcntl F_SETOWN, F_SETSIG, F_SETOWN_EX
# ioctl TIOCSTI and TIOCLINUX type on a terminal for the user; FIOSETOWN and SIOCSPGRP as F_SETOWN
TERMINAL_AND_OWNER: Final = (0x5412, 0x541C, 0x8901, 0x8902)

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def available() -> bool:
    """True where this kernel and processor can refuse system calls as the filter does."""
    if platform.machine() not in PROCESSORS:
        return False
    _, number, _ = PROCESSORS[platform.machine()]
    try:
        syscall(number, ACTION_AVAILABLE, 0, ctypes.byref(ctypes.c_uint32(FAIL)))
    except OSError:
        return False
    return True


def restrict(pid: int, *, signals: bool, truncate: bool) -> None:
    """Lays the filter on every thread of this process, and on what they start, for good.

    The process has given up new privileges before.

    Args:
        pid: of this process.
        signals: refuse signals to processes other than `pid`; where Landlock does not.
        truncate: refuse ``truncate`` by path; where Landlock does not watch over it.

    Raises:
        OSError: the kernel refuses the filter.
    """
    _, number, _ = PROCESSORS[platform.machine()]
    code = assembled(program(platform.machine(), pid, signals=signals, truncate=truncate))
    wanted = _Program(len(code) // 8, code)
    if syscall(number, SET_FILTER, ALL_THREADS, ctypes.byref(wanted)) != 0:
        raise OSError(errno.EAGAIN, "a thread of this process has a filter of its own")


def program(processor: str, pid: int, *, signals: bool, truncate: bool) -> list[Instruction]:
    """The filter's instructions; see `restrict`.

    Args:
        processor: of `PROCESSORS`.
        pid: as for `restrict`.
        signals: as for `restrict`.
        truncate: as for `restrict`.
    """
    column, _, architecture = PROCESSORS[processor]
    looked = {name: numbers[column] for name, numbers in LOOKED_AT.items()}
    refused = [number for row in REFUSED.values() if (number := row[column]) is not None]
    if truncate:
        refused.append(looked["truncate"])
    first = [
        _load(ARCHITECTURE), *_unless_equal(architecture, KILL),
        _load(NUMBER),
        *(_if(GREATER, X32, KILL) if processor == "x86_64" else []),
        *_if(GREATER, LAST, FAIL | errno.ENOSYS),
        # its flags are out of a filter's sight; without it the C library takes `clone`
        *_if(EQUAL, looked["clone3"], FAIL | errno.ENOSYS),
    ]  # fmt: skip
    no = FAIL | errno.EPERM
    rest = [step for number in refused for step in _if(EQUAL, number, no)]
    rest += _of(looked["clone"], 0, _if(ANY_BIT, NAMESPACES, no))
    rest += _of(looked["prlimit64"], 0, _unless_equal(0, no))
    rest += _of(looked["fcntl"], 1, _any(SIGNALS_TO_OTHERS, no))
    rest += _of(looked["ioctl"], 1, _any(TERMINAL_AND_OWNER, no))
    if signals:
        rest += _of(looked["kill"], 0, _unless_equal(pid, no))
        rest += _of(looked["tgkill"], 0, _unless_equal(pid, no))
    return [*first, *rest, (RETURN, 0, 0, ALLOW)]


def assembled(instructions: Iterable[Instruction]) -> bytes:
    """Instructions as the kernel reads them, eight bytes each."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _load(offset: int) -> Instruction:
    return (LOAD, 0, 0, offset)


def _if(test: int, constant: int, verdict: int) -> list[Instruction]:
    return [(test, 0, 1, constant), (RETURN, 0, 0, verdict)]


def _unless_equal(constant: int, verdict: int) -> list[Instruction]:
    return [(EQUAL, 1, 0, constant), (RETURN, 0, 0, verdict)]


def _any(constants: Iterable[int], verdict: int) -> list[Instruction]:
    return [step for constant in constants for step in _if(EQUAL, constant, verdict)]


def _of(number: int, argument: int, steps: list[Instruction]) -> list[Instruction]:
    """`steps` on the low half of a call's argument; then the call is allowed."""
    body = [_load(ARGUMENTS + 8 * argument), *steps, (RETURN, 0, 0, ALLOW)]
    return [(EQUAL, 0, len(body), number), *body]
