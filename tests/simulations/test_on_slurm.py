"""Cells of a study on a real Slurm, made for this test on the loopback address.

`slurmctld`, `slurmd` and `munged` run with settings of their own in a scratch folder, beside
whatever this machine may have, and end with the test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from core.journal import read_events
from tests.simulations.conftest import STUDY, TINY

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
SBIN = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
MISSING = [tool for tool in TOOLS if shutil.which(tool, path=SBIN) is None]
CONF = """
ClusterName=hnfed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobRequeue=1
KillWait=30
SchedulerParameters=batch_sched_delay=1,sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
BEST = ("pretrain-lr{}-seed0/checkpoints/pretrain/best.safetensors",
        "frozen-lr{}-seed0/sites/nyu/personalise/best.safetensors")  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.getuid() != 0, reason="slurmd needs root"),
    pytest.mark.timeout(1500),
]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(holds: Callable[[], bool], what: str, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands find a cluster of one node with two CPUs."""
    pytest.importorskip("submitit")
    folder = Path(tempfile.mkdtemp(prefix="hnfed-slurm-"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host, key = socket.gethostname().split(".")[0], folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, ports=free_ports(2)))
    environment = {**os.environ, "PATH": SBIN, "SLURM_CONF": str(folder / "slurm.conf")}
    daemons = {
        "munged": [
            "munged", "--foreground", "--force", f"--socket={folder}/munge.socket",
            f"--key-file={key}", f"--pid-file={folder}/munge.pid",
            f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log",
        ],
        "slurmctld": ["slurmctld", "-D", "-i"],
        "slurmd": ["slurmd", "-D"],
    }  # fmt: skip
    made: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in daemons.items():
            with (folder / f"{name}.out").open("wb") as out:
                made.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
            if name == "munged":
                wait_for((folder / "munge.socket").exists, "munged's socket", 30)

        def idle() -> bool:
            for name, daemon in zip(daemons, made, strict=True):
                assert daemon.poll() is None, (folder / f"{name}.out").read_text()
            shown = asked(environment, "sinfo", "-h", "-o", "%T")
            return shown.strip() == "idle"

        wait_for(idle, "an idle node", 90)
        yield environment
    finally:
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scancel", "--state=RUNNING"], env=environment, timeout=30, check=False)
            time.sleep(2)
        for daemon in reversed(made):
            daemon.terminate()
        for daemon in reversed(made):
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def asked(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout


def jobs(environment: dict[str, str]) -> dict[str, str]:
    """State by id of the jobs that Slurm knows."""
    command = ("squeue", "-h", "--array", "--states=all", "-o", "%i %T")
    return dict(line.split() for line in asked(environment, *command).splitlines())


class Grid:
    """`hnfed grid` in a process of its own."""

    def __init__(self, environment: dict[str, str], study: Path, out: Path, *more: str) -> None:
        self.log = out.with_suffix(".log")
        command = [sys.executable, "-m", "hnfed.cli.main", "grid", str(study), "--out", str(out)]
        self.command, self.environment = [*command, *more], {**environment, "PYTHONPATH": str(ROOT)}
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> Grid:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        return self

    def ends(self, seconds: float = 900) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def listed(self) -> dict[str, dict[str, str]]:
        """What --list says, by cell."""
        done = subprocess.run(
            [*self.command, "--list", "--json", "-"], cwd=ROOT, env=self.environment,
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return {row["cell"]: row for row in json.loads(done.stdout)["cells"]}


def rounds(folder: Path) -> list[int]:
    return [e["round"] for e in read_events(folder / "journal.jsonl") if e["event"] == "round"]


def starts(folder: Path) -> list[bool]:
    """Whether each start of a cell went on with an earlier one."""
    events = read_events(folder / "journal.jsonl")
    return [e["resumed"] for e in events if e["event"] == "run-start"]


def test_cells_on_slurm_are_requeued_followed_and_come_out_as_here(
    slurm: dict[str, str], phantom_cache: Path, tmp_path: Path
) -> None:
    settings = [*TINY, "simulation.cpus_per_site=1", f"simulation.cache={phantom_cache}"]
    study = tmp_path / "tiny.yaml"
    study.write_text(STUDY.format(settings=", ".join(s.replace("=", ": ", 1) for s in settings)))
    out, here = tmp_path / "slurm", tmp_path / "here"
    assert Grid(slurm, study, here, "--jobs", "2").begin().ends() == 0
    grid = Grid(slurm, study, out, "--on", "slurm", "--slurm", "time=60").begin()
    first, second = out / "pretrain-lra-seed0", out / "pretrain-lrb-seed0"
    wait_for(lambda: bool(rounds(first) and rounds(second)), "a round")

    listed = grid.listed()
    host = socket.gethostname().split(".")[0]
    where = {name: row["where"] for name, row in listed.items()}
    found = re.fullmatch(rf"Slurm's job (\d+)_0: running on {host}", where[first.name])
    assert found is not None, where
    array = found[1]
    assert where[second.name] == f"Slurm's job {array}_1: running on {host}"
    assert where["frozen-lra-seed0"] == ""

    assert asked(slurm, "scontrol", "requeue", f"{array}_0") == ""  # killed, and queued again
    grid.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
    assert grid.ends(60) == 143
    said = grid.log.read_text()
    assert f"left with Slurm: {first.name} ({array}_0), {second.name} ({array}_1)" in said

    assert len(jobs(slurm)) == 2
    assert grid.begin().ends() == 0, grid.log.read_text()
    assert f"{first.name} is Slurm's job {array}_0: pending" in grid.log.read_text()
    assert len(jobs(slurm)) == 4, "nothing was handed in twice"
    assert starts(first) == [False, True]
    assert starts(second) == [False]
    assert rounds(first) == list(range(1, 101))
    for variant in "ab":
        for name in BEST:
            path = name.format(variant)
            assert (out / path).read_bytes() == (here / path).read_bytes(), path
    assert {row["state"] for row in grid.listed().values()} == {"done"}


def test_a_job_that_slurm_ends_is_a_failed_cell_and_goes_on(
    slurm: dict[str, str], phantom_cache: Path, tmp_path: Path
) -> None:
    settings = [*TINY, "simulation.cpus_per_site=1", f"simulation.cache={phantom_cache}"]
    study = tmp_path / "tiny.yaml"
    study.write_text(STUDY.format(settings=", ".join(s.replace("=", ": ", 1) for s in settings)))
    out = tmp_path / "slurm"
    grid = Grid(slurm, study, out, "--on", "slurm", "--only", "pretrain-lra-*").begin()
    cell = out / "pretrain-lra-seed0"
    wait_for(lambda: bool(rounds(cell)), "a round")
    where = grid.listed()[cell.name]["where"]
    job = where.split()[2].rstrip(":")
    assert asked(slurm, "scancel", job) == ""
    assert grid.ends(120) == 1
    assert f"{cell.name}: failed" in grid.log.read_text()
    assert grid.listed()[cell.name]["where"] == ""
    assert grid.begin().ends() == 0, grid.log.read_text()
    assert starts(cell) == [False, True]
    refused = Grid(slurm, study, tmp_path / "no", "--on", "slurm", "--slurm", "partition=nowhere")
    assert refused.begin().ends(120) == 1
    assert "invalid partition" in refused.log.read_text().lower()
