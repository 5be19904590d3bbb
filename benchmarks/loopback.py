"""A federation on the loopback address: kits, `hnfed server`, and sites that compute nothing.

All that lies between the server's rounds and a site is the real thing: nginx, Flower's SuperLink,
TLS, node keys and `hnfed.guard.fleet`. What a site does with an order is left out, and so is what
its guard looks at. Processes are started here and ended by their ids.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.light_site import answer, described
from core.errors import UserError
from core.journal import JOURNAL, read_events
from core.plan.load import plan_from_json
from core.processes import end, with_parent
from hnfed.deploy.provision import Federation, provision
from hnfed.deploy.superlink import ADMITTED
from hnfed.guard.fleet import Arrival, Connection, FleetError, connect
from hnfed.guard.kit import Kit, private_key, read_kit
from hnfed.guard.proxy import http_options
from hnfed.watch.processes import memory_bytes
from simulations.supervise import owned

ROOT = Path(__file__).resolve().parents[1]
MARK, LOG = "HNFED_LOOPBACK", "server.log"
POLL_SECONDS = 1.0  # as `hnfed.guard.node` does
SAMPLE_SECONDS = 0.5
READY_SECONDS, RUN_SECONDS = 900.0, 900.0
MOST_BYTES = 2**31
TICKS = os.sysconf("SC_CLK_TCK")
# By what their command lines hold; the first that fits.
PROCESSES = {"superlink": "flower-superlink", "nginx": "nginx", "server": "serverapp"}
OTHER = "other"


@dataclass(frozen=True)
class Sample:
    """One look at the server's processes.

    Attributes:
        time: of `time.time`.
        cpu: CPU seconds so far by process, a key of `PROCESSES` or `OTHER`.
        pss_mb: memory of all of them; pages that several share count once.
    """

    time: float
    cpu: Mapping[str, float]
    pss_mb: float


class Watch(threading.Thread):
    """Samples all processes that carry a mark, and their children, until `over`."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self.mark, self.over = mark, threading.Event()
        self.samples: list[Sample] = []
        self._ended: dict[int, tuple[str, float]] = {}

    def run(self) -> None:
        """Until `over` is set."""
        while not self.over.wait(SAMPLE_SECONDS):
            self.samples.append(self.look())

    def look(self) -> Sample:
        """The processes now; what ended ones had used is not forgotten."""
        living = owned(self.mark)
        for process in living:
            if (found := _used(process)) is not None:
                self._ended[process] = found
        cpu = dict.fromkeys((*PROCESSES, OTHER), 0.0)
        for name, seconds in self._ended.values():
            cpu[name] += seconds
        return Sample(time.time(), cpu, memory_bytes(living) / 1e6)

    def cpu_between(self, begun: float, ended: float) -> dict[str, float]:
        """CPU seconds by process between two moments of `time.time`."""
        first = min(self.samples, key=lambda s: abs(s.time - begun))
        last = min(self.samples, key=lambda s: abs(s.time - ended))
        return {name: last.cpu[name] - first.cpu[name] for name in last.cpu}

    def peak_mb(self, begun: float, ended: float) -> float:
        """Most memory between two moments of `time.time`."""
        return max((s.pss_mb for s in self.samples if begun <= s.time <= ended), default=0.0)


def _used(process: int) -> tuple[str, float] | None:
    folder = Path(f"/proc/{process}")
    try:
        line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        values = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None  # gone meanwhile
    name = next((name for name, part in PROCESSES.items() if part in line), OTHER)
    return name, (int(values[11]) + int(values[12])) / TICKS


class Node(threading.Thread):
    """A site that dials the server, asks each second for an order, and answers at once."""

    def __init__(self, kit: Kit) -> None:
        super().__init__(daemon=True, name=kit.role)
        self.kit, self.over, self.failed = kit, threading.Event(), ""
        self.connected = threading.Event()

    def run(self) -> None:
        """Until `over` is set, or the connection is lost."""
        kit = self.kit
        try:
            connection = connect(f"{kit.host}:{kit.port}", private_key(kit), http_options(kit))
            self.connected.set()
            while not self.over.is_set():
                arrival = connection.receive()
                if arrival is None:
                    self.over.wait(POLL_SECONDS)
                else:
                    _answered(connection, arrival, kit.role)
            connection.close()
        except (FleetError, UserError, httpx.HTTPError) as error:
            self.failed = f"{kit.role}: {type(error).__name__}: {error}"


def _answered(connection: Connection, arrival: Arrival, site: str) -> None:
    begun = time.monotonic()
    plan = plan_from_json(connection.run(arrival).config["plan"])
    content = connection.content(arrival, MOST_BYTES)
    order, arrays = content["order"], content.get("arrays", b"")
    assert isinstance(order, dict)
    assert isinstance(arrays, bytes)
    if arrival.kind == "query":
        connection.send(arrival, *described(site, plan))
        return
    header, metrics, parcel = answer(site, plan, order, arrays)
    metrics["startup"] = time.monotonic() - begun  # all but the work, as a site's guard tells it
    connection.send(arrival, header, metrics, parcel)


@dataclass
class Loopback:
    """A running federation.

    Attributes:
        kits: folder of the kits.
        sites: names of all that have a kit; the first of them are connected.
        watch: of the server's processes.
        nodes: of the sites.
    """

    kits: Path
    sites: Sequence[str]
    watch: Watch
    nodes: list[Node] = field(default_factory=list)

    def connect(self, count: int) -> None:
        """Has the first `count` sites connected; none of them leaves again.

        Raises:
            RuntimeError: one does not get through.
        """
        more = [Node(read_kit(self.kits / s, "site")) for s in self.sites[len(self.nodes) : count]]
        for node in more:
            node.start()
        self.nodes += more
        _wait(lambda: all(node.connected.is_set() for node in more), self.kits.parent / LOG)

    def run(self, plan: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
        """Runs a plan by `hnfed run`; returns its journal.

        Raises:
            RuntimeError: it did not complete.
        """
        path = self.kits.parent / f"{name}.yaml"
        path.write_text(json.dumps(plan))  # YAML too
        command = [sys.executable, "-m", "hnfed.cli.main", "run", str(path)]
        command += ["--server", str(self.kits / "server"), "--name", name]
        log = path.with_suffix(".log")
        with log.open("wb") as file:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env=_environment(), cwd=self.kits.parent, start_new_session=True,
                preexec_fn=with_parent,
            )  # fmt: skip
        try:
            code = child.wait(RUN_SECONDS)
        finally:
            end(child)
        failed = [node.failed for node in self.nodes if node.failed]
        if code or failed:
            told = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the run ended with {code}\n{told}\n{failed[:3]}")
        return read_events(self.kits / "server" / "runs" / name / JOURNAL)


@contextmanager
def loopback(folder: Path, count: int) -> Iterator[Loopback]:
    """The server of `count` sites below a folder, none of them connected; ended with the block.

    Args:
        folder: empty, or to be made.
        count: of the sites.

    Raises:
        RuntimeError: the server does not come up; nginx is missing.
    """
    if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        raise RuntimeError("nginx is missing: apt install nginx")
    sites = tuple(f"s{i:03}" for i in range(count))
    kits = folder / "kits"
    provision(Federation("cost", "127.0.0.1", _port(), _port(), sites, 30), kits)
    mark = str(folder)
    log = folder / LOG
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "hnfed.cli.main", "server", str(kits / "server")],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=folder,
            env=_environment() | {MARK: mark}, start_new_session=True, preexec_fn=with_parent,
        )  # fmt: skip
    made = Loopback(kits, sites, Watch(f"{MARK}={mark}"))
    try:
        _wait(lambda: "ready:" in log.read_text(errors="replace"), log)
        admitted = kits / "server" / "flower" / ADMITTED
        _wait(lambda: admitted.is_file() and len(json.loads(admitted.read_text())) == count, log)
        made.watch.start()
        yield made
    finally:
        for node in made.nodes:
            node.over.set()
        for node in made.nodes:
            node.join(10.0)
        made.watch.over.set()
        end(server)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(ready: Any, log: Path) -> None:
    limit = time.monotonic() + READY_SECONDS
    while not ready():
        if time.monotonic() > limit:
            raise RuntimeError(f"the federation does not come up:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)
