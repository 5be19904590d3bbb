"""/health and /metrics on a Unix socket; what stands in the metrics."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import stat
from pathlib import Path

import pytest

from core.errors import UserError
from hnfed.watch.endpoint import listening
from hnfed.watch.kit_state import ClientState, ServerState
from hnfed.watch.metrics import METRICS, prometheus
from hnfed.watch.run_state import OrganState, PhaseState, RunState, SiteState

ROOT = Path(__file__).resolve().parents[3]
LINE = re.compile(r'([a-z_]+)(?:\{([a-z]+="(?:[^"\\\n]|\\["\\n])*",?)+\})? -?[0-9.e+-]+')


class Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self._path))


def asked(path: Path, url: str, method: str = "GET") -> tuple[int, str]:
    connection = Unix(path)
    try:
        connection.request(method, url)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def parsed(text: str) -> dict[str, list[str]]:
    """Name -> its lines, after each line was held against the format."""
    found: dict[str, list[str]] = {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# "):
            kind, name = line.split()[1:3]
            assert kind in ("HELP", "TYPE")
            assert name in METRICS
            continue
        match = LINE.fullmatch(line)
        assert match is not None, line
        found.setdefault(match[1], []).append(line)
    return found


def run() -> RunState:
    organs = [OrganState("Brainstem", 0.5, [(0, 0.5)], {"a": 0.5, "b": None}, True, 0.6),
              OrganState("Larynx", None, withheld=True)]  # fmt: skip
    phase = PhaseState("p", "running", 1, 4, 0, "all", 0.5, seconds_left=9.0, organs=organs)
    return RunState("r", 'r-"1', "running", phase=0, phases=[phase], last_event=1.5,
                    sites=[SiteState("a", "training", answered=3)])  # fmt: skip


def test_health_and_metrics_are_answered(tmp_path: Path) -> None:
    wells = [True]
    path = tmp_path / "m.sock"
    before = os.umask(0)
    os.umask(before)
    with listening(path, lambda: (wells[0], "text\n")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.umask(before) == before, "given back"
        assert asked(path, "/metrics") == (200, "text\n")
        assert asked(path, "/health") == (200, '{"well": true}\n')
        assert asked(path, "/")[0] == 404
        assert asked(path, "/metrics", "POST")[0] == 501
        with (
            pytest.raises(UserError, match="somebody listens"),
            listening(path, lambda: (True, "")),
        ):
            pass
    assert not path.exists()
    with listening(path, lambda: (False, "")):
        assert asked(path, "/health")[0] == 503


def test_a_socket_that_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with listening(path, lambda: (True, "x\n")):
        assert asked(path, "/metrics")[1] == "x\n"
    path.write_text("mine")
    with pytest.raises(UserError, match="a file stands there"), listening(path, lambda: (True, "")):
        pass
    assert path.read_text() == "mine"


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    with pytest.raises(UserError, match="107 bytes"), listening(long, lambda: (True, "")):
        pass


def test_a_run_in_prometheus_text() -> None:
    gpu = {"index": 0, "name": "X", "busy": 40.0, "used_bytes": 3, "bytes": 80}
    here = {"processes": 2, "memory_bytes": 5, "gpus": [gpu]}
    found = parsed(
        prometheus(ServerState("hn", "fed:1", True, {"a": True, "b": None}, run()), here)
    )
    assert found["hnfed_up"] == ['hnfed_up{role="server"} 1.0']
    assert found["hnfed_site_connected"][1] == 'hnfed_site_connected{site="b"} 0.0'
    assert found["hnfed_run_state"] == ['hnfed_run_state{run="r-\\"1",state="running"} 1.0']
    assert len(found["hnfed_dice"]) == 2, "what is withheld has no line"
    assert not any("Larynx" in line for line in found["hnfed_dice"])
    assert found["hnfed_gpu_busy_ratio"] == ['hnfed_gpu_busy_ratio{gpu="0"} 0.4']


def test_a_sites_own_scores_are_in_no_metric() -> None:
    exact = [OrganState("Larynx", 0.123456, [(1, 0.123456)])]
    state = ClientState("a", "hn", "connected", replies={"OK": 2}, organs=exact, bytes=7)
    text = prometheus(state, {})
    found = parsed(text)
    assert "0.123456" not in text
    assert "Larynx" not in text
    assert found["hnfed_replies_total"] == ['hnfed_replies_total{code="OK"} 2.0']
    assert json.dumps(state.to_json()).count("Larynx") == 1, "on this site's own screen"


def test_each_metric_is_documented() -> None:
    page = (ROOT / "docs" / "watch.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(hnfed_\w+)`", page, flags=re.M)) == set(METRICS)
