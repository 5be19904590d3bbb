"""Between a site and the server, TLS on both sides: keeps what passes, and misbehaves when told."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hnfed.guard.kit import Kit, ssl_context

CHUNK = 65536


class Proxy:
    """Listens on a port of the loopback address with the server's own certificate.

    Towards the server it shows the certificate of a site, as the site itself would.

    Attributes:
        delay_s: before each chunk goes on.
        refusing: new connections are cut at once.
        stalled: nothing goes on until it is False again.
        cut_after: bytes after which a connection is cut in the middle of what it carries; 0: never.
        kept: all bytes that passed, in the clear; empty unless `keep`.
    """

    def __init__(self, server: Kit, site: Kit, port: int, *, keep: bool = False) -> None:
        self.port = port
        self.delay_s, self.cut_after = 0.0, 0
        self.refusing = self.stalled = False
        self.keep, self.kept = keep, bytearray()
        self._upstream = server.port
        self._inner = ssl_context(site)
        self._outer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        crt, key = server.folder / "server.crt", server.folder / "server.key"
        self._outer.load_cert_chain(crt, key)
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda loop, context: None)  # cut TLS is our intent
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(
            asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self._outer)
        )

    def cut(self) -> int:
        """Aborts all connections; returns how many."""

        async def abort() -> int:
            writers = list(self._writers)
            for writer in writers:
                writer.transport.abort()
            return len(writers)

        return int(self._call(abort()))

    def heal(self) -> None:
        """Everything passes again."""
        self.delay_s, self.cut_after = 0.0, 0
        self.refusing = self.stalled = False

    def close(self) -> None:
        async def stop() -> None:
            self._server.close()

        self.heal()
        self._call(stop())
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def _call(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(20.0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection("127.0.0.1", self._upstream, ssl=self._inner)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, there[1]}
        self._writers |= pair
        try:
            await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))
        finally:
            self._writers -= pair
            for end in pair:
                end.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        passed = 0
        with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
            while data := await source.read(CHUNK):
                passed += len(data)
                while self.stalled:
                    await asyncio.sleep(0.1)
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.cut_after and passed > self.cut_after:
                    target.transport.abort()
                    return
                if self.keep:
                    self.kept += data
                target.write(data)
                await target.drain()
        with contextlib.suppress(OSError, RuntimeError):
            target.close()


def dial_through(kit: Kit, port: int) -> None:
    """Makes a site's kit name the proxy's port."""
    path = Path(kit.folder / "kit.json")
    path.write_text(path.read_text().replace(f'"port": {kit.port}', f'"port": {port}', 1))
