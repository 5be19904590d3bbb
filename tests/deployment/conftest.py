"""A federation of three sites on the loopback address, with TLS; started once, ended by id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hnfed.cli.main import main
from hnfed.deploy.provision import Federation, provision
from hnfed.guard.approvals import approve, installed
from hnfed.guard.kit import Kit, read_kit
from tests.conftest import heard

ROOT = Path(__file__).resolve().parents[2]
SITES = ("miccai", "north", "nyu")
PLAN = {
    "preprocess": {"spacing_mm": [8.0, 6.0, 6.0], "crop": [32, 32, 40]},
    "model": {"channels": [4, 8, 16]},
    "train": {"threads": 1, "deterministic": True},
    "phases": [
        {"name": "pretrain", "sites": list(SITES), "rounds": 2, "init": "scratch",
         "organs": ["Brainstem", "Bone_Mandible", "Parotid_L", "Parotid_R"]},
        {"name": "personalise", "sites": ["nyu"], "rounds": 1, "init": "pretrain",
         "organs": ["Musc_Constrict_S", "Musc_Constrict_M"], "freeze": "encoder", "share": "none"},
    ],
    "federation": {"min_cell": 1, "query_timeout_s": 90},
    "tracking": {"mode": "disabled"},
    "simulation": {
        "engine": "inline", "cpus_per_site": 1, "phantom_spacing_mm": [6.0, 4.0, 4.0],
        "overlays": 0, "sites": {name: {"phantom": "nyu" if name == "nyu" else "miccai", "cases": 4}
                                 for name in SITES},
    },
}  # fmt: skip

# Four phantoms a site are fewer than a kit's own policy asks for.
LENIENT = (
    "min_cell: 1", "fewest_cases: 1", "fewest_cases_organ: 1", "fewest_steps: 1",
    "least_augmentation: 0", "largest_clip_norm: 1000", "fewest_voxels_channel: 1",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Machine:
    """A process of ours with its log, in a session of its own."""

    def __init__(self, log: Path, *command: str | Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [str(c) for c in command], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env=environment, cwd=log.parent, start_new_session=True, preexec_fn=heard,
            )  # fmt: skip

    def says(self, text: str, seconds: float) -> bool:
        """Whether the log comes to hold a text in time."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if text in self.log.read_text(errors="replace"):
                return True
            time.sleep(0.2)
        return False

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        return self.process.wait(30)


def hnfed(log: Path, *arguments: str | Path) -> Machine:
    return Machine(log, sys.executable, "-m", "hnfed.cli.main", *arguments)


def running(words: str, kit: Path) -> list[int]:
    """Processes of a kit whose command line holds these words."""
    wanted = (words.encode(), str(kit).encode())
    lines = {int(p.parent.name): content_of(p) for p in Path("/proc").glob("[0-9]*/cmdline")}
    return [pid for pid, line in lines.items() if all(w in line for w in wanted)]


def content_of(path: Path) -> bytes:
    """A file of /proc, or nothing where its process is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


class Place:
    """Kits, site files and the simulated run that the deployment must equal."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.skip("nginx is not installed")
        self.folder = folder
        (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN))
        assert main(["simulate", str(folder / "plan.yaml"), "--out", str(folder / "inline")]) == 0
        self.federation = Federation("hn", "127.0.0.1", free_port(), free_port(), SITES, 30)
        provision(self.federation, folder / "kits")
        content = installed()
        import hashlib

        for name in SITES:
            kit = self.kit(name)
            approve(kit, hashlib.sha256(content).hexdigest(), content)
            self.be_lenient(name)
            phantom = "nyu" if name == "nyu" else "miccai"
            candidates = sorted((folder / "cache" / "phantom").glob(f"{name}-*")) or sorted(
                (folder / "cache" / "phantom").glob(f"{phantom}-*")
            )
            self.write_site(name, candidates[0])
        self.machines: list[Machine] = []

    def kit(self, name: str) -> Kit:
        return read_kit(self.folder / "kits" / name, "server" if name == "server" else "site")

    def be_lenient(self, name: str, weights: str = "any") -> None:
        """The site's policy, as these plans need it: those without sums leave nothing to derive."""
        lines = [*LENIENT, f"weights: {weights}"]
        (self.kit(name).folder / "policy.yaml").write_text("\n".join(lines) + "\n")

    def write_site(self, name: str, root: Path, path: str = "") -> Path:
        file = self.folder / (path or f"{name}.yaml")
        state = self.folder / "state" / (path or name)
        file.write_text(f"name: {name}\nroot: {root}\ncache: {state}/cache\nstate: {state}/state\n")
        return file

    def start(self, machine: Machine) -> Machine:
        self.machines.append(machine)
        return machine

    def client(self, name: str) -> Machine:
        files = (self.folder / "kits" / name, "--site", self.folder / f"{name}.yaml")
        return self.start(hnfed(self.folder / f"{name}.log", "client", *files))

    def server(self) -> Machine:
        log = self.folder / "server.log"
        log.unlink(missing_ok=True)
        machine = self.start(hnfed(log, "server", self.folder / "kits" / "server"))
        assert machine.says("ready:", 90), log.read_text()
        return machine


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("deployment"))
    try:
        yield made
    finally:
        for machine in reversed(made.machines):
            machine.end()
