"""What has left a site, a line each, in one file that only grows; each line holds the one before.

``STATE/receipts.jsonl`` lies out of reach of the code that trains. A line is on the disk before
what it tells of goes. It holds the SHA-256 of the whole line before it and the site's signature
(its node key, ECDSA over P-384 with SHA-384) over its own canonical JSON. So no line can be
changed, removed or moved without a trace by anybody without the key; that the last lines were cut
off shows in what the server countersigned (`hnfed.guard.countersigned`).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from torch import Tensor

from core.errors import UserError
from core.files import read_bounded
from core.run_records import require_shallow
from hnfed.guard.kit_files import needed_bytes, require_plain_file

RECEIPTS, TORN, LOCK = "receipts.jsonl", "receipts.torn", "receipts.lock"
FIRST = "0" * 64  # what the first line says of the line before it
REPAIRED = "repaired"
SIGNED_WITH = ec.ECDSA(hashes.SHA384())
LONGEST = 64 * 2**20
OLD_BYTES = LONGEST_LINE = 16 * 2**20
MOST_OLD, MOST_UNREADABLE, MOST_WRONG = 100_000, 20, 100  # lines that are told each
Line = dict[str, Any]
UNREADABLE: Line = {"kind": "unreadable", "scalars": {}, "unchained": True}


@dataclass(frozen=True)
class Chain:
    """Where a site keeps its receipts.

    Attributes:
        state: the site's state folder.
        key: the private key that signs them (OpenSSH or PEM); None leaves them without a signature.
    """

    state: Path
    key: Path | None = None


def write_receipt(
    chain: Chain,
    run: str,
    kind: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> str:
    """Adds a line to the site's receipts: what leaves, in how many bytes, and its SHA-256.

    A last line that a dying machine left torn is moved to ``receipts.torn``; a line of the kind
    ``repaired`` says so.

    Args:
        chain: of the site.
        run: checked id of the run; "" where it is not known.
        kind: query, train, evaluate, or error.
        config: settings that leave.
        metrics: numbers that leave.
        tensors: weights that leave.

    Returns:
        SHA-256 of the line.
    """
    digest = hashlib.sha256(json.dumps([dict(config), dict(metrics)], sort_keys=True).encode())
    listed: list[dict[str, Any]] = []
    for name in sorted(tensors):
        content = tensors[name].detach().cpu().contiguous().numpy().tobytes()
        digest.update(name.encode() + content)
        shape = list(tensors[name].shape)
        listed.append({"name": name, "shape": shape, "bytes": len(content)})
    line = {
        "run": run,
        "kind": kind,
        "scalars": {**config, **metrics},
        "tensors": listed,
        "bytes": sum(t["bytes"] for t in listed),
        "sha256": digest.hexdigest(),
    }
    state = chain.state
    signer = private_key(chain.key) if chain.key is not None else None
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _held(state):
        torn = _mend(state)
        if torn:
            scalars = {"torn_bytes": len(torn)}
            told = {"sha256": hashlib.sha256(torn).hexdigest(), "bytes": 0, "tensors": []}
            _append(state, {"run": "", "kind": REPAIRED, "scalars": scalars, **told}, signer)
        return _append(state, line, signer)


def canonical(line: Mapping[str, Any]) -> bytes:
    """What of a line is signed: its JSON without the signature, keys sorted."""
    told = {k: v for k, v in line.items() if k != "signature"}
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode("ascii")


def read_lines(state: Path) -> Iterator[tuple[bytes, Line | None]]:
    """The chain as it stands: each line's bytes, and its values; None where it is no JSON object.

    A last line without its end is among them; one that is longer than any receipt comes in parts,
    of which none is a receipt.
    """
    path = state / RECEIPTS
    if not require_plain_file(path):
        return
    with path.open("rb") as file:
        while raw := file.readline(LONGEST_LINE):
            if raw := raw.rstrip(b"\n"):
                yield raw, _values(raw)


def read_receipts(state: Path) -> dict[str, list[Line]]:
    """All receipts of a site, by run.

    Those of earlier versions lie in the runs' folders, one file each, without a chain: they are
    listed first, under the folder's name. Code that trains can write there: what is no receipt is a
    line of the kind ``unreadable``, and keeps none of the others from being read. Of many such
    lines in a file the last that is listed stands for the rest, also for all beyond `MOST_OLD`:
    its ``lines`` counts them.
    """
    found: dict[str, list[Line]] = {}
    for path in sorted(state.glob(f"*/{RECEIPTS}")):
        rows = found.setdefault(path.parent.name, [])
        content = None if path.is_symlink() else _old(path)
        if content is None:
            rows.append(dict(UNREADABLE))
            continue
        unreadable: list[Line] = []
        for count, raw in enumerate(io.BytesIO(content)):
            line = _values(raw) if count < MOST_OLD else None
            if line and _is_receipt(line):
                rows.append({**line, "unchained": True})
            elif len(unreadable) < MOST_UNREADABLE:
                unreadable.append({**UNREADABLE, "lines": 1})
                rows.append(unreadable[-1])
            else:
                unreadable[-1]["lines"] += 1
    for _, line in read_lines(state):
        if line is not None and _is_receipt(line):
            found.setdefault(str(line.get("run", "")), []).append(line)
    return found


def _is_receipt(line: Line) -> bool:
    """Whether what is told to a person has the kinds of a receipt."""
    try:
        json.dumps(line, allow_nan=False)
        require_shallow(line)
    except (ValueError, RecursionError):
        return False
    counts = line.get("bytes", 0), line.get("n", 0)
    return (
        isinstance(line.get("scalars"), dict)
        and isinstance(line.get("tensors", []), list)
        and all(type(count) is int and 0 <= count < 2**63 for count in counts)
    )


def verify(state: Path, public: ec.EllipticCurvePublicKey | None) -> list[str]:
    """What is wrong with the chain, a sentence each; nothing where each line is as it was written.

    Args:
        state: the site's state folder.
        public: the site's key; None checks the chain alone.
    """
    wrong: list[str] = []
    before, more = FIRST, 0
    for number, (raw, line) in enumerate(read_lines(state), start=1):
        said = _faults(line, number, before, public)
        before = hashlib.sha256(raw).hexdigest()
        if len(wrong) < MOST_WRONG:
            wrong += [f"line {number} {text}" for text in said]
        else:
            more += bool(said)
    if more:
        wrong.append(f"and {more} more lines are not as they were written")
    path = state / RECEIPTS
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                wrong.append("the last line has no end: the machine died while it was written")
    return wrong


def _faults(
    line: Line | None, number: int, before: str, public: ec.EllipticCurvePublicKey | None
) -> list[str]:
    """What is wrong with a line, whose place and number are given."""
    if line is None:
        return ["is no receipt: torn, or changed"]
    wrong = []
    if line.get("n") != number:
        wrong.append(f"says it is number {str(line.get('n'))[:100]}: lines are missing")
    if line.get("before") != before:
        wrong.append("does not follow the line before it: that one was changed, removed or moved")
    return wrong + _unsigned(line, public)


def hashes_of(state: Path) -> dict[str, int]:
    """Number of each line, by its SHA-256."""
    lines = enumerate(read_lines(state), start=1)
    return {hashlib.sha256(raw).hexdigest(): number for number, (raw, _) in lines}


def public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """A site's public key, ``node.pub`` of its kit.

    Raises:
        UserError: it is missing, or none.
    """
    try:
        key = serialization.load_ssh_public_key(needed_bytes(path))
    except UserError:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        remedy = "restore the file from the site's kit"
        raise UserError(path.name, path, remedy, problem="it is no public key of a kit")
    return key


def _unsigned(line: Line, public: ec.EllipticCurvePublicKey | None) -> list[str]:
    signature = line.get("signature")
    if public is None:
        return []
    if not isinstance(signature, str):
        return ["has no signature"]
    try:
        public.verify(bytes.fromhex(signature), canonical(line), SIGNED_WITH)
    except (InvalidSignature, ValueError):
        return ["has a signature that is not of this site's key, or was changed"]
    return []


def _old(path: Path) -> bytes | None:
    """What a run's folder holds as receipts; None where it is no plain file, or too long."""
    try:
        return read_bounded(path, OLD_BYTES)
    except (OSError, ValueError):
        return None


def _values(raw: bytes) -> Line | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A kit's private key, as OpenSSH or PEM."""
    content = needed_bytes(path)
    ssh = b"OPENSSH" in content[:64]
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    key = load(content, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "kits have keys of P-384"
    return key


@contextmanager
def _held(state: Path) -> Iterator[None]:
    """One writer at a time, also of two processes; waits for the other, which is quick."""
    handle = os.open(state / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _mend(state: Path) -> bytes:
    """Takes a torn last line off; returns it, b"" where the file ends as it should."""
    path = state / RECEIPTS
    if not require_plain_file(path) or path.stat().st_size == 0:
        return b""
    with path.open("r+b") as file:
        tail, start = _last(file)
        if tail.endswith(b"\n"):
            return b""
        with (state / TORN).open("ab") as aside:
            os.fchmod(aside.fileno(), 0o600)
            aside.write(tail + b"\n")
            aside.flush()
            os.fsync(aside.fileno())
        file.truncate(start)
        file.flush()
        os.fsync(file.fileno())
    return tail


def _last(file: Any) -> tuple[bytes, int]:
    """The last line of a file with its end, if it has one, and where it begins."""
    size = file.seek(0, os.SEEK_END)
    step, tail = 4096, b""
    while len(tail) < min(size, LONGEST):
        start = max(0, size - step)
        file.seek(start)
        tail = file.read(size - start)
        cut = tail.rfind(b"\n", 0, len(tail) - 1)
        if cut >= 0:
            return tail[cut + 1 :], start + cut + 1
        step *= 4
    return tail, size - len(tail)


def _append(state: Path, line: Line, signer: ec.EllipticCurvePrivateKey | None) -> str:
    path = state / RECEIPTS
    number, before = 0, FIRST
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            raw = _last(file)[0].rstrip(b"\n")
        number = int((_values(raw) or {}).get("n", 0))
        before = hashlib.sha256(raw).hexdigest()
    told = {"n": number + 1, "before": before, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **line}
    if signer is not None:
        told["signature"] = signer.sign(canonical(told), SIGNED_WITH).hex()
    raw = json.dumps(told, separators=(",", ":")).encode("ascii")
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "ab") as file:
        file.write(raw + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(raw).hexdigest()
