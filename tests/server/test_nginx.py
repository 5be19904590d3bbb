"""What nginx lets through to Flower: a real nginx on the loopback address, a stand-in behind it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import httpx
import pytest
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from hnfed.deploy.authority import read_authority
from hnfed.deploy.provision import FLEET, Federation, provision
from hnfed.guard.kit import Kit, private_key, read_kit, ssl_context

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
HALF_REQUESTS = 1000
KEYS: dict[str, str] = {}  # what the sites of `edge` show to Flower


class Behind(ThreadingHTTPServer):
    """Stands where Flower's SuperLink stands: notes what reaches it, on a line a request."""

    daemon_threads = True

    def __init__(self, server: Kit) -> None:
        self.seen: list[str] = []
        self.taken = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                outer.taken += len(self.rfile.read(length))
                self.do_GET()

            def do_GET(self) -> None:
                outer.seen.append(self.requestline)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", server.internal_port), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.folder / "server.crt", server.folder / "server.key")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_: object) -> None: ...


class Edge:
    """Kits, nginx as `hnfed server` starts it, and what stands behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.federation = Federation(
            "hn", "127.0.0.1", free_port(), free_port(), ("miccai", "nyu"), 30
        )
        provision(self.federation, folder)
        self.server = read_kit(folder / "server", "server")
        (self.server.folder / "flower").mkdir(exist_ok=True)
        self.behind = Behind(self.server)
        assert NGINX is not None
        self.nginx = subprocess.Popen(
            [NGINX, "-p", f"{self.server.folder}/", "-c", str(self.server.folder / "nginx.conf")],
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        limit = time.monotonic() + 10
        while not self.listens() and time.monotonic() < limit:
            time.sleep(0.05)

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.server.port)) == 0

    def site(self, name: str) -> Kit:
        return read_kit(self.folder / name, "site")

    def ask(
        self, raw: bytes, context: ssl.SSLContext | None = None, seconds: float = 15.0
    ) -> bytes:
        """Sends bytes over TLS, as nyu unless another context is given; what came back."""
        context = context or ssl_context(self.site("nyu"))
        with (
            socket.create_connection(("127.0.0.1", self.server.port), seconds) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
        ):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
                link.sendall(raw)
            answer = b""
            with contextlib.suppress(ConnectionResetError, ssl.SSLError):
                while chunk := link.recv(65536):
                    answer += chunk
                    if b"\r\n\r\nok" in answer or b"</html>" in answer:
                        break
            return answer

    def close(self) -> None:
        os.killpg(self.nginx.pid, signal.SIGTERM)
        self.nginx.wait(10)
        self.behind.shutdown()
        self.behind.server_close()


def shown_to_flower(kit: Kit) -> str:
    """What Flower's own node puts into the header, by Flower's own code."""
    key = private_key(kit)
    signing = NodeAuthHttpInterceptor(key, key.public_key())
    request = httpx.Request("POST", "https://x")
    context = mock.Mock(request=request)
    signing.intercept(context, lambda _: httpx.Response(200))
    return str(request.headers["flwr-public-key"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    made = Edge(tmp_path_factory.mktemp("edge"))
    KEYS.update({site: shown_to_flower(made.site(site)) for site in made.federation.sites})
    yield made
    made.close()


def post(
    path: str, body: bytes = b"", length: int | None = None, *, key: str | None = None
) -> bytes:
    """A node's request, with nyu's key for Flower unless another is given; "" for none."""
    shown = KEYS["nyu"] if key is None else key
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"flwr-public-key: {shown}\r\n" if shown else ""
    return (
        f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body
    )


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def without_certificate(edge: Edge) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(edge.server.ca))


def test_a_site_reaches_each_call_of_a_node(edge: Edge) -> None:
    for call in FLEET:
        edge.behind.seen.clear()
        assert status(edge.ask(post(f"/v1/fleet/{call}", b"x" * 100))) == 200
        assert edge.behind.seen == [f"POST /v1/fleet/{call} HTTP/1.1"]
    assert status(edge.ask(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")) == 200


def test_who_shows_no_certificate_or_a_foreign_one_reaches_nothing(
    edge: Edge, tmp_path: Path
) -> None:
    """The five bodies that cost Flower 4 GB before it asked for a key do not come to it."""
    provision(replace(edge.federation, name="other"), tmp_path)
    strange = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    strange.load_verify_locations(edge.server.ca)
    foreign = read_kit(tmp_path / "nyu", "site")
    foreign = Kit(foreign.folder, "hn", "nyu", "127.0.0.1", edge.server.port, 1)
    shutil.copy(edge.server.ca, foreign.ca)
    edge.behind.seen.clear()
    edge.behind.taken = 0
    for context in (without_certificate(edge), ssl_context(foreign)):
        for _ in range(5):
            body = post("/v1/fleet/push-messages", b"\x0a\x00" * 7_950_000)
            assert status(edge.ask(body, context)) in (0, 400)
        assert status(edge.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", context)) == 400
    assert edge.behind.seen == []
    assert edge.behind.taken == 0


def test_a_certificate_of_the_authority_that_is_not_in_the_list_reaches_nothing(
    edge: Edge, tmp_path: Path
) -> None:
    """A server's certificate, and one of a site that the roster does not have."""
    authority = read_authority(edge.folder / "ca")
    assert authority is not None
    kit = Kit(tmp_path, "hn", "stranger", "127.0.0.1", edge.server.port, 1)
    shutil.copy(edge.server.ca, kit.ca)
    shutil.copy(edge.site("nyu").key, kit.key)
    public = private_key(edge.site("nyu")).public_key()
    kit.client_certificate.write_text(authority.site("stranger", public, datetime.now(UTC), 30))
    edge.behind.seen.clear()
    answer = edge.ask(post("/v1/fleet/pull-messages"), ssl_context(kit))
    assert status(answer) == 403
    as_server = without_certificate(edge)
    as_server.load_cert_chain(edge.server.folder / "server.crt", edge.server.folder / "server.key")
    assert status(edge.ask(post("/v1/fleet/pull-messages"), as_server)) == 400
    assert edge.behind.seen == []


def test_a_site_shows_flower_no_key_but_its_certificates(edge: Edge) -> None:
    """Certificate of one site, key of another: which site it is would be told twice."""
    nyu, miccai = (ssl_context(edge.site(name)) for name in ("nyu", "miccai"))
    edge.behind.seen.clear()
    for call in FLEET:
        path = f"/v1/fleet/{call}"
        for key in (KEYS["miccai"], "", "x", f"{KEYS['nyu']},{KEYS['miccai']}"):
            assert status(edge.ask(post(path, key=key), nyu)) == 403
    two = f"{KEYS['nyu']}\r\nFlwr-Public-Key: {KEYS['miccai']}"
    turned = f"{KEYS['miccai']}\r\nflwr_public_key: {KEYS['nyu']}"
    assert status(edge.ask(post("/v1/fleet/get-run", key=turned), nyu)) == 403
    assert status(edge.ask(post("/v1/fleet/get-run", key=KEYS["nyu"]), miccai)) == 403
    assert edge.behind.seen == []
    # Of two headers either both are refused, or the one that was matched is the first, as Flower's.
    assert status(edge.ask(post("/v1/fleet/get-run", key=two), nyu)) in (200, 403)
    assert status(edge.ask(post("/v1/fleet/get-run", key=KEYS["miccai"]), miccai)) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs", "/v1/runtime/get-nodes", "/docs", "/", "/v1/fleet", "/v1/fleet/",
        "/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs", "/v1/fleet//pull-messages", "//v1/fleet/pull-messages",
        "/v1/./fleet/pull-messages", "/v1/fleet/x/../pull-messages", "/v1/fleet/pull%2dmessages",
        "/v1/fleet/pull-messages%00", "/v1/fleet/pull-messages?x=1", "/v1/fleet/pull-messages#x",
        "/v1/fleet/pull-messages/", "/V1/fleet/pull-messages", "/v1/fleet/pull-messages;x",
        "/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1\\fleet\\pull-messages",
        "/v1/fleet/%70ull-messages", "/v1/control/../fleet/pull-messages", "*", "/%",
        "https://x/v1/control/list-runs", "https://x/v1/fleet/%2e%2e/control/list-runs",
    ],
)  # fmt: skip
def test_only_what_is_matched_byte_for_byte_is_forwarded(edge: Edge, path: str) -> None:
    edge.behind.seen.clear()
    assert status(edge.ask(post(path))) in (400, 403, 405, 0)
    assert edge.behind.seen == []


def test_control_bytes_in_a_path(edge: Edge) -> None:
    edge.behind.seen.clear()
    for number in (0, 1, 9, 11, 13, 127, 160, 255):
        for raw in (b"/v1/fleet/pull-messages" + bytes([number]), b"/v1/" + bytes([number])):
            line = b"POST " + raw + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            assert status(edge.ask(line, seconds=12)) in (400, 403, 0)
    assert edge.behind.seen == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "CONNECT", "TRACE", "PATCH"])
def test_other_methods_are_refused(edge: Edge, method: str) -> None:
    edge.behind.seen.clear()
    line = f"{method} /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert status(edge.ask(line.encode())) in (400, 403, 405)
    assert edge.behind.seen == []


def test_bodies_are_as_large_as_their_call_needs(edge: Edge) -> None:
    """A message list of a megabyte holds no more empty messages than Flower can bear."""
    edge.behind.taken = 0
    for call, most in (("pull-messages", 64_000), ("push-messages", 1_000_000)):
        assert status(edge.ask(post(f"/v1/fleet/{call}", b"x" * most))) == 200
        assert status(edge.ask(post(f"/v1/fleet/{call}", length=most + 100_000))) == 413
    assert edge.behind.taken == 1_064_000
    assert status(edge.ask(post("/v1/fleet/push-object", b"x" * 6_000_000))) == 200


def test_old_ciphers_and_protocols_are_off(edge: Edge) -> None:
    for cipher in ("ECDHE-ECDSA-AES256-SHA", "ECDHE-ECDSA-AES128-SHA256", "AES256-SHA"):
        context = ssl_context(edge.site("nyu"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(f"{cipher}:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            edge.ask(post("/v1/fleet/pull-messages"), context)
    context = ssl_context(edge.site("nyu"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert status(edge.ask(post("/v1/fleet/pull-messages"), context)) == 200


def test_a_key_that_is_not_the_certificates_is_of_no_use(edge: Edge, tmp_path: Path) -> None:
    from core.errors import UserError
    from hnfed.deploy.authority import made_node_key, write_private

    kit = Kit(tmp_path, "hn", "nyu", "127.0.0.1", edge.server.port, 1)
    shutil.copy(edge.server.ca, kit.ca)
    shutil.copy(edge.site("nyu").client_certificate, kit.client_certificate)
    write_private(kit.key, made_node_key()[0])
    with pytest.raises(UserError, match="do not fit"):
        ssl_context(kit)


def test_many_requests_of_one_site_are_slowed_and_another_site_gets_through(edge: Edge) -> None:
    context = ssl_context(edge.site("nyu"))
    key = f"flwr-public-key: {KEYS['nyu']}"
    head = f"GET /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n{key}\r\n\r\n".encode()
    with (
        socket.create_connection(("127.0.0.1", edge.server.port), 20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
    ):
        link.sendall(head * 900)
        answers = b""
        while answers.count(b"HTTP/1.1 ") < 900 and (chunk := link.recv(65536)):
            answers += chunk
    assert 0 < answers.count(b"HTTP/1.1 503") < 900
    other = ssl_context(edge.site("miccai"))
    mine = KEYS["miccai"]
    assert status(edge.ask(post("/v1/fleet/pull-messages", key=mine), other)) == 200


def test_half_requests_from_one_address_shut_nobody_out(edge: Edge) -> None:
    """1,000 of them: no byte at all, half a handshake, half a head, a head byte by byte."""
    nobody, held = without_certificate(edge), []
    limit = time.monotonic() + 60
    try:
        for number in range(HALF_REQUESTS):
            link = socket.create_connection(("127.0.0.1", edge.server.port), 10)
            if number % 3 == 0:
                link = nobody.wrap_socket(link, server_hostname="127.0.0.1")
                link.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nX: ")
            elif number % 3 == 1:
                link.sendall(b"\x16\x03\x01")
            held.append(link)
        assert time.monotonic() < limit, "the load was not made in time"
        began = time.monotonic()
        assert status(edge.ask(post("/v1/fleet/pull-messages"))) == 200
        assert time.monotonic() - began < 5
        head, hello = held[-1], held[-3]
        while time.monotonic() - began < 20 and not _ended(head):
            with contextlib.suppress(OSError):
                head.sendall(b"x")  # a byte now and then does not keep the place
            time.sleep(0.5)
        assert time.monotonic() - began < 15
        assert _ended(hello), "nor does half a handshake"
    finally:
        for link in held:
            link.close()


def _ended(link: socket.socket) -> bool:
    """Whether the other end is gone."""
    link.settimeout(0.2)
    try:
        return link.recv(100) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_revoked_site_is_refused_once_nginx_reads_its_file_again(edge: Edge) -> None:
    context = ssl_context(edge.site("miccai"))
    asked = post("/v1/fleet/pull-messages", key=KEYS["miccai"])
    assert status(edge.ask(asked, context)) == 200
    provision(edge.federation, edge.folder, revoke=["miccai"])
    edge.nginx.send_signal(signal.SIGHUP)
    limit = time.monotonic() + 20
    while (code := status(edge.ask(asked, context))) == 200 and time.monotonic() < limit:
        time.sleep(0.2)
    assert code == 403
    assert status(edge.ask(post("/v1/fleet/pull-messages"))) == 200, "nyu goes on"
    log = (edge.server.folder / "flower" / "nginx.access.log").read_text()
    assert '"nyu"' in log, "the log tells which site asked"
    assert json.loads((edge.server.folder / "roster.json").read_text()).keys() == {"nyu"}
