"""Landlock: which files a process and its children can open; no root, no package.

https://docs.kernel.org/userspace-api/landlock.html. A rule says what is allowed beneath a folder or
on a file; everything else of the rights that are handled is refused, for good.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hnfed.guard.libc import syscall

CREATE, ADD, RESTRICT = 444, 445, 446  # the same numbers on every processor
VERSION: Final = 1  # asks CREATE for the version of the interface
BENEATH: Final = 1  # kind of rule: what is beneath a folder, or a file

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
ON_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

READ: Final = EXECUTE | READ_FILE | READ_DIR
# No links, sockets, pipes or devices are made: whoever opens a file there later, outside, gets the
# file. Nothing there can be started as a program.
WRITE: Final = (
    READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | MAKE_REG | MAKE_DIR | REMOVE_FILE | REMOVE_DIR
    | REFER
)  # fmt: skip
DEVICE: Final = READ_FILE | WRITE_FILE | IOCTL_DEV

# The first version of the interface that knows them.
SINCE_TRUNCATE, SINCE_TCP, SINCE_SCOPES = 3, 4, 6
FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many there are, by version
TCP_BIND_AND_CONNECT: Final = 0b11
ABSTRACT_SOCKETS_AND_SIGNALS: Final = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Version of the interface that this kernel offers; 0 where it has none."""
    try:
        return syscall(CREATE, None, 0, VERSION)
    except OSError:
        return 0


def restrict(rules: Sequence[tuple[Path, int]]) -> None:
    """Takes from this thread, and what it starts, every right to files but those of `rules`.

    Connections by TCP, and sockets and signals beyond the walls, go too where the kernel knows
    these rules. The process has given up new privileges before.

    What each rule names stays open for the life of the process, as a bare place in the file system:
    the kernel knows files of /proc by it, and would forget the rule otherwise.

    Args:
        rules: file or folder, and what is allowed there.

    Raises:
        OSError: a path is not there, or the kernel has no Landlock.
    """
    known = version()
    handled = (1 << FILE_RIGHTS[min(max(known, 1), max(FILE_RIGHTS))]) - 1
    wanted = _Ruleset(
        handled,
        TCP_BIND_AND_CONNECT if known >= SINCE_TCP else 0,
        ABSTRACT_SOCKETS_AND_SIGNALS if known >= SINCE_SCOPES else 0,
    )
    size = 24 if known >= SINCE_SCOPES else 16 if known >= SINCE_TCP else 8
    ruleset = syscall(CREATE, ctypes.byref(wanted), size, 0)
    try:
        for path, rights in rules:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                rights &= ON_FILES
            rule = _Beneath(rights & handled, place)
            syscall(ADD, ruleset, BENEATH, ctypes.byref(rule), 0)
        syscall(RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
