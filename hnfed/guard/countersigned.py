"""What the server countersigned: receipts that it has seen cannot be cut off without a trace.

``STATE/receipts.countersigned.jsonl`` grows by a line with each new countersignature.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from core.wire.countersignature import HASH, SIGNED_WITH, Countersignature, told
from hnfed.guard.kit_files import kept_bytes
from hnfed.guard.receipts import hashes_of

FILE = "receipts.countersigned.jsonl"
MOST_BYTES = 2**30  # one line an order
LONGEST = 8192  # signs of a certificate


def genuine(mark: Countersignature, site: str, authority_pem: bytes) -> bool:
    """Whether a server of the federation signed for this site; expired or not (it is a record).

    Args:
        mark: that came with an order.
        site: this site's name.
        authority_pem: certificate of the federation's authority (``ca.crt``).
    """
    if not HASH.fullmatch(mark.receipt) or len(mark.certificate) > LONGEST:
        return False
    try:
        authority = x509.load_pem_x509_certificate(authority_pem)
        certificate = x509.load_pem_x509_certificate(mark.certificate.encode("ascii"))
        certificate.verify_directly_issued_by(authority)
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        key = certificate.public_key()
        if ExtendedKeyUsageOID.SERVER_AUTH not in usage:  # a site's certificate is none
            return False
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(bytes.fromhex(mark.signature), told(site, mark.receipt), SIGNED_WITH)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return True


def note(state: Path, site: str, authority_pem: bytes, mark: Countersignature) -> str:
    """Keeps a countersignature that came with an order.

    Args:
        state: the site's state folder.
        site: this site's name.
        authority_pem: certificate of the federation's authority.
        mark: that came; an empty one says nothing.

    Returns:
        What a person at the site should know; "" where all is well.
    """
    if not mark.receipt:
        return ""
    if not genuine(mark, site, authority_pem):
        return "an order came with a countersignature that no server of this federation made"
    marks = read(state)
    if any(known.receipt == mark.receipt for known in marks):
        return ""
    line = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **asdict(mark)}
    handle = os.open(state / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "ab") as file:
        file.write(json.dumps(line).encode("ascii") + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if mark.receipt not in hashes_of(state):
        return f"the server has seen receipt {mark.receipt[:16]}, which is not in this site's file"
    return ""


def read(state: Path) -> list[Countersignature]:
    """The countersignatures so far; a torn line is none."""
    path = state / FILE
    found: list[Countersignature] = []
    for raw in (kept_bytes(path, MOST_BYTES) or b"").splitlines():
        try:
            value = json.loads(raw)
            parts = (value["receipt"], value["signature"], value["certificate"])
            found.append(Countersignature(*(str(part) for part in parts)))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def missing(state: Path, site: str, authority_pem: bytes) -> tuple[list[str], int]:
    """Receipts that the server has seen and the site's file lacks.

    Returns:
        A sentence each, and the number of the last line that is countersigned (0 for none).
    """
    lines = hashes_of(state)
    wrong: list[str] = []
    last = 0
    for mark in _genuine(read(state), site, authority_pem, wrong):
        if mark.receipt in lines:
            last = max(last, lines[mark.receipt])
        else:
            wrong.append(
                f"receipt {mark.receipt[:16]} was countersigned and is not in the file: lines were "
                "cut off, changed, or another file was put in its place"
            )
    return wrong, last


def _genuine(
    marks: Sequence[Countersignature], site: str, authority_pem: bytes, wrong: list[str]
) -> list[Countersignature]:
    good = [m for m in marks if genuine(m, site, authority_pem)]
    if len(good) < len(marks):
        wrong.append(f"{len(marks) - len(good)} countersignatures are not of this federation")
    return good
