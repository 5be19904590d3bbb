"""The last receipt that each site's replies named, and the server's word that it has seen it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message

from core.files import replace_file
from core.wire.countersignature import HASH, countersign
from server.strategy import HEADER

RECEIPTS = "receipts.json"  # in the private part of the run's folder


class Receipts:
    """What a run has seen of its sites' receipts.

    Args:
        path: file that holds it, for a run that is resumed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last: dict[str, str] = {}
        self.keys: tuple[bytes, bytes] | None = None
        if path.is_file():
            told = json.loads(path.read_text(encoding="utf-8"))
            self.last = {str(site): str(receipt) for site, receipt in told.items()}

    def signs_with(self, kit: Path | None) -> None:
        """Countersigns with the key and certificate of the server's kit, where they are there."""
        files = (kit / "server.key", kit / "server.crt") if kit is not None else ()
        if files and all(path.is_file() for path in files):
            self.keys = (files[0].read_bytes(), files[1].read_bytes())

    def seen(self, site: str, reply: Message) -> None:
        """Notes the receipt that a reply names; one without any, or with another word, is none."""
        header = reply.content.get(HEADER)
        receipt = header.get("receipt") if isinstance(header, ConfigRecord) else None
        if isinstance(receipt, str) and HASH.fullmatch(receipt):
            self.last[site] = receipt
            replace_file(self.path, json.dumps(self.last, sort_keys=True))

    def fields(self, site: str) -> dict[str, Any]:
        """Of the next order to a site: its last receipt, countersigned."""
        if self.keys is None or site not in self.last:
            return {}
        mark = countersign(*self.keys, site, self.last[site])
        return {
            "receipt": mark.receipt,
            "receipt_signature": mark.signature,
            "receipt_certificate": mark.certificate,
        }
