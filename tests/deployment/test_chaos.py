"""Processes killed and stopped, the network slowed and cut, in a federation over TLS.

Each part is a run of its own: `pytest -m chaos tests/deployment -k part0`. Its journal is replayed
in one process, with only the updates that were accepted: every committed round must come out again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import server.dispatch
from core.journal import read_events
from core.wire.checkpoint import load
from core.wire.round_checkpoints import RoundStore
from hnfed.cli.main import main
from server.rounds import PhaseRun
from tests.deployment.conftest import PLAN, SITES, Machine, Place, free_port, hnfed
from tests.deployment.proxy import Proxy, dial_through

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3000)]
DEADLINE_S, AFTER_S, RETRIES = 75.0, 10.0, 4
ROUNDS, SITES_HURT = (12, 8), (2, 3)  # by part
SERVER_AFTER = ((2, 5, 8), (0, 3, 6))  # rounds after which the server is hurt, by part
Fault = Callable[["Stage", str], None]


@dataclass
class Stage:
    """The federation under test."""

    place: Place
    proxies: dict[str, Proxy]
    clients: dict[str, Machine]
    server: Machine
    down_s: float = 0.0  # how long the server was away since its run began
    healing: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    def later(self, seconds: float, what: Callable[[], object]) -> None:
        self.healing.append((time.monotonic() + seconds, what))

    def heal(self, *, now: bool = False) -> None:
        due = [h for h in self.healing if now or h[0] <= time.monotonic()]
        self.healing = [h for h in self.healing if h not in due]
        for _, what in due:
            with contextlib.suppress(ProcessLookupError):
                what()


def below(pid: int, word: str, seconds: float = 25.0) -> int:
    """A process of that session whose command line has a word; waits for it to appear."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parts = (folder / "stat").read_text().rpartition(")")[2].split()
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                ours = pid in (int(parts[1]), int(parts[3])) or _ancestor(int(folder.name), pid)
                if ours and parts[0] not in "ZX" and word in line:
                    return int(folder.name)
        time.sleep(0.2)
    raise ProcessLookupError(word)


def _ancestor(pid: int, wanted: int) -> bool:
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
        if pid == wanted:
            return True
    return False


def kill(word: str) -> Fault:
    """SIGKILL to a process of the site."""
    return lambda stage, site: os.kill(below(stage.clients[site].process.pid, word), signal.SIGKILL)


def stop(word: str, seconds: float) -> Fault:
    """The process stands still for so long."""

    def act(stage: Stage, site: str) -> None:
        pid = below(stage.clients[site].process.pid, word)
        os.kill(pid, signal.SIGSTOP)
        stage.later(seconds, lambda: os.kill(pid, signal.SIGCONT))

    return act


def network(seconds: float, **how: Any) -> Fault:
    """The site's connection misbehaves for so long."""

    def act(stage: Stage, site: str) -> None:
        for name, value in how.items():
            setattr(stage.proxies[site], name, value)
        stage.later(seconds, stage.proxies[site].heal)

    return act


def cut(stage: Stage, site: str) -> None:
    if not stage.proxies[site].cut():
        raise ProcessLookupError("nothing to cut")


def kill_client(stage: Stage, site: str) -> None:
    """The whole client of a site, and started again as systemd would."""
    stage.clients[site].end(signal.SIGKILL)
    stage.later(8.0, lambda: stage.clients.update({site: stage.place.client(site)}))


def kill_of_server(word: str) -> Fault:
    return lambda stage, site: os.kill(below(stage.server.process.pid, word), signal.SIGKILL)


def kill_server(stage: Stage, site: str) -> None:
    """The whole server, and started again as systemd would."""
    stage.server.end(signal.SIGKILL)
    begun = time.monotonic()
    for _ in range(5):
        time.sleep(6.0)
        with contextlib.suppress(AssertionError):
            stage.server = stage.place.server()
            stage.down_s += time.monotonic() - begun
            return
    raise AssertionError("the server did not come up again")


SITE_FAULTS: dict[str, Fault] = {
    "app killed": kill("hnfed.guard.worker"),
    "app stopped for 10 s": stop("hnfed.guard.worker", 10.0),
    "app stopped beyond the deadline": stop("hnfed.guard.worker", DEADLINE_S + 15.0),
    "node killed": kill("hnfed.deploy.node"),
    "node stopped for 15 s": stop("hnfed.deploy.node", 15.0),
    "client killed": kill_client,
    "connections cut": cut,
    "cut in the middle of a message": network(8.0, cut_after=3000),
    "slow network": network(20.0, delay_s=0.3),
    "nothing passes for 15 s": network(15.0, stalled=True),
    "nothing passes beyond the deadline": network(DEADLINE_S + 15.0, stalled=True),
    "no connection for 15 s": network(15.0, refusing=True),
}
SERVER_FAULTS: dict[str, Fault] = {
    "nginx killed": kill_of_server("nginx"),
    "SuperLink killed": kill_of_server("flower-superlink"),
    "ServerApp killed": kill_of_server("flwr-serverapp"),
    "server killed": kill_server,
}


@pytest.fixture(scope="module")
def proxies(place: Place) -> Iterator[dict[str, Proxy]]:
    made = {s: Proxy(place.kit("server"), place.kit(s), free_port()) for s in SITES}
    for site, proxy in made.items():
        dial_through(place.kit(site), proxy.port)
    yield made
    for proxy in made.values():
        proxy.close()


def plan_of(place: Place, name: str, rounds: int) -> Path:
    plan = json.loads(json.dumps(PLAN))
    first = plan["phases"][0] | {"rounds": rounds, "patience": 10**6, "test": False}
    plan["phases"] = [first]
    plan["loss"] = {"class_weight": "none"}
    plan["federation"] |= {"min_sites": 1, "round_timeout_s": DEADLINE_S, "round_retries": RETRIES,
                           "query_timeout_s": 150}  # fmt: skip
    path = place.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


def rounds_of(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    found = {}
    for event in events:
        if event["event"] == "round":
            assert event["round"] not in found, "a round is told once"
            found[event["round"]] = event
    return found


def shaken(stage: Stage, run: Machine, folder: Path, seed: int) -> tuple[Counter[str], Any]:
    """Faults in every round until the run ends; returns them, and the weights of each round."""
    chance, faults, kept = random.Random(seed), Counter[str](), {}
    shaken_in, seen = set(), 0
    order = [n for _ in range(8) for n in chance.sample(sorted(SITE_FAULTS), len(SITE_FAULTS))]
    servers = chance.sample(sorted(SERVER_FAULTS), len(SERVER_FAULTS))
    limit = time.monotonic() + 2700.0
    while run.process.poll() is None and time.monotonic() < limit:
        stage.heal()
        _keep(folder, kept)
        seen = _told(folder)
        if (folder / "journal.jsonl").is_file() and seen not in shaken_in and _begun(folder):
            shaken_in.add(seen)
            sites = chance.sample(SITES, SITES_HURT[seed])
            if seen in SERVER_AFTER[seed] and servers:
                faults += _hurt(stage, servers.pop(), SERVER_FAULTS, "")
            for site in sites:
                faults += _hurt(stage, order.pop(), SITE_FAULTS, site)
        time.sleep(0.3)
    stage.heal(now=True)
    _keep(folder, kept)
    return faults, kept


def _hurt(stage: Stage, name: str, faults: dict[str, Fault], site: str) -> Counter[str]:
    try:
        faults[name](stage, site)
    except ProcessLookupError:  # it is down already: no fault was made
        return Counter()
    print(f"{time.strftime('%H:%M:%S')} {site or 'server'}: {name}", flush=True)
    return Counter([name])


def _begun(folder: Path) -> bool:
    return any(e["event"] == "phase-start" for e in read_events(folder / "journal.jsonl"))


def _told(folder: Path) -> int:
    path = folder / "journal.jsonl"
    events = read_events(path) if path.is_file() else []
    return max((e["round"] for e in events if e["event"] == "round"), default=0)


def _keep(folder: Path, kept: dict[int, Any]) -> None:
    """Copies the weights of each committed round before later rounds replace them."""
    store = RoundStore(folder / "state" / "pretrain")
    for round_ in store.rounds() if store.folder.is_dir() else []:
        if round_ not in kept:
            with contextlib.suppress(Exception):
                kept[round_] = store.get(round_)[0]


def replayed(place: Place, plan: Path, accepted: dict[int, list[str]]) -> dict[int, Any]:
    """The same plan in one process, with only the updates that were accepted."""
    real, folder = server.dispatch.exchange, place.folder / f"{plan.stem}-replayed"

    def only_accepted(*arguments: Any, **options: Any) -> Any:
        done = real(*arguments, **options)
        for site in list(done.replies):
            order = arguments[1][site]["order"]
            if options["kind"] == "train" and site not in accepted[int(order["round"])]:
                del done.replies[site]
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.dispatch, "exchange", only_accepted)
        patch.setattr(RoundStore, "prune", lambda *_: None)
        patch.setattr(PhaseRun, "_require_whole", lambda *_: None)  # a rule of simulations alone
        assert main(["simulate", str(plan), "--out", str(folder)]) == 0
    store = RoundStore(folder / "state" / "pretrain")
    return {r: store.get(r)[0] for r in store.rounds()}


@pytest.mark.parametrize("part", [0, 1], ids=["part0", "part1"])
def test_faults_of_processes_and_network(
    place: Place, proxies: dict[str, Proxy], part: int
) -> None:
    begun = time.monotonic()
    name = f"chaos{part}"
    rounds_asked = ROUNDS[part]
    plan, kit = plan_of(place, name, rounds_asked), place.folder / "kits" / "server"
    folder = kit / "runs" / name
    stage = Stage(place, proxies, {}, place.server())
    stage.clients = {site: place.client(site) for site in SITES}
    try:
        run = hnfed(place.folder / f"{name}.log", "run", plan, "--server", kit, "--name", name,
                    "--auto-resume")  # fmt: skip
        faults, kept = shaken(stage, run, folder, part)
        assert run.process.wait(60) == 0, run.log.read_text()
    finally:
        stage.heal(now=True)
        for machine in (*stage.clients.values(), stage.server):
            machine.end()
    events = read_events(folder / "journal.jsonl")
    rounds = rounds_of(events)
    assert sorted(rounds) == list(range(1, rounds_asked + 1)), "no committed round is lost"
    tries = Counter(e["text"].split(":")[0] for e in events if "asked again" in e.get("text", ""))
    for number, event in rounds.items():
        limit = (1 + tries[f"round {number}"]) * (DEADLINE_S + AFTER_S) + stage.down_s
        assert event["seconds"] <= limit, (number, event["seconds"], "hung past its deadline")
    accepted = {n: e["accepted"] for n, e in rounds.items()}
    again = replayed(place, plan, accepted)
    compared = 0
    for number in sorted(set(kept) & set(again)):
        for key, tensor in again[number].items():
            worst = float((kept[number][key] - tensor).abs().max())
            assert worst <= 1e-6, (number, key, worst)
        compared += number > 0
    last = load(folder / "checkpoints" / "pretrain" / "last.safetensors")[0]
    assert all(torch.isfinite(tensor).all() for tensor in last.values())
    lost = Counter(e["code"] for e in events if e["event"] == "rejected" and e["round"])
    starts = sum(e["event"] == "run-start" for e in events)
    print(f"{name}: {faults.total()} faults of {len(faults)} kinds in {len(rounds)} rounds and "
          f"{starts} starts, {time.monotonic() - begun:.0f} s; refused: {dict(lost)}; {compared} "
          "rounds computed again from their accepted updates")  # fmt: skip
    assert faults.total() >= 20
    assert lost, "the faults cost replies"
    assert compared >= rounds_asked - 1
    shutil.rmtree(place.folder / f"{name}-replayed", ignore_errors=True)
