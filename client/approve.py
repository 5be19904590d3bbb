"""`hnfed approve`: a site looks at the code that wants to run, and pins it by its SHA-256."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from core.app_folder import app_dir, stage_app
from core.errors import UserError
from core.files import replace_file
from core.kit import Kit

APPROVED, PENDING, BUNDLES = "approved.json", "pending", "bundles"
SHOWN_LINES = 400


def candidates(kit: Kit) -> dict[str, bytes]:
    """Bundles that wait for a decision, by SHA-256: those refused lately, and the one installed."""
    found = {p.stem: p.read_bytes() for p in sorted((kit.folder / PENDING).glob("*.fab"))}
    own = installed()
    found.setdefault(hashlib.sha256(own).hexdigest(), own)
    done = {entry["sha256"] for entry in approved(kit)}
    return {digest: content for digest, content in found.items() if digest not in done}


def installed() -> bytes:
    """The bundle of this installation: what a coordinator with the same version sends."""
    from flwr.cli.build import build_fab_from_disk

    with tempfile.TemporaryDirectory() as scratch:
        stage_app(app_dir(), Path(scratch) / "app")
        return build_fab_from_disk(Path(scratch) / "app")


def approved(kit: Kit) -> list[dict[str, str]]:
    """What is pinned, oldest first."""
    path = kit.folder / APPROVED
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [{"sha256": str(e["sha256"]), "at": str(e["at"])} for e in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "restore the file, or delete it and approve again"
        raise UserError("approved.json", path, remedy, problem=type(error).__name__) from error


def approve(kit: Kit, digest: str, content: bytes) -> None:
    """Pins a bundle, and keeps it to compare later ones with."""
    assert hashlib.sha256(content).hexdigest() == digest
    folder = kit.folder / BUNDLES
    folder.mkdir(exist_ok=True)
    replace_file(folder / f"{digest}.fab", content)
    entry = {"sha256": digest, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    replace_file(kit.folder / APPROVED, json.dumps([*approved(kit), entry], indent=1) + "\n")
    (kit.folder / PENDING / f"{digest}.fab").unlink(missing_ok=True)


def difference(kit: Kit, content: bytes) -> list[str]:
    """What a bundle changes against the one approved last: a unified diff; new files whole."""
    before: Mapping[str, str] = {}
    for entry in reversed(approved(kit)):
        path = kit.folder / BUNDLES / f"{entry['sha256']}.fab"
        if path.is_file():
            before = _texts(path.read_bytes())
            break
    after = _texts(content)
    lines: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, ""), after.get(name, "")
        if old != new:
            named = (f"approved/{name}", f"new/{name}")
            lines += difflib.unified_diff(
                old.splitlines(), new.splitlines(), *named, lineterm="", n=2
            )
    return lines


def summary(content: bytes) -> str:
    """How much there is in a bundle."""
    texts = _texts(content)
    return f"{len(texts)} files, {sum(t.count(chr(10)) for t in texts.values())} lines"


def _texts(content: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as bundle:
        return {
            name: bundle.read(name).decode("utf-8", "replace")
            for name in bundle.namelist()
            if not name.startswith(".info/")
        }
