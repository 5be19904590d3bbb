"""Who has no certificate of a site costs the real SuperLink nothing. `make deploy-test`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from hnfed.deploy.authority import flower_key_of, read_request
from hnfed.deploy.doctor import FAIL, PASS, dial
from hnfed.deploy.join import begin, read_for, take_in
from hnfed.deploy.provision import Federation, provision
from hnfed.guard.kit import Kit, private_key, read_kit, ssl_context
from tests.deployment.conftest import Machine, free_port, hnfed, running
from tests.deployment.fleet import Fleet, clock_ahead, refused

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(600)]
EMPTY = b"\x0a\x00"  # an empty message in a list of messages
GROWTH_MB = 50.0


class Deployed:
    """A server of two sites, at work."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.skip("nginx is not installed")
        self.folder = folder / "kits"
        self.federation = Federation(
            "hn", "127.0.0.1", free_port(), free_port(), ("miccai", "nyu"), 30
        )
        provision(self.federation, self.folder)
        self.machine = hnfed(folder / "server.log", "server", self.folder / "server")
        assert self.machine.says("ready:", 90), self.machine.log.read_text()

    def kit(self, name: str) -> Kit:
        return read_kit(self.folder / name, "server" if name == "server" else "site")

    def superlink_mb(self) -> float:
        """Memory of the SuperLink and what it started."""
        pids = running("flower-superlink", self.folder / "server")
        assert pids
        pages = sum(int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in pids)
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    made = Deployed(tmp_path_factory.mktemp("edge"))
    try:
        yield made
    finally:
        made.machine.end()


def sent(kit: Kit, context: ssl.SSLContext, call: str, body: bytes, *, key: str = "") -> int:
    """Status of a call with a body, as anybody may make it; 0 where the connection was cut.

    Nothing is signed; `key` is the public key that is shown to Flower, if any.
    """
    head = f"POST /v1/fleet/{call} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"flwr-public-key: {key}\r\n" if key else ""
    head += f"Content-Type: application/protobuf\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = b""
    with (
        socket.create_connection((kit.host, kit.port), 60) as plain,
        context.wrap_socket(plain, server_hostname=kit.host) as link,
        contextlib.suppress(OSError),
    ):
        link.sendall(head.encode() + body)
        while chunk := link.recv(65536):
            answer += chunk
    return int(answer.split(b" ", 2)[1]) if answer else 0


def test_bodies_of_anybody_cost_flower_nothing(deployed: Deployed) -> None:
    kit = deployed.kit("server")
    nobody = ssl.create_default_context(cafile=str(kit.ca))
    before = deployed.superlink_mb()
    for _ in range(5):
        assert sent(kit, nobody, "push-messages", EMPTY * 7_950_000) in (0, 400)
    grown = deployed.superlink_mb() - before
    print(f"five bodies of 15.9 MB without a certificate: the SuperLink grew by {grown:.1f} MB")
    assert grown <= GROWTH_MB


def test_bodies_of_a_site_without_its_key_cost_flower_little(deployed: Deployed) -> None:
    """A certificate lets a body of a megabyte through before Flower looks at its signature."""
    kit, context = deployed.kit("server"), ssl_context(deployed.kit("nyu"))
    before = deployed.superlink_mb()
    for _ in range(5):
        assert sent(kit, context, "push-messages", EMPTY * 7_950_000) in (0, 413)
    refused_at_nginx = deployed.superlink_mb() - before
    public = flower_key_of(deployed.kit("nyu").client_certificate.read_text())
    assert sent(kit, context, "push-messages", EMPTY * 520_000) == 403
    for _ in range(5):
        assert sent(kit, context, "push-messages", EMPTY * 520_000, key=public) in (400, 401)
    grown = deployed.superlink_mb() - before
    print(f"a site's: 15.9 MB {refused_at_nginx:.1f} MB, of 1 MB {grown:.1f} MB")
    assert refused_at_nginx <= GROWTH_MB
    assert grown <= GROWTH_MB


def test_half_requests_from_one_address_keep_no_site_out(deployed: Deployed) -> None:
    """1,000, half of them in the middle of the handshake: who is there stays, who comes enters."""
    kit, held = deployed.kit("server"), []
    nobody = ssl.create_default_context(cafile=str(kit.ca))
    with Fleet(deployed.kit("miccai")) as there:
        node = there.activate()
        try:
            for number in range(1000):
                link = socket.create_connection((kit.host, kit.port), 10)
                if number % 2:
                    link.sendall(b"\x16\x03\x01\x02")
                else:
                    link = nobody.wrap_socket(link, server_hostname=kit.host)
                    link.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nX: ")
                held.append(link)
            began = time.monotonic()
            assert there.pull(node) == 0
            assert refused(Fleet(deployed.kit("nyu"))) == 200
            print(f"beside 1,000 half requests: {time.monotonic() - began:.1f} s for three calls")
            assert time.monotonic() - began < 10
        finally:
            for link in held:
                link.close()
        assert there.pull(node) == 0
        there.leave(node)


def test_the_control_api_is_out_of_reach_of_a_site(deployed: Deployed) -> None:
    kit, context = deployed.kit("server"), ssl_context(deployed.kit("nyu"))
    for path in (
        "../control/list-runs", "%2e%2e/control/list-runs", "/../../v1/control/list-runs",
        "..%2fcontrol/list-runs", "pull-messages/../../control/list-runs", "register-node",
        "pull-messages%00", "pull-messages?x", "./pull-messages",
    ):  # fmt: skip
        assert sent(kit, context, path, b"") in (400, 403), path


def test_plaintext_is_refused(deployed: Deployed) -> None:
    url = f"http://127.0.0.1:{deployed.federation.port}/v1/fleet/activate-node"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError, match="400"):
        opener.open(url, timeout=10)


def test_another_authority_or_name_is_refused_by_the_site(
    deployed: Deployed, tmp_path: Path
) -> None:
    provision(Federation("no", "127.0.0.1", 1, 2, ("nyu",), 30), tmp_path)
    other = read_kit(tmp_path / "nyu", "site")
    elsewhere = Kit(other.folder, "no", "nyu", "127.0.0.1", deployed.federation.port, 2)
    with Fleet(elsewhere) as fleet, pytest.raises(httpx.ConnectError, match="local issuer"):
        fleet.activate()
    named = Fleet(deployed.kit("nyu"), host="127.0.0.2")
    with named, pytest.raises(httpx.ConnectError, match=r"not valid for '127\.0\.0\.2'"):
        named.activate()
    (found,) = dial(elsewhere)
    assert (found.name, found.state) == ("TLS", FAIL)


def test_an_expired_certificate_is_refused_by_the_site(tmp_path: Path) -> None:
    then = datetime.now(UTC) - timedelta(days=40)
    federation = Federation("old", "127.0.0.1", free_port(), free_port(), ("nyu",), 30)
    provision(federation, tmp_path, now=then)
    kit = tmp_path / "server"
    (kit / "flower").mkdir()
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program
    nginx = Machine(kit / "log", program, "-p", f"{kit}/", "-c", kit / "nginx.conf")
    try:
        with Fleet(read_kit(tmp_path / "nyu", "site")) as late:
            limit = time.monotonic() + 20
            words = ""
            while "expired" not in words and time.monotonic() < limit:
                with pytest.raises(httpx.ConnectError) as caught:
                    late.activate()
                words = str(caught.value)
        assert "certificate has expired" in words
    finally:
        nginx.end()


def test_a_certificate_without_its_key_at_flower_is_refused(deployed: Deployed) -> None:
    """A certificate of one site and a key of another: nginx holds them against each other."""
    kit = deployed.kit("nyu")
    foreign = ec.generate_private_key(ec.SECP384R1())
    assert refused(Fleet(kit, key=foreign)) == 403
    assert refused(Fleet(kit, key=private_key(deployed.kit("miccai")))) == 403
    nobody = ssl.create_default_context(cafile=str(kit.ca))
    assert refused(Fleet(kit, context=nobody)) == 400


def test_a_skewed_clock_is_refused_by_the_server(deployed: Deployed) -> None:
    with clock_ahead(timedelta(hours=1)):
        assert refused(Fleet(deployed.kit("nyu"))) == 401
    assert refused(Fleet(deployed.kit("nyu"))) == 200


def test_a_second_node_with_the_same_key_is_refused(deployed: Deployed) -> None:
    with Fleet(deployed.kit("nyu")) as first:
        node = first.activate()
        assert refused(Fleet(deployed.kit("nyu"))) != 200
        assert first.pull(node) == 0, "the first one stays"
        first.leave(node)


def test_the_doctor_dials_as_the_node_does(deployed: Deployed) -> None:
    found = list(dial(deployed.kit("nyu")))
    assert [c.state for c in found] == [PASS] * 3, found
    assert "knows this kit's certificate" in found[1].detail


def test_who_comes_and_goes_counts_while_the_server_runs(
    deployed: Deployed, tmp_path: Path
) -> None:
    """Revoked: refused by nginx at once. Joined with a key of its own: let in at once."""
    kept = tmp_path / "kept"
    shutil.copytree(deployed.folder / "nyu", kept)
    former = read_kit(kept, "site")
    assert refused(Fleet(former)) == 200
    provision(deployed.federation, deployed.folder, revoke=["nyu"])
    assert deployed.machine.says("nyu: its former key is refused", 30)
    assert refused(Fleet(former)) == 403
    found = list(dial(former))
    assert found[1].state == FAIL
    assert "revoked" in found[1].detail
    joined = tmp_path / "joined"
    name, public = read_request(begin(joined, "nyu"))
    provision(deployed.federation, deployed.folder, sign={name: public})
    take_in(joined, read_for(deployed.folder / "answers" / "nyu.json", joined))
    limit = time.monotonic() + 30
    while (code := refused(Fleet(read_kit(joined, "site")))) != 200 and time.monotonic() < limit:
        time.sleep(0.5)
    assert code == 200
    assert refused(Fleet(former)) == 403, "the former certificate stays out"
    assert deployed.machine.process.poll() is None


def test_ctrl_c_ends_all(deployed: Deployed) -> None:
    assert deployed.machine.end(signal.SIGINT) == 130
