"""Other accounts while a simulation runs: nothing to reach, nothing without a secret."""

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

import grpc
import pytest
from ray.core.generated import gcs_service_pb2

from core.packaging.app_bundle import app_dir
from simulations import launch, supervise
from tests.simulations.tiny_app import TWO_ORDERS, pyproject

PYPROJECT = pyproject()
SERVER = (
    TWO_ORDERS
    + """\
    assert len(list(grid.send_and_receive(messages, timeout=120))) == 2
    Path(context.run_config["out"]).write_text(os.environ["FLWR_HOME"])
    print("at work", flush=True)
    time.sleep(600)
"""
)
CLIENT = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    return Message(RecordDict({"m": ConfigRecord({"x": 1})}), reply_to=message)
"""
CALLER = """
import sys
from pathlib import Path
from simulations.launch import Clients, run_flower
work = Path(sys.argv[1])
run_flower(work / "tiny", {"out": str(work / "home")}, Clients(2), work_dir=work / "log",
           on_line=lambda line: print(line, flush=True))
"""
# What each kind of Ray's processes is asked for; a port that serves it must want the secret.
METHODS = {
    "GCS": "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "job": "/ray.rpc.JobInfoGcsService/AddJob",
    "values": "/ray.rpc.InternalKVGcsService/InternalKVPut",
    "lease": "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "objects": "/ray.rpc.ObjectManagerService/Push",
    "task": "/ray.rpc.CoreWorkerService/PushTask",
}
# As another account: joins the cluster at that address with a guess, and would run code there.
ATTACK = """
import os, sys, tempfile
home = tempfile.mkdtemp(prefix="other-")
os.environ.update(HOME=home, RAY_TMPDIR=home, RAY_AUTH_MODE=sys.argv[2], RAY_AUTH_TOKEN="0" * 64,
                  RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_gcs_server_request_timeout_seconds="3")
from ray._raylet import GcsClient
try:
    nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)
    print("IN", len(nodes))
except Exception as error:
    print("REFUSED", type(error).__name__, str(error)[:80].replace(chr(10), " "))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The private folder of a launch that is at work, all its processes up."""
    work = tmp_path_factory.mktemp("launch")
    for name, text in {
        "pyproject.toml": PYPROJECT, "server/app.py": SERVER, "client/app.py": CLIENT,
        "server/__init__.py": "", "client/__init__.py": "",
    }.items():  # fmt: skip
        (work / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "tiny" / name).write_text(text)
    (work / "caller.py").write_text(CALLER)
    environment = {**os.environ, "PYTHONPATH": str(app_dir()), "RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        [sys.executable, str(work / "caller.py"), str(work)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    ) as caller:  # fmt: skip
        assert caller.stdout is not None
        seen = []
        for line in caller.stdout:
            seen.append(line)
            if "at work" in line:
                break
        assert caller.poll() is None, "".join(seen)
        yield Path((work / "home").read_text())
        caller.send_signal(signal.SIGTERM)
        caller.stdout.read()
        assert caller.wait(60) == 128 + signal.SIGTERM


def sockets_of(pid: int) -> set[str]:
    """Inodes of the sockets that a process has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def listening(home: Path) -> dict[tuple[str, int], int]:
    """Process by (address as the kernel has it, port) of all TCP sockets of a launch that listen.

    UDP sockets, which no part of a launch needs, are among them.
    """
    owner = {
        inode: pid for pid in supervise.owned(f"FLWR_HOME={home}") for inode in sockets_of(pid)
    }
    found = {}
    for table, states in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == states and fields[9] in owner:
                address, port = fields[1].split(":")
                found[address, int(port, 16)] = owner[fields[9]]
    return found


def is_loopback(address: str) -> bool:
    """127.0.0.0/8, the same mapped into IPv6, or ::1, as `/proc/net` has it (little endian)."""
    if len(address) == 8:
        return address.endswith("7F")
    mapped = address.startswith("0000000000000000FFFF0000")
    return address == "00000000000000000000000001000000" or (mapped and address.endswith("7F"))


def answer(port: int, method: str) -> str:
    """What a port says to an empty call without a secret."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(method, bytes, bytes)
        try:
            call(b"", timeout=5)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OPEN"


def answers_to_http(port: int) -> str:
    """First line of a port's answer to a plain HTTP request; "" where it speaks no HTTP/1."""
    with socket.create_connection(("127.0.0.1", port), 5) as line:
        line.settimeout(5)
        line.sendall(b"GET /api/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        first = line.recv(200)
    return first.split(b"\r\n")[0].decode("ascii", "replace") if first[:5] == b"HTTP/" else ""


def test_nothing_listens_outside_loopback(home: Path) -> None:
    found = listening(home)
    assert len(found) >= 5  # Ray's own, and one for each site: the reader sees them
    assert [a for a in found if not is_loopback(a[0])] == []


def test_every_port_wants_the_secret(home: Path) -> None:
    served: dict[str, int] = {}
    for _, port in listening(home):
        said = answers_to_http(port)
        if said:
            assert " 401 " in said, (port, said)
            continue
        codes = {name: answer(port, method) for name, method in METHODS.items()}
        assert set(codes.values()) <= {"UNAUTHENTICATED", "UNIMPLEMENTED"}, (port, codes)
        assert "UNAUTHENTICATED" in codes.values(), f"port {port} serves nothing that is known"
        served |= {name: port for name, code in codes.items() if code == "UNAUTHENTICATED"}
    assert served.keys() == METHODS.keys()


def test_the_secret_is_in_no_command_line_and_no_environment(home: Path) -> None:
    secret = (home / launch.TOKEN).read_bytes()
    assert len(secret) == 64
    for pid in supervise.owned(f"FLWR_HOME={home}"):
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{pid}/{name}").read_bytes()


def test_with_the_secret_the_same_call_is_answered(home: Path) -> None:
    """What is refused above is the missing secret, not the call."""
    (port,) = [p for _, p in listening(home) if answer(p, METHODS["GCS"]) == "UNAUTHENTICATED"]
    secret = (home / launch.TOKEN).read_text()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        reply = channel.unary_unary(METHODS["GCS"], bytes, bytes)(
            b"", timeout=10, metadata=[("authorization", f"Bearer {secret}")]
        )
    assert len(gcs_service_pb2.GetAllNodeInfoReply.FromString(reply).node_info_list) == 1


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root, setpriv")
def test_another_account_gets_nowhere(home: Path) -> None:
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    def tried(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*other, *command], capture_output=True, text=True, timeout=120, cwd="/",
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        )  # fmt: skip

    assert "65534" in tried("id", "-u").stdout
    for path in (home, home / launch.TOKEN, home / "launch.json", home / "app"):
        said = tried("ls", "-la", str(path))
        assert said.returncode != 0, said.stdout
        assert "denied" in said.stderr
    plasma = next(home.glob("ray/session_2*/sockets/plasma_store"))
    script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    assert "PermissionError" in tried("/usr/bin/env", "python3", "-c", script, str(plasma)).stderr
    for pid in supervise.owned(f"FLWR_HOME={home}"):
        assert tried("cat", f"/proc/{pid}/environ").returncode != 0
    (gcs,) = [p for _, p in listening(home) if answer(p, METHODS["GCS"]) == "UNAUTHENTICATED"]
    for mode in ("token", "disabled"):
        begun = time.monotonic()
        said = tried(sys.executable, "-c", ATTACK, f"127.0.0.1:{gcs}", mode)
        assert "IN" not in said.stdout.split(), said.stdout
        assert "REFUSED" in said.stdout, (mode, said.stderr[-500:], time.monotonic() - begun)
