"""Who is at work on a folder of this machine, and with how much memory and which GPU.

Read from Linux's ``/proc`` alone: no lock is tried, which could be in the way of a start, and no
process is asked anything. Elsewhere, and of other accounts, nothing is known.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROC = Path("/proc")
ASKED = "index,name,utilization.gpu,memory.used,memory.total"
GPU_SECONDS = 5.0


@dataclass(frozen=True)
class Gpu:
    """One GPU of this machine.

    Attributes:
        index: as `nvidia-smi` counts.
        name: of its kind.
        busy: percent of the last moment in which it computed; None where it does not tell.
        used_bytes: of its memory, by all programs.
        bytes: of its memory.
    """

    index: int
    name: str
    busy: float | None
    used_bytes: int
    bytes: int


def holder(lock: Path) -> int | None:
    """Process that holds a lock file (`flock`), by the kernel's own list.

    Returns:
        Its id; 0 where it belongs to another container; None where nobody of this machine holds it.
    """
    try:
        found = lock.stat()
        lines = (PROC / "locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    for line in lines:
        words = line.split()
        if len(words) < 8 or "->" in words or words[1] not in ("FLOCK", "POSIX"):
            continue
        place, _, inode = words[5].rpartition(":")
        if inode == str(found.st_ino) and (place == device or _opened(int(words[4]), lock)):
            return max(int(words[4]), 0)
    return None


def began(pid: int) -> float | None:
    """When a process began, in seconds since 1970; None where that is not known."""
    try:
        ticks = int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
        lines = (PROC / "stat").read_text().splitlines()
        boot = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return boot + ticks / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # gone meanwhile
        children.setdefault(parent, []).append(int(folder.name))
    found, todo = set(), [pid]
    while todo:
        one = todo.pop()
        if one not in found and (PROC / str(one)).exists():
            found.add(one)
            todo += children.get(one, [])
    return found


def memory_bytes(pids: Iterable[int]) -> int:
    """Memory of processes; what several share is counted once where the kernel tells it apart."""
    total = 0
    for pid in pids:
        total += _kilobytes(pid, "smaps_rollup", "Pss:") or _kilobytes(pid, "status", "VmRSS:")
    return 1024 * total


def gpus() -> list[Gpu]:
    """The GPUs of this machine, by `nvidia-smi`; none where it is not there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={ASKED}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GPU_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 3) for line in done.stdout.splitlines()]
    return [gpu for row in rows if (gpu := _gpu(row)) is not None]


def machine(pids: Iterable[int]) -> dict[str, Any]:
    """What these processes take of this machine, with its GPUs; {} where none of them lives."""
    living: set[int] = set()
    for pid in pids:
        living |= family(pid)
    if not living:
        return {}
    told = {"processes": len(living), "memory_bytes": memory_bytes(living)}
    return told | {"gpus": [vars(gpu) for gpu in gpus()]}


def _gpu(row: list[str]) -> Gpu | None:
    index, _, name = row[0].partition(",")
    busy, used, total = (text.strip() for text in row[1:]) if len(row) == 4 else ("", "", "")
    try:
        share = float(busy) if busy.replace(".", "", 1).isdigit() else None
        return Gpu(int(index), name.strip(), share, int(float(used) * 2**20),
                   int(float(total) * 2**20))  # fmt: skip
    except ValueError:
        return None


def _opened(pid: int, path: Path) -> bool:
    """Whether a process has a file open; some file systems show other numbers in the list."""
    try:
        wanted = path.resolve()
        return any(
            Path(os.readlink(entry)) == wanted for entry in (PROC / str(pid) / "fd").iterdir()
        )
    except OSError:
        return False


def _kilobytes(pid: int, file: str, key: str) -> int:
    try:
        text = (PROC / str(pid) / file).read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    lines = [line.split() for line in text.splitlines() if line.startswith(key)]
    return int(lines[0][1]) if lines else 0
