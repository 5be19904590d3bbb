"""Several processes of one order: all within the walls, and none of them outlives it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from core.plan.schema import Train
from core.wire.state import unpacked
from hnfed.deploy.node import house_of
from hnfed.guard import closed
from hnfed.guard.closed import Limits, OvertimeError, Workers
from hnfed.guard.log import Log
from hnfed.guard.node import Desk
from hnfed.guard.sandbox import enforceable, runtime_paths
from tests.client.conftest import tiny_phase, tiny_plan
from tests.hnfed.guard.conftest import LENIENT, ORGANS, Hospital

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [
    pytest.mark.skipif(not enforceable().whole, reason="no walls on this machine"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core alone"),
]
# What a process beside the first tries, and what the first hears of it.
BESIDE = """
import os, socket, time
def tried(what):
    try:
        what()
    except OSError as error:
        return error.strerror
    return "done"
def beside(group, out, seconds):
    found = {
        "tcp": tried(lambda: socket.socket(socket.AF_INET)),
        "udp": tried(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)),
        "unix": tried(lambda: socket.socket(socket.AF_UNIX)),
        "pair": tried(lambda: socket.socketpair()),
        "secret": tried(lambda: open(os.path.join(out, "..", "secret")).read()),
        "root": tried(lambda: os.listdir("/")),
        "session": tried(lambda: os.setsid()),
        "guard": tried(lambda: os.kill(GUARD, 0)),
    }
    group.send({"pid": os.getpid(), "group": os.getpgrp(), "maker": os.getppid(), "found": found})
    with open(os.path.join(out, "pids"), "a") as file:
        file.write(f"{os.getpid()} {os.getppid()}\\n")
    time.sleep(seconds)
"""
APP = """
import json
from flwr.app import ConfigRecord, Message, RecordDict
from client.beside import beside
from core.training import ranks
def app(message, context):
    config = context.node_config
    def mine(group):
        return group.receive(1)
    told = ranks.together(
        mine, (beside, (config["out"], config["seconds"])), ranks.devices_of("cpu:2"), 1
    )
    content = RecordDict({"header": ConfigRecord({"told": json.dumps(told)})})
    return Message(content, reply_to=message)
"""


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    """An order for two processes, within walls: they may write to ``out`` alone."""
    code = tmp_path / "code"
    shutil.copytree(ROOT / "core", code / "core", ignore=shutil.ignore_patterns("__pycache__"))
    (code / "client").mkdir()
    (code / "client" / "__init__.py").touch()
    (code / "client" / "beside.py").write_text(BESIDE.replace("GUARD", str(os.getpid())))
    (code / "client" / "app.py").write_text(APP)
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").write_text("key")
    walls = {
        "read": [str(path) for path in (*runtime_paths(), code)],
        "write": [str(tmp_path / "out")],
        "devices": [],
        "memory_bytes": 8 << 30,
    }
    return {
        "kind": "train", "code": str(code), "devices": ["cpu", "cpu"], "gpu_memory_share": 1.0,
        "records": {"order": {"run": "r"}}, "run_config": {}, "walls": walls,
        "node_config": {"out": str(tmp_path / "out"), "seconds": 0.0},
    }  # fmt: skip


def answered(folder: Path, task: dict[str, Any], seconds: float = 120) -> dict[str, Any]:
    with Workers(folder / "scratch", Log(folder)).taken() as worker:
        task["walls"]["write"].append(str(worker.scratch))
        values, _ = worker.work(task, {}, Limits(seconds, 1000))
    told: dict[str, Any] = json.loads(values["records"]["header"]["told"])
    return told


def test_the_others_are_within_the_walls_and_the_group(
    tmp_path: Path, task: dict[str, Any]
) -> None:
    told = answered(tmp_path, task)
    refused = {"Operation not permitted", "Permission denied"}
    assert set(told["found"].values()) <= refused, told["found"]
    assert told["group"] == told["maker"], "that the guard ends as a whole"
    assert gone(told["pid"], told["maker"])


def test_an_order_that_takes_too_long_leaves_nobody(tmp_path: Path, task: dict[str, Any]) -> None:
    task["node_config"]["seconds"] = 600.0
    with pytest.raises(OvertimeError):
        answered(tmp_path, task, 20)
    assert gone(*pids(tmp_path))


GUARD = """
import json, sys
from pathlib import Path
from hnfed.guard.closed import Limits, Workers
from hnfed.guard.log import Log
root, task = Path(sys.argv[1]), json.loads(sys.argv[2])
with Workers(root / "scratch", Log(root)).taken() as worker:
    task["walls"]["write"].append(str(worker.scratch))
    worker.work(task, {}, Limits(600, 1000))
"""


@pytest.mark.parametrize("victim", ["guard", "first", "other"])
def test_whoever_is_killed_nobody_stays(tmp_path: Path, task: dict[str, Any], victim: str) -> None:
    task["node_config"]["seconds"] = 600.0
    guard = subprocess.Popen(
        [sys.executable, "-c", GUARD, tmp_path, json.dumps(task)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while len(found := pids(tmp_path)) < 2:
        assert time.monotonic() < limit
        assert guard.poll() is None
        time.sleep(0.1)
    other, first = found
    os.kill({"guard": guard.pid, "first": first, "other": other}[victim], signal.SIGKILL)
    guard.wait(60)
    assert gone(other, first)


def pids(folder: Path) -> list[int]:
    """Of a process beside the first, and of the first, once they have begun."""
    path = folder / "out" / "pids"
    return [int(word) for word in path.read_text().split()] if path.is_file() else []


def gone(*processes: int) -> bool:
    limit = time.monotonic() + 20
    while any(map(alive, processes)) and time.monotonic() < limit:
        time.sleep(0.1)
    return not any(map(alive, processes))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ---------------------------------------------------------------------- our own bundle, at work


@pytest.fixture
def two(tmp_path: Path, patients: Path, own_bundle: bytes) -> dict[str, Hospital]:
    """The same site with one process and with two; three cases train, two of them a batch."""
    train = Train(threads=1, deterministic=True, lr=0.01, batch=2, accumulate=2)
    plan = tiny_plan(tiny_phase(organs=list(ORGANS)), train=train)
    sites = {}
    for device in ("cpu", "cpu:2"):
        folder = tmp_path / device.replace(":", "")
        folder.mkdir()
        site = sites[device] = Hospital(folder, patients, own_bundle, plan)
        at(site, device)
    return sites


def at(hospital: Hospital, device: str) -> None:
    text = hospital.site_file.read_text()
    hospital.site_file.write_text(text.replace("device: cpu\n", f"device: {device}\n"))
    hospital.house = house_of(hospital.kit, hospital.site_file, hospital.said.append)
    hospital.desk = Desk(hospital.house, hospital.wire)  # type: ignore[arg-type]


@pytest.mark.slow
def test_orders_are_answered_as_by_one_process(two: dict[str, Hospital]) -> None:
    trained, scored = [], []
    for hospital in two.values():
        assert hospital.ask("query").code == "OK", hospital.log
        trained.append(hospital.ask("train", hospital.order(), arrays=hospital.start()))
        scored.append(
            hospital.ask("evaluate", hospital.order(task="test"), arrays=hospital.start())
        )
        assert [trained[-1].code, scored[-1].code] == ["OK", "OK"], hospital.log
    one, other = (said.state for said in trained)
    assert max(float((one[n] - other[n]).abs().max()) for n in one) <= 1e-5
    before = unpacked(two["cpu"].start())
    assert any(not torch.equal(one[name], value) for name, value in before.items())
    figures = [{**said.metrics, "seconds": 0, "startup": 0} for said in scored]
    assert figures[0] == figures[1]


def test_a_process_that_is_killed_is_answered_with_a_code(two: dict[str, Hospital]) -> None:
    hospital = two["cpu:2"]
    assert hospital.ask("query").code == "OK", hospital.log
    whole, killed = closed.Worker.work, []

    def work(worker: closed.Worker, *given: Any) -> Any:
        first = worker._child.pid

        def kill() -> None:
            limit = time.monotonic() + 60
            while not (children := children_of(first)) and time.monotonic() < limit:
                time.sleep(0.01)
            killed.extend([first, *children])
            os.kill(children[0], signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        return whole(worker, *given)

    with mock.patch.object(closed.Worker, "work", work):
        said = hospital.ask("train", hospital.order(), arrays=hospital.start())
    assert said.code == "E_SITE", hospital.log
    assert "process 1 of 0 to 1 ended" in hospital.log
    assert len(killed) == 2
    assert gone(*killed)
    again = hospital.ask("train", hospital.order(), arrays=hospital.start())
    assert again.code == "OK", hospital.log


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def test_a_batch_too_small_is_refused_before_anything_is_prepared(two: dict[str, Hospital]) -> None:
    hospital = two["cpu:2"]
    hospital.plan = replace(hospital.plan, train=replace(hospital.plan.train, batch=1))
    hospital.wire.config = hospital.settings(hospital.plan)
    assert hospital.ask("query").code == "E_SITE"
    assert "train.batch = 1" in hospital.log
    assert "write device: cpu" in hospital.log
    assert not (hospital.folder / "cache").exists()


def test_the_processes_share_the_policys_memory(two: dict[str, Hospital]) -> None:
    given: list[dict[str, Any]] = []

    def work(worker: closed.Worker, task: dict[str, Any], *_: Any) -> Any:
        given.append(task)
        raise OSError

    for hospital in two.values():
        hospital.policy(*LENIENT, "memory_gb: 8")
        with mock.patch.object(closed.Worker, "work", work):
            hospital.ask("query")
    assert [task["walls"]["memory_bytes"] for task in given] == [8 << 30, 4 << 30]
    assert [json.loads(t["node_config"]["site"])["device"] for t in given] == ["cpu", "cpu:2"]
