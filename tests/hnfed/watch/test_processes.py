"""Who is at work here, read from /proc alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from hnfed.watch import processes
from hnfed.watch.processes import began, family, gpus, holder, machine, memory_bytes


def test_the_holder_of_a_lock(tmp_path: Path) -> None:
    assert holder(tmp_path / "lock") is None
    with FileLock(tmp_path / "lock"):
        assert holder(tmp_path / "lock") == os.getpid()
        (tmp_path / "other").touch()
        assert holder(tmp_path / "other") is None
    assert holder(tmp_path / "lock") is None


def test_a_process_its_children_and_their_memory() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert {os.getpid(), child.pid} <= family(os.getpid())
        assert family(child.pid) == {child.pid}
        assert memory_bytes([child.pid]) > 1e6
        started = began(child.pid)
        assert started is not None
        assert abs(started - time.time()) < 60
    finally:
        child.communicate()
    assert machine([child.pid]) == {}
    assert began(child.pid) is None
    assert machine([os.getpid()])["processes"] >= 1


def test_gpus_as_nvidia_smi_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho '0, NVIDIA H200, 45, 1024, 143771'\necho '1, NVIDIA X, [N/A], 0, 8192'\n"
        "echo 'No devices were found'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    first, second = gpus()
    assert (first.index, first.name, first.busy) == (0, "NVIDIA H200", 45.0)
    assert (first.used_bytes, first.bytes) == (2**30, 143771 * 2**20)
    assert second.busy is None
    program.write_text("#!/bin/sh\nexit 9\n")
    assert gpus() == []
    monkeypatch.setattr(processes.shutil, "which", lambda name: None)
    assert gpus() == []
