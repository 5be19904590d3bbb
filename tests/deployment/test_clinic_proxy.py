"""A site whose network has no way out but a proxy that wants a password. `make deploy-test`.

Two network namespaces: a clinic, with one cable to the outside and no route, and the outside, where
the proxy and the federation's server are. Nothing of this machine's own network is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hnfed.deploy.provision import Federation, provision
from hnfed.guard.kit import Kit, read_kit
from tests.deployment.conftest import ROOT, Machine

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(300)]
CLINIC, PROXY, SERVER = "10.231.77.2", "10.231.77.1", "10.231.78.1"
PROXY_PORT, USER, PASSWORD = 3128, "clinic", "s3cret%589"
PLAIN = "s3cretX9"  # the same: in a URL it may be encoded
TINYPROXY = """
Port {port}
Listen {address}
Timeout 600
MaxClients 50
BasicAuth {user} {password}
ConnectPort 443
Logfile "{folder}/proxy.log"
PidFile "{folder}/proxy.pid"
"""
SQUID = """
http_port {address}:{port}
auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/users
acl known proxy_auth REQUIRED
acl CONNECT method CONNECT
acl safe port 443
http_access deny CONNECT !safe
http_access allow known
http_access deny all
cache deny all
access_log stdio:{folder}/proxy.log
cache_log {folder}/cache.log
pid_filename {folder}/proxy.pid
netdb_filename none
coredump_dir {folder}
shutdown_lifetime 1 seconds
"""


@dataclass
class Clinic:
    """Both namespaces, the server's and the site's kit."""

    folder: Path
    outside: str
    inside: str

    def kit(self) -> Kit:
        return read_kit(self.folder / "kits" / "nyu", "site")

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command at the clinic."""
        proxies = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
        plain = {k: v for k, v in os.environ.items() if k.lower() not in proxies}
        return subprocess.run(
            ["ip", "netns", "exec", self.inside, *map(str, command)], cwd=ROOT,
            env=plain | environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def doctor(self, proxy: str) -> str:
        """What `hnfed doctor` says, all of it."""
        file = self.folder / "nyu.yaml"
        text = f"name: nyu\nroot: {self.folder}\ncache: {self.folder}/c\nstate: {self.folder}/s\n"
        file.write_text(f"{text}proxy: {proxy!r}\n")
        file.chmod(0o600)
        words = ("-m", "hnfed.cli.main", "doctor", "--kit", self.kit().folder, "--site", file)
        done = self.run(sys.executable, *words)
        return done.stdout + done.stderr

    def dialled(self, proxy: str = "", **environment: str) -> str:
        """What it says of the way to the server."""
        code = (
            "import sys; from pathlib import Path; from hnfed.guard.kit import read_kit; "
            "from hnfed.deploy.doctor import dial, report; "
            "report(dial(read_kit(Path(sys.argv[1]), 'site'), sys.argv[2]))"
        )
        done = self.run(sys.executable, "-c", code, self.kit().folder, proxy, **environment)
        assert not done.stderr, done.stderr
        return done.stdout

    def activated(self, proxy: str = "", **environment: str) -> str:
        """What a node's first call comes to."""
        code = (
            "import sys; from pathlib import Path; from hnfed.guard.kit import read_kit; "
            "from tests.deployment.fleet import Fleet, refused; "
            "kit = read_kit(Path(sys.argv[1]), 'site'); "
            "print('status', refused(Fleet(kit, proxy=sys.argv[2])))"
        )
        done = self.run(sys.executable, "-c", code, self.kit().folder, proxy, **environment)
        return done.stdout + done.stderr.strip().rpartition("\n")[2]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("nginx is not installed")
    number = os.getpid()
    made = Clinic(tmp_path_factory.mktemp("clinic"), f"hnfed-out-{number}", f"hnfed-in-{number}")
    names, server = (made.outside, made.inside), None
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", made.outside, "link", "add", "cable", "type", "veth", "peer", "name", "cable",
           "netns", made.inside)  # fmt: skip
        for name, address in ((made.outside, PROXY), (made.inside, CLINIC)):
            ip("-n", name, "addr", "add", f"{address}/30", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        ip("-n", made.outside, "addr", "add", f"{SERVER}/32", "dev", "lo")
        provision(Federation("hn", SERVER, 443, 28444, ("nyu",), 30), made.folder / "kits")
        server = Machine(
            made.folder / "server.log", "ip", "netns", "exec", made.outside, sys.executable, "-m",
            "hnfed.cli.main", "server", made.folder / "kits" / "server",
        )  # fmt: skip
        assert server.says("ready:", 90), server.log.read_text()
        yield made
    finally:
        if server is not None:
            server.end()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _users(folder: Path) -> None:
    done = subprocess.run(["openssl", "passwd", "-apr1", PLAIN],
                          capture_output=True, text=True, check=True)  # fmt: skip
    (folder / "users").write_text(f"{USER}:{done.stdout.strip()}\n")


def tinyproxy(folder: Path) -> list[str]:
    return ["tinyproxy", "-d", "-c", f"{folder}/proxy.conf"]


def squid(folder: Path) -> list[str]:
    _users(folder)
    return ["squid", "-N", "-f", f"{folder}/proxy.conf"]


PROGRAMS: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "tinyproxy": (TINYPROXY, tinyproxy),
    "squid": (SQUID, squid),
}


@pytest.fixture(params=PROGRAMS)
def proxy(request: pytest.FixtureRequest, clinic: Clinic) -> Iterator[str]:
    """A real proxy before the clinic; its address without credentials."""
    name = request.param
    if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip(f"{name} is not installed")
    text, command = PROGRAMS[name]
    folder = Path("/tmp") / f"hnfed-{name}-{os.getpid()}"  # its own user must reach it
    folder.mkdir(mode=0o755)
    (folder / "proxy.conf").write_text(
        text.format(port=PROXY_PORT, address=PROXY, user=USER, password=PLAIN, folder=folder)
    )
    for file in ("proxy.log", "cache.log"):
        (folder / file).touch()
        (folder / file).chmod(0o666)
    folder.chmod(0o777)
    machine = Machine(folder / "out", "ip", "netns", "exec", clinic.outside, *command(folder))
    try:
        limit = time.monotonic() + 30
        probe = f"import socket; socket.create_connection(('{PROXY}', {PROXY_PORT}), 2)"
        while clinic.run(sys.executable, "-c", probe).returncode and time.monotonic() < limit:
            assert machine.process.poll() is None, machine.log.read_text()
            time.sleep(0.2)
        yield f"{PROXY}:{PROXY_PORT}"
    finally:
        machine.end()
        shutil.rmtree(folder)


def test_there_is_no_other_way_out(clinic: Clinic) -> None:
    said = clinic.dialled("none")
    assert "FAIL  server" in said
    assert "unreachable" in said


def test_the_node_and_the_doctor_go_by_the_proxy(clinic: Clinic, proxy: str) -> None:
    url = f"http://{USER}:{PASSWORD}@{proxy}"
    for words, environment in (((url,), {}), ((), {"HTTPS_PROXY": url})):
        said = clinic.dialled(*words, **environment)
        assert f"PASS  proxy          http://{proxy} lets {SERVER}:443 through" in said, said
        assert "PASS  TLS" in said
        assert "PASS  server" in said
        assert PASSWORD not in said
        assert clinic.activated(*words, **environment).strip() == "status 200"
    assert f"PASS  proxy          http://{proxy} lets" in clinic.doctor(url)


@pytest.mark.parametrize("credentials", ["", f"{USER}:wrong@", "nobody:x@"])
def test_a_proxy_that_refuses_says_so(clinic: Clinic, proxy: str, credentials: str) -> None:
    said = clinic.dialled(f"http://{credentials}{proxy}")
    assert "FAIL  proxy" in said, said
    assert "user and password" in said
    assert "wrong" not in said
    assert "status 200" not in clinic.activated(f"http://{credentials}{proxy}")


def test_no_proxy_means_the_straight_way(clinic: Clinic, proxy: str) -> None:
    environment = {"HTTPS_PROXY": f"http://{USER}:{PASSWORD}@{proxy}", "NO_PROXY": SERVER}
    assert "FAIL  server" in clinic.dialled(**environment)
    assert "status 200" not in clinic.activated(**environment)


def test_a_proxy_that_is_not_there(clinic: Clinic) -> None:
    said = clinic.dialled(f"http://{PROXY}:9")
    assert "FAIL" in said
    assert "proxy's name and port" in said
