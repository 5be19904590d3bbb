"""``/health`` and ``/metrics`` on a Unix socket that this account alone can open; off by default.

A process of its own, started by a person: neither the server nor a site's client listens for it,
and it can change nothing. Only GET is answered, from files that `hnfed watch` reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from core.errors import UserError
from hnfed.watch.metrics import CONTENT_TYPE

LONGEST_PATH = 107  # bytes of a Unix socket's path
CLIENT_SECONDS = 5.0  # a caller that says nothing is let go
FRESH_SECONDS = 1.0  # answers that close together are one
Answer = tuple[bool, str]  # whether all is well, and the metrics


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    look: Callable[[], Answer]


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_SECONDS
    server_version, sys_version = "hnfed", ""

    def do_GET(self) -> None:
        """Answers /health (200 or 503) and /metrics."""
        server = self.server
        assert isinstance(server, _Server)
        if self.path not in ("/health", "/metrics"):
            self._send(404, "text/plain", "ask for /health or /metrics\n")
            return
        well, text = server.look()
        if self.path == "/metrics":
            self._send(200, CONTENT_TYPE, text)
        else:
            self._send(200 if well else 503, "application/json", json.dumps({"well": well}) + "\n")

    def _send(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def listening(path: Path, look: Callable[[], Answer]) -> Iterator[None]:
    """Answers on a socket while it lasts; removes it then.

    Args:
        path: of the socket, mode 0600 from its first moment.
        look: what stands now.

    Raises:
        UserError: the path is too long, taken, or cannot be written.
    """
    path = path.absolute()
    _require_free(path)
    before = os.umask(0o177)
    try:
        server = _Server(str(path), _Handler)
    except OSError as error:
        remedy = "give a place that this account can write: --listen PATH"
        problem = str(error.strerror).lower()
        raise UserError("--listen", path, remedy, problem=problem) from error
    finally:
        os.umask(before)
    server.look = _fresh(look)
    threading.Thread(target=server.serve_forever, args=(0.2,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        path.unlink(missing_ok=True)


def _fresh(look: Callable[[], Answer]) -> Callable[[], Answer]:
    """The same, looked at once a second at most, whoever asks how often."""
    lock = threading.Lock()
    kept: list[tuple[float, Answer]] = []

    def answer() -> Answer:
        with lock:
            if not kept or time.monotonic() - kept[0][0] > FRESH_SECONDS:
                kept[:] = [(time.monotonic(), look())]
            return kept[0][1]

    return answer


def _require_free(path: Path) -> None:
    """No socket, or one that nobody listens on any more, which is removed."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        remedy = "give a shorter one: --listen /run/user/UID/hnfed.sock"
        problem = f"a Unix socket's path has at most {LONGEST_PATH} bytes"
        raise UserError("--listen", path, remedy, problem=problem)
    if not path.exists():
        return
    if not path.is_socket():
        raise UserError("--listen", path, "choose another path", problem="a file stands there")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CLIENT_SECONDS)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    remedy = "end that process first, or choose another path"
    raise UserError("--listen", path, remedy, problem="somebody listens there already")
