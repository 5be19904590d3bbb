"""Walls around the process that trains: what it can open, and that it reaches nobody.

Code that came from the coordinator runs behind them. It reads the folders it is given, writes its
scratch, and talks over the one descriptor it has inherited: no key, no archive, no other process
and no network. Files by `hnfed.guard.landlock`, everything else by `hnfed.guard.seccomp`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from core.errors import UserError
from hnfed.guard import landlock, seccomp
from hnfed.guard.libc import keep_capabilities, prctl

SET_DUMPABLE, SET_NO_NEW_PRIVILEGES = 4, 38  # of prctl
DAC_OVERRIDE: Final = 1 << 1  # a container's root writes to folders of another account
NULL: Final = Path("/dev/null")
TRIAL_SECONDS: Final = 60
# Addresses that libraries reserve without using them (stacks, heaps of threads, mapped files).
RESERVED_BYTES: Final = 16 << 30

# What an interpreter and torch read beside their own folders. Of /proc there are files alone: of
# this process, and of the machine. A folder there would show other processes, and this one's
# `environ`, `mem` and `root`.
FOLDERS: Final = (
    "/usr", "/lib", "/lib64",
    "/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage",
    "/proc/driver/nvidia", "/sys/module/nvidia", "/sys/module/nvidia_uvm",
)  # fmt: skip
FILES: Final = (
    "/etc/ld.so.cache", "/etc/localtime",
    "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/devices",
    "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/mmap_min_addr",
    "/proc/self/maps", "/proc/self/status", "/proc/self/stat", "/proc/self/statm",
    "/sys/devices/system/memory/block_size_bytes",
)  # fmt: skip
GPU: Final = ("nvidiactl", "nvidia[0-9]*", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-caps/*")

Mode = Literal["required", "preferred"]


@dataclass(frozen=True)
class Walls:
    """What a closed-in process has; every path is there.

    Attributes:
        read: files and folders, with all beneath: readable, programs and libraries can be loaded.
        write: folders, with all beneath: readable, files and folders are made, changed, removed.
        devices: files of /dev that are read, written and controlled (`gpu_devices`).
        memory_bytes: most private memory of the process; None for no limit.
        gpus: of `devices`, the one that each process computes on, by rank: CUDA's number.
    """

    read: tuple[Path, ...]
    write: tuple[Path, ...]
    devices: tuple[Path, ...] = ()
    memory_bytes: int | None = None
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Enforceable:
    """What this machine can enforce.

    Attributes:
        landlock: version of Landlock's interface; 0 where the kernel has none.
        seccomp: whether system calls, and with them the network, can be refused.
        tried: whether a process that was closed in found its walls.
    """

    landlock: int
    seccomp: bool
    tried: bool

    @property
    def whole(self) -> bool:
        """Files and network, both."""
        return self.landlock > 0 and self.seccomp and self.tried

    @property
    def words(self) -> str:
        """One line for the person at the site."""
        if self.whole:
            return f"files (Landlock {self.landlock}) and network (seccomp); tried"
        missing = []
        if not self.landlock:
            missing.append("files: this kernel has no Landlock, or has it switched off")
        if not self.seccomp:
            missing.append("network: this kernel or processor has no seccomp filter for us")
        return "; ".join(missing or ["a process that was closed in did not find its walls"])


def runtime_paths() -> tuple[Path, ...]:
    """What Python and torch read to run, as far as it is there; for `Walls.read`.

    Holds no code of a bundle, and no data.
    """
    own = (sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(__file__).parents[1]))
    buses = Path("/sys/devices").glob("pci[0-9]*")
    paths = map(Path, dict.fromkeys((*own, *FOLDERS, *FILES)))
    return tuple(path for path in (*paths, *buses) if path.exists())


def gpu_devices() -> tuple[Path, ...]:
    """The device files of this machine's NVIDIA GPUs; for `Walls.devices`. () without one."""
    found = (path for pattern in GPU for path in Path("/dev").glob(pattern))
    return tuple(sorted(path for path in found if path.is_char_device()))


def require_outside(walls: Walls, *secrets: Path) -> None:
    """Refuses walls that let a secret in, such as a kit below ``/usr``.

    Raises:
        UserError: one of `secrets` is, or is beneath, a path that could be read.
    """
    inside = [path.resolve() for path in (*walls.read, *walls.write)]
    for secret in secrets:
        place = secret.resolve()
        covering = [path for path in inside if path == place or path in place.parents]
        if covering:
            remedy = "move it: code of a plan could read it there"
            raise UserError("kit", secret, remedy, problem=f"beneath {covering[0]}")


Forked = tuple[int, list[tuple[int, int]]]  # rank of a process, and its pipes to others


def enter(
    walls: Walls, keep: tuple[int, ...] = (), fork: Callable[[], Forked] = lambda: (0, [])
) -> Forked:
    """Closes this process in, for good, with all that it starts later.

    Called by a worker before it imports torch or anything of a bundle: while it has one thread.
    It leads a process group that nothing it starts can leave: ``os.killpg`` of its id ends all.
    With `walls.devices` it loads the installed torch and starts the GPU's driver behind the walls
    of the files, and gives up the network after that: the driver makes a socket of its own.

    Args:
        walls: what is left.
        keep: descriptors that stay open: pipes, files, connected Unix sockets. Of 0, 1 and 2 those
            that are not kept lead to nowhere.
        fork: makes further processes, once the walls of the files stand and before any GPU is
            started: each goes on from here, within the same walls.

    Returns:
        What `fork` returned, in each process.

    Raises:
        UserError: a path of `walls` is not there, or a descriptor of `keep` is of another kind.
        RuntimeError: there is more than one thread, or the walls do not hold.
        OSError: the kernel refuses; see `enforceable`.
    """
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"{threads} threads: walls are for a process with one")
    for name, paths in (("read", walls.read), ("write", walls.write), ("devices", walls.devices)):
        for path in paths:
            if not path.exists():
                raise UserError(f"walls.{name}", path, "give what is there")
    known = landlock.version()
    os.umask(0o077)
    with contextlib.suppress(PermissionError):  # it leads a group already
        os.setsid()
    _drop_descriptors(keep)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if walls.memory_bytes is not None:
        limit_memory(walls.memory_bytes, addresses=not walls.devices)
    prctl(SET_DUMPABLE, 0)
    prctl(SET_NO_NEW_PRIVILEGES, 1)
    landlock.restrict(_rules(walls))
    keep_capabilities(DAC_OVERRIDE)
    rank, pipes = fork()
    if walls.devices:
        _start_gpu(walls.gpus[rank])
    seccomp.restrict(
        os.getpid(),
        signals=known < landlock.SINCE_SCOPES,
        truncate=known < landlock.SINCE_TRUNCATE,
    )
    _prove()
    return rank, pipes


def limit_memory(most_bytes: int, *, addresses: bool = True) -> None:
    """Bounds this process, for good: what goes beyond raises `MemoryError`.

    Args:
        most_bytes: of private memory.
        addresses: reserved ones too; a GPU's driver reserves more than any machine has memory.
    """
    _lower(resource.RLIMIT_DATA, most_bytes)
    if addresses:
        _lower(resource.RLIMIT_AS, most_bytes + RESERVED_BYTES)


def enforceable() -> Enforceable:
    """What this machine can enforce: asked of the kernel, and tried in a process of its own."""
    known, filters = landlock.version(), seccomp.available()
    if not (known and filters):
        return Enforceable(known, filters, False)
    command = [sys.executable, "-I", "-m", "hnfed.guard.sandbox"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TRIAL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return Enforceable(known, filters, False)
    return Enforceable(known, filters, done.returncode == 0)


def require(mode: Mode, found: Enforceable) -> str:
    """Holds a policy's `sandbox` against the machine.

    Args:
        mode: ``required`` or ``preferred``.
        found: what `enforceable` says.

    Returns:
        A warning, "" where all can be enforced.

    Raises:
        UserError: it is required, and cannot be enforced.
    """
    if found.whole:
        return ""
    if mode == "required":
        remedy = (
            "use a Linux kernel from 5.13 on with Landlock (`lsm=` names it), or set sandbox: "
            "preferred, and code of a plan then runs with all rights of this account"
        )
        raise UserError("policy.sandbox", mode, remedy, problem=found.words)
    return (
        f"training is not closed in ({found.words}): code of a plan runs with all rights of this "
        "account, and could read whatever it can read"
    )


def _rules(walls: Walls) -> list[tuple[Path, int]]:
    return [
        *((path, landlock.READ) for path in walls.read),
        *((path, landlock.WRITE) for path in walls.write),
        *((path, landlock.DEVICE) for path in walls.devices),
        (NULL, landlock.READ_FILE | landlock.WRITE_FILE),
    ]


def _drop_descriptors(keep: tuple[int, ...]) -> None:
    for kept in keep:
        _require_harmless(kept)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in keep:
            with contextlib.suppress(OSError):  # the one of the listing itself
                os.close(descriptor)
    null = os.open(NULL, os.O_RDWR)
    for standard in (0, 1, 2):
        if standard not in keep and standard != null:
            os.dup2(null, standard)
    if null > 2:
        os.close(null)


def _require_harmless(descriptor: int) -> None:
    """A pipe, a file or a connected Unix stream: nothing else can be reached through these."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISREG(mode):
        return
    if stat.S_ISCHR(mode) and os.fstat(descriptor).st_rdev == NULL.stat().st_rdev:
        return
    if stat.S_ISSOCK(mode) and _is_private(descriptor):
        return
    remedy = "give a pipe, a file, or one end of a socket pair"
    raise UserError("walls.keep", descriptor, remedy, problem="it could reach beyond the walls")


def _is_private(descriptor: int) -> bool:
    link = socket.socket(fileno=os.dup(descriptor))
    with link:
        kind = link.type in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
        if link.family != socket.AF_UNIX or not kind:
            return False
        try:
            link.getpeername()
        except OSError:
            return False
        return True


def _lower(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (value, value))


def _start_gpu(number: int) -> None:
    import torch

    torch.cuda.init()  # type: ignore[no-untyped-call]
    torch.zeros(1, device=f"cuda:{number}")


def _prove() -> None:
    """Tries two things that no walls allow: the machine's root, and a socket."""
    with contextlib.suppress(PermissionError):
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
        raise RuntimeError("the walls do not hold: the machine's root can be listed")
    with contextlib.suppress(PermissionError):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
        raise RuntimeError("the walls do not hold: a socket can be made")


def _trial(paths: Iterable[Path]) -> None:
    enter(Walls(tuple(paths), ()))


if __name__ == "__main__":
    _trial(runtime_paths())
