from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.archives.parallel import _quota, cpus, each
from core.errors import UserError


def square(value: int) -> int:
    return value * value


def die(value: int) -> int:
    if value == 3:
        os._exit(7)
    return value


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_item_has_its_result(jobs: int) -> None:
    assert dict(each(square, [3, 1, 2], jobs)) == {0: 9, 1: 1, 2: 4}
    assert list(each(square, [], jobs)) == []


def test_a_worker_that_dies_is_told() -> None:
    with pytest.raises(UserError, match="worker process died"):
        list(each(die, list(range(6)), 2))


PARENT = """
import time
from core.archives.parallel import _quota, cpus, each
from tests_of_workers import slow
if __name__ == "__main__":
    list(each(slow, [1, 2], 2))
"""
SLOW = """
import os, sys, time
def slow(value):
    open(os.path.join(os.environ["NOTES"], str(os.getpid())), "w").close()
    time.sleep(60)
"""


def test_workers_leave_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "tests_of_workers.py").write_text(SLOW)
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "notes").mkdir()
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join([str(root), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": path, "NOTES": str(tmp_path / "notes")}
    process = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], env=environment)
    limit = time.monotonic() + 120
    while len(list((tmp_path / "notes").iterdir())) < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    workers = [int(p.name) for p in (tmp_path / "notes").iterdir()]
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    limit = time.monotonic() + 20
    while any(map(runs, workers)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not any(map(runs, workers))


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_the_cpus_are_those_that_this_process_may_use() -> None:
    mine = os.sched_getaffinity(0)
    command = [sys.executable, "-c", "from core.archives.parallel import cpus; print(cpus())"]
    root = Path(__file__).resolve().parents[3]

    def bound() -> None:
        os.sched_setaffinity(0, {min(mine)})

    one = subprocess.check_output(command, cwd=root, preexec_fn=bound)
    assert (int(one), 1 <= cpus() <= len(mine)) == (1, True)


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a", {"a/cpu.max": "max 100000"}, float("inf")),
        ("0::/gone", {"cpu.max": "50000 100000"}, 0.5),
        (
            "3:memory:/m\n2:cpu,cpuacct:/x",
            {
                "cpu,cpuacct/x/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        ("", {}, float("inf")),
    ],
)
def test_a_groups_quota_counts(
    tmp_path: Path, groups: str, files: dict[str, str], left: float
) -> None:
    (tmp_path / "of").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert _quota(tmp_path, tmp_path / "of") == left
    assert _quota(tmp_path, tmp_path / "no such file") == float("inf")
