"""`hnfed approve`: a site looks at the code that wants to run, and pins it by its SHA-256."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from core.app_folder import staged_app
from core.errors import UserError
from core.files import replace_file
from core.kit import Kit

APPROVED, PENDING, BUNDLES = "approved.json", "pending", "bundles"
SHOWN_LINES = 400


@dataclass(frozen=True)
class Bundle:
    """A bundle that waits for a decision.

    Attributes:
        digest: SHA-256 of the content.
        content: a ZIP file.
        sent: the server sent it, and it was refused; else it is this installation's own.
        own: byte for byte what this installation makes of its own code.
    """

    digest: str
    content: bytes
    sent: bool
    own: bool


def candidates(kit: Kit) -> list[Bundle]:
    """Bundles that wait for a decision: those refused lately, then the one of this installation."""
    sent = {p.stem: p.read_bytes() for p in sorted((kit.folder / PENDING).glob("*.fab"))}
    code = installed()
    own = hashlib.sha256(code).hexdigest()
    done = {entry["sha256"] for entry in approved(kit)}
    return [
        Bundle(digest, content, digest in sent, digest == own)
        for digest, content in (sent | {own: code}).items()
        if digest not in done
    ]


def installed() -> bytes:
    """The bundle of this installation: what a coordinator with the same version sends."""
    from flwr.cli.build import build_fab_from_disk

    with staged_app() as app:
        return build_fab_from_disk(app)


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
    """Pins a bundle, and keeps it to compare later ones with; a running client sees it at once."""
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


def overview(bundle: Bundle) -> str:
    """SHA-256, origin and size of a bundle, by top folder, and what to compare before approving."""
    folders: dict[str, list[int]] = {}
    for name, text in _texts(bundle.content).items():
        lines = folders.setdefault(name.partition("/")[0], [])
        lines.append(text.count("\n"))
    rows = [(name, len(lines), sum(lines)) for name, lines in sorted(folders.items())]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    same = "equals" if bundle.own else "differs from"
    whose = f"the server sent it; it {same} this installation's own code"
    if not bundle.sent:
        whose = "this installation's own code; the server has not sent it so far"
    return "\n".join(
        [
            f"bundle {bundle.digest}",
            f"  from: {whose}",
            f"  {'folder':<16}{'files':>8}{'lines':>8}",
            *(f"  {name:<16}{files:>8}{lines:>8}" for name, files, lines in rows),
            "  before it is approved: compare the SHA-256 above with the coordinator's, by phone",
        ]
    )


def _texts(content: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as bundle:
        return {
            name: bundle.read(name).decode("utf-8", "replace")
            for name in bundle.namelist()
            if not name.startswith(".info/")
        }
