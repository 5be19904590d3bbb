"""A Ray cluster of two nodes in two network namespaces of this machine; one dies in a round.

The namespaces share the file system, as nodes of a cluster share a path. Ray runs with a token.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.journal import read_events
from tests.simulations.conftest import STUDY, TINY

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")
HEAD, OTHER = "10.77.0.1", "10.77.0.2"
ADDRESS = f"{HEAD}:6399"
WEIGHTS = ("checkpoints/pretrain/best.safetensors", "checkpoints/pretrain/last.safetensors",
           "sites/nyu/personalise/best.safetensors")  # fmt: skip
ROUNDS = ("phases.0.rounds=12", "phases.0.patience=12", "phases.1.rounds=1")


def may_make_namespaces() -> bool:
    if os.getuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"hnt{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root and ip netns"),
    pytest.mark.timeout(1500),
]


@dataclass
class Nodes:
    """Two namespaces with a cable between them, and the Ray nodes in them."""

    folder: Path
    names: tuple[str, str]
    ray: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        kept = {n: v for n, v in os.environ.items() if not n.startswith("RAY_")}
        return {
            **kept, "HOME": str(self.folder), "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"), "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip

    def within(self, name: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", name, *command]

    def start(
        self, name: str, cpus: int, *, mode: str = "token", without: Path | None = None
    ) -> None:
        """Starts the Ray node of a namespace, and waits until it is up.

        A folder that it is to be `without` is another, empty one there; `ip netns exec` gives what
        it starts mounts of its own.
        """
        head = name == self.names[0]
        words = [str(RAY), "start", "--block", f"--num-cpus={cpus}", "--disable-usage-stats",
                 "--object-store-memory=100000000"]  # fmt: skip
        words += (
            ["--head", f"--node-ip-address={HEAD}", f"--port={ADDRESS.partition(':')[2]}",
             "--include-dashboard=false", f"--temp-dir={self.folder}"]
            if head else [f"--node-ip-address={OTHER}", f"--address={ADDRESS}"]
        )  # fmt: skip
        if without is not None:
            script = 'mount -t tmpfs none "$0" && exec "$@"'
            words = ["sh", "-c", script, str(without), *words]
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            self.ray[name] = subprocess.Popen(
                self.within(name, *words), env={**self.environment, "RAY_AUTH_MODE": mode},
                stdout=out, stderr=out, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert self.ray[name].poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def pids(self, name: str) -> list[int]:
        shown = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        return [int(word) for word in shown.stdout.split()]

    def named(self, name: str, text: str) -> list[int]:
        """Processes of a namespace whose command line holds a text."""
        found = []
        for pid in self.pids(name):
            with suppress(OSError):
                if text in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                    found.append(pid)
        return found

    def kill(self, name: str) -> None:
        """All of a node at once, each process by its id, as when its power fails."""
        for _ in range(50):
            for pid in (left := self.pids(name)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                break
            time.sleep(0.1)
        assert self.pids(name) == []
        self.ray.pop(name).wait(30)

    def end(self) -> None:
        for name in self.names:
            if name in self.ray:
                self.kill(name)


@pytest.fixture(scope="module")
def cable() -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="hnr-", dir="/tmp"))
    (folder / "token").touch(0o600)
    (folder / "token").write_text(secrets.token_hex(32))
    end = os.getpid() % 10**6
    names = (f"hna{end}", f"hnb{end}")
    nodes = Nodes(folder, names)

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", f"va{end}", "netns", names[0], "type", "veth",
           "peer", "name", f"vb{end}", "netns", names[1])  # fmt: skip
        for name, address, link in zip(names, (HEAD, OTHER), ("va", "vb"), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"{link}{end}")
            ip("-n", name, "link", "set", f"{link}{end}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield nodes
    finally:
        nodes.end()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes(cable: Nodes) -> Iterator[Nodes]:
    yield cable
    cable.end()


class Run:
    """`hnfed` in the head's namespace, in a process of its own."""

    def __init__(self, nodes: Nodes, out: Path, *words: str) -> None:
        self.out, self.log = out, out.with_suffix(".log")
        command = [sys.executable, "-m", "hnfed.cli.main", *words, "--out", str(out)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                nodes.within(nodes.names[0], *command), cwd=ROOT, env=nodes.environment,
                stdout=log, stderr=log,
            )  # fmt: skip

    def ends(self, seconds: float = 600) -> int:
        return self.process.wait(seconds)

    def rounds(self, folder: str = "") -> list[int]:
        events = read_events(self.out / folder / "journal.jsonl")
        return [e["round"] for e in events if e["event"] == "round" and e["phase"] == "pretrain"]


def wait_for(holds: Callable[[], bool], run: Run, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert run.process.poll() is None, run.log.read_text()
        assert time.monotonic() < deadline, run.log.read_text()
        time.sleep(0.05)


@pytest.fixture
def words(tiny: list[str]) -> list[str]:
    return [w for w in tiny if not w.startswith("simulation.engine")] + [
        "simulation.cpus_per_site=1", "tracking.mode=disabled", *ROUNDS,
    ]  # fmt: skip


@pytest.fixture
def inline(nodes: Nodes, words: list[str], tmp_path: Path) -> Path:
    """The same run on this machine alone."""
    run = Run(nodes, tmp_path / "inline", "simulate", "smoke", *words, "simulation.engine=inline")
    assert run.ends() == 0, run.log.read_text()
    return run.out


def assert_equal_weights(run: Path, other: Path) -> None:
    for name in WEIGHTS:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


def test_a_node_dies_in_a_round_and_the_weights_are_those_of_one_machine(
    nodes: Nodes, words: list[str], inline: Path, tmp_path: Path
) -> None:
    """There is room on the other node: the site starts anew there, and its order is tried again."""
    head, other = nodes.names
    nodes.start(head, 2)
    nodes.start(other, 2)
    run = Run(nodes, tmp_path / "ray", "simulate", "smoke", *words, f"simulation.ray={ADDRESS}")
    wait_for(lambda: len(run.rounds()) > 1, run)
    assert nodes.named(head, "ClientAppActor") or nodes.named(other, "ClientAppActor")
    begun = time.monotonic()
    nodes.kill(other)
    before = len(run.rounds())
    wait_for(lambda: len(run.rounds()) > before + 1, run)
    print(f"next whole round {time.monotonic() - begun:.1f} s after the node's death")
    assert run.ends() == 0, run.log.read_text()
    assert run.rounds() == list(range(1, 13))
    assert_equal_weights(run.out, inline)
    deadline = time.monotonic() + 30
    while nodes.named(head, "ClientAppActor"):
        assert time.monotonic() < deadline, "a site outlives its run on the cluster"
        time.sleep(0.5)
    assert list((run.out / "flower").glob("launch-*")) == []


def test_without_room_on_the_other_node_the_round_is_repeated(
    nodes: Nodes, words: list[str], inline: Path, tmp_path: Path
) -> None:
    head, other = nodes.names
    nodes.start(head, 1)
    nodes.start(other, 1)
    words = [
        *words,
        "federation.round_timeout_s=45",
        "federation.min_sites=2",
        f"simulation.ray={ADDRESS}",
    ]
    run = Run(nodes, tmp_path / "ray", "simulate", "smoke", *words)
    wait_for(lambda: len(run.rounds()) > 1, run)
    nodes.kill(other)
    assert run.ends() == 0, run.log.read_text()
    assert run.rounds() == list(range(1, 13))
    events = read_events(run.out / "journal.jsonl")
    assert any("asked again" in str(e.get("text", e)) for e in events), run.log.read_text()
    plans = [json.loads((r / "plan.json").read_text()) for r in (run.out, inline)]
    for plan in plans:
        del plan["federation"]["round_timeout_s"], plan["federation"]["min_sites"]
    assert plans[0] == plans[1]
    assert_equal_weights(run.out, inline)


def test_what_cannot_be_joined_is_told_in_time(
    nodes: Nodes, words: list[str], tmp_path: Path
) -> None:
    head, other = nodes.names

    def refused(*more: str, folder: str = "no") -> str:
        out = tmp_path / folder
        run = Run(nodes, out, "simulate", "smoke", *words, *more)
        begun = time.monotonic()
        assert run.ends(120) == 1, run.log.read_text()
        print(f"refused after {time.monotonic() - begun:.1f} s with the start of Python: {more}")
        assert not out.exists()
        return run.log.read_text()

    assert "no Ray cluster answers there" in refused(f"simulation.ray={ADDRESS}")
    assert "no Ray cluster answers there" in refused("simulation.ray=10.77.0.9:6399", folder="far")
    shared = tmp_path / "shared"
    shared.mkdir()
    nodes.start(head, 1)
    nodes.start(other, 1, without=shared)
    (nodes.folder / "token").rename(nodes.folder / "kept")
    assert "asks for a token" in refused(f"simulation.ray={ADDRESS}", folder="untold")
    (nodes.folder / "token").write_text("0" * 64)
    assert "another token" in refused(f"simulation.ray={ADDRESS}", folder="wrong")
    (nodes.folder / "kept").rename(nodes.folder / "token")
    text = refused(f"simulation.ray={ADDRESS}", "simulation.cpus_per_site=9", folder="large")
    told = refused(f"simulation.ray={ADDRESS}", folder="shared/run")
    assert re.search(rf"node {OTHER} \(.*\): {shared}/run is not there", told), told
    assert re.search(r"cpus_per_site = 9\.0.*the largest node.* has 1 CPUs", text), text


def test_an_open_cluster_is_joined_only_where_the_plan_says_so(
    nodes: Nodes, words: list[str], tmp_path: Path
) -> None:
    nodes.start(nodes.names[0], 2, mode="disabled")
    words = [*words, "phases.0.rounds=1"]
    run = Run(nodes, tmp_path / "no", "simulate", "smoke", *words, f"simulation.ray={ADDRESS}")
    assert run.ends() == 1
    assert f"simulation.ray = {ADDRESS}: it asks for no token" in run.log.read_text()
    run = Run(nodes, tmp_path / "yes", "simulate", "smoke", *words, "simulation.ray=auto",
              "simulation.ray_insecure=true")  # fmt: skip
    assert run.ends() == 0, run.log.read_text()


def test_a_cell_whose_node_dies_goes_on_at_another(
    nodes: Nodes, phantom_cache: Path, tmp_path: Path
) -> None:
    settings = [*TINY, "simulation.cpus_per_site=1", f"simulation.cache={phantom_cache}"]
    study = tmp_path / "tiny.yaml"
    study.write_text(STUDY.format(settings=", ".join(s.replace("=", ": ", 1) for s in settings)))
    here = Run(nodes, tmp_path / "here", "grid", str(study), "--jobs", "2")
    assert here.ends() == 0, here.log.read_text()
    head, other = nodes.names
    nodes.start(head, 1)
    nodes.start(other, 1)
    out = tmp_path / "cells"
    words = ("grid", str(study), "--on", "ray", f"simulation.ray={ADDRESS}")
    run = Run(nodes, out, *words)
    pair = [f"pretrain-lr{v}-seed0" for v in "ab"]
    wait_for(lambda: all(len(run.rounds(name)) > 1 for name in pair), run)
    listed = Run(nodes, out, *words, "--list")
    assert listed.ends() == 0
    assert run.log.read_text().count(f"Ray at {ADDRESS}: running on ") == 2
    (pid,) = nodes.named(other, "hnfed.cli.main")
    (lost,) = [name for name in pair if name in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(run.rounds(lost)) < 100, "too fast to be killed"
    nodes.kill(other)
    assert run.ends(900) == 0, run.log.read_text()
    starts = {
        name: [
            e["resumed"]
            for e in read_events(out / name / "journal.jsonl")
            if e["event"] == "run-start"
        ]
        for name in pair
    }
    assert starts.pop(lost) == [False, True]
    assert list(starts.values()) == [[False]]
    for variant in "ab":
        for name in (f"pretrain-lr{variant}-seed0/{WEIGHTS[0]}",
                     f"frozen-lr{variant}-seed0/{WEIGHTS[2]}"):  # fmt: skip
            assert (out / name).read_bytes() == (here.out / name).read_bytes(), name
