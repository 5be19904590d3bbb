"""System calls by number or name of the C library, with errors raised."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

_LIBRARY: Final = ctypes.CDLL(None, use_errno=True)
CAPABILITIES_VERSION: Final = 0x20080522


def syscall(number: int, *arguments: Any) -> int:
    """Makes a system call; each argument an int, a ctypes pointer or None.

    Raises:
        OSError: it failed.
    """
    return _checked(_LIBRARY.syscall(ctypes.c_long(number), *map(_word, arguments)))


def prctl(option: int, *arguments: Any) -> int:
    """``prctl`` with its unused arguments zero.

    Raises:
        OSError: it failed.
    """
    padded = [*arguments, 0, 0, 0, 0][:4]
    return _checked(_LIBRARY.prctl(ctypes.c_int(option), *map(_word, padded)))


def keep_capabilities(bits: int) -> None:
    """Gives up every capability of this thread, now and over a new program, but those in `bits`.

    Args:
        bits: bit `n` for capability number `n`, below 32; one that the thread has not is not got.

    Raises:
        OSError: refused.
    """
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: low half, then high half
    _checked(_LIBRARY.capget(header, sets))
    kept = (ctypes.c_uint32 * 6)(sets[0] & bits, sets[1] & bits)
    _checked(_LIBRARY.capset(header, kept))


def _word(argument: Any) -> Any:
    return ctypes.c_ulong(argument) if isinstance(argument, int) else argument


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
