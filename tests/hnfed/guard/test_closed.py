"""A worker loads its libraries before there is an order, and one dies with each message."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hnfed.guard.closed import Limits, Workers
from hnfed.guard.log import Log
from hnfed.guard.sandbox import runtime_paths

# Tells who answers, what was loaded before it and whether it is alone; leaves a file behind.
APP = """
import os, sys
loaded = "torch" in sys.modules
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
def app(message, context):
    open("left", "w").write("x")
    told = {"pid": os.getpid(), "loaded": loaded, "left": len(os.listdir("."))}
    return Message(RecordDict({"header": ConfigRecord(told)}), reply_to=message)
"""


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    code = tmp_path / "code"
    for name in ("client", "core", "core/wire"):
        (code / name).mkdir(parents=True)
        (code / name / "__init__.py").touch()
    (code / "core" / "wire" / "messages.py").touch()
    (code / "client" / "app.py").write_text(APP)
    return {
        "kind": "train", "code": str(code), "devices": ["cpu"], "gpu_memory_share": 1.0,
        "records": {"order": {"run": "r"}}, "run_config": {}, "node_config": {},
    }  # fmt: skip


def test_the_next_worker_waits_with_its_libraries_loaded(
    tmp_path: Path, task: dict[str, Any]
) -> None:
    workers = Workers(tmp_path / "scratch", Log(tmp_path))
    workers.get_ready()
    waiting = workers._waiting
    assert waiting is not None
    pid = waiting._child.pid
    limit = time.monotonic() + 60
    while "/torch/lib/" not in Path(f"/proc/{pid}/maps").read_text():
        assert time.monotonic() < limit
        time.sleep(0.1)
    told = []
    for _ in range(2):
        with workers.taken() as worker:
            walls = {
                "read": [str(p) for p in (*runtime_paths(), Path(task["code"]))],
                "write": [str(worker.scratch)], "devices": [], "memory_bytes": 8 << 30,
            }  # fmt: skip
            values, _ = worker.work(task | {"walls": walls}, {}, Limits(60, 1000))
            told.append(values["records"]["header"])
        assert not (tmp_path / "scratch").exists()
        assert not alive(told[-1]["pid"])
    assert told[0]["pid"] == pid, "the one that waited answered"
    assert told[1]["pid"] != pid, "one message a process"
    assert [t["loaded"] for t in told] == [True, False]
    assert [t["left"] for t in told] == [1, 1]


def test_one_that_died_as_it_waited_is_replaced(tmp_path: Path, task: dict[str, Any]) -> None:
    workers = Workers(tmp_path / "scratch", Log(tmp_path))
    workers.get_ready()
    assert workers._waiting is not None
    dead = workers._waiting._child.pid
    os.kill(dead, signal.SIGKILL)
    workers._waiting._child.wait()
    with workers.taken() as worker:
        values, _ = worker.work(task | {"walls": None}, {}, Limits(60, 1000))
    assert values["records"]["header"]["pid"] != dead


def test_none_waits_after_the_end(tmp_path: Path) -> None:
    workers = Workers(tmp_path / "scratch", Log(tmp_path))
    workers.get_ready()
    assert workers._waiting is not None
    pid = workers._waiting._child.pid
    workers.close()
    workers.close()
    assert not alive(pid)
    assert not (tmp_path / "scratch").exists()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
