"""Which code may run at a site: one bundle, looked at by a person and pinned by its SHA-256.

A bundle that comes from the server is looked up before anything of it is opened. One that is not
approved is kept, unopened, for `hnfed approve`, with a bound on how many there are.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import replace_file
from core.packaging.app_bundle import staged_app
from core.text import flagged
from hnfed.guard.kit import Kit
from hnfed.guard.kit_files import damage, kept_bytes, kept_json
from hnfed.guard.persons import UNNAMED, Agreement, Confirmation, different, now
from hnfed.guard.rules import Policy
from hnfed.guard.unpack import BundleError, members

APPROVED, PENDING, BUNDLES = "approved.json", "pending", "bundles"
SHOWN_LINES = 400
MOST_PENDING = 5  # the newest that were refused


class NotApprovedError(Exception):
    """A bundle's SHA-256 is not the approved one; the text is for the person at the site."""


def require_approved(content: bytes, kit: Kit, policy: Policy) -> None:
    """Lets one bundle pass; any other is kept for a look, unopened.

    Args:
        content: of a bundle from the server.
        kit: of the site.
        policy: how many persons must have agreed, and how much disk what waits may take.

    Raises:
        NotApprovedError: it is not the one that is approved, or the list cannot be read.
    """
    digest = hashlib.sha256(content).hexdigest()
    try:
        current = approved(kit)
    except UserError:
        current = []
    if any(p.digest == digest and p.enough(policy.approvers) for p in current):
        return
    dropped = _keep_pending(kit.folder / PENDING, digest, content, policy.pending_mb * 1e6)
    words = f"; dropped from {PENDING}/: {', '.join(d[:16] for d in dropped)}" if dropped else ""
    raise NotApprovedError(
        f"app bundle {digest[:16]} is not approved at this site, nothing ran; "
        f"look at it and pin it with `hnfed approve {shlex.quote(str(kit.folder))}`{words}"
    )


def _keep_pending(folder: Path, digest: str, content: bytes, most_bytes: float) -> list[str]:
    """Keeps a refused bundle; returns the oldest ones' digests, which had to go for it."""
    folder.mkdir(exist_ok=True, mode=0o700)
    path = folder / f"{digest}.fab"
    if not path.is_file():
        replace_file(path, content)
    found = sorted(folder.glob("*.fab"), key=lambda p: p.lstat().st_mtime_ns, reverse=True)
    found.remove(path)
    total, dropped = len(content), []
    for count, other in enumerate(found, start=2):
        total += other.lstat().st_size
        if count > MOST_PENDING or total > most_bytes:
            other.unlink(missing_ok=True)
            dropped.append(other.stem)
    return dropped


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


def candidates(kit: Kit, approvers: int = 1) -> list[Bundle]:
    """Bundles that wait for a decision: those refused lately, then the one of this installation."""
    sent = _sent(kit.folder / PENDING)
    code = installed()
    own = hashlib.sha256(code).hexdigest()
    done = {entry.digest for entry in approved(kit) if entry.enough(approvers)}
    return [
        Bundle(digest, content, digest in sent, digest == own)
        for digest, content in (sent | {own: code}).items()
        if digest not in done
    ]


def _sent(folder: Path) -> dict[str, bytes]:
    """What was refused lately, by its SHA-256; what is no bundle that hnfed kept is left out."""
    found = {}
    for path in sorted(folder.glob("*.fab")):
        with contextlib.suppress(UserError, OSError):
            content = kept_bytes(path)
            if content is not None and hashlib.sha256(content).hexdigest() == path.stem:
                found[path.stem] = content
    return found


def installed() -> bytes:
    """The bundle of this installation: what a coordinator with the same version sends."""
    from flwr.cli.build import build_fab_from_disk

    with staged_app() as app:
        return build_fab_from_disk(app)


def approved(kit: Kit) -> list[Agreement]:
    """What is pinned: one bundle, or none.

    Raises:
        UserError: the list cannot be read.
    """
    path = kit.folder / APPROVED
    try:
        entries = kept_json(path)
        return [] if entries is None else [_pinned(entry) for entry in entries[-1:]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "restore the file, or delete it and approve again"
        raise UserError("approved.json", path, remedy, problem=damage(error)) from error


def _pinned(entry: Mapping[str, Any]) -> Agreement:
    unnamed = {"person": UNNAMED, "account": "", "behind": "", "at": str(entry.get("at", ""))}
    told = entry.get("persons") or [unnamed]
    return Agreement(str(entry["sha256"]), tuple(Confirmation.of_json(p) for p in told))


def approve(kit: Kit, digest: str, content: bytes, who: Confirmation | None = None) -> Agreement:
    """Pins a bundle in place of the one before; a running client sees it at once.

    It is kept to compare later ones with. Where it is pinned already, the person is added.

    Raises:
        UserError: it is no bundle that could run.
    """
    assert hashlib.sha256(content).hexdigest() == digest
    try:
        members(content)
    except BundleError as error:
        remedy = "do not approve it; ask the coordinator what it is"
        raise UserError("bundle", digest[:16], remedy, problem=str(error)) from error
    folder = kit.folder / BUNDLES
    folder.mkdir(exist_ok=True, mode=0o700)
    replace_file(folder / f"{digest}.fab", content)
    before = next((p.persons for p in approved(kit) if p.digest == digest), ())
    made = Agreement(digest, (*before, who or now()))
    if different(made.persons) == different(before):
        made = Agreement(digest, before)  # the same person again
    persons = [person.as_json() for person in made.persons]
    entry = {"sha256": digest, "at": made.persons[-1].at, "persons": persons}
    replace_file(kit.folder / APPROVED, json.dumps([entry], indent=1) + "\n")
    (kit.folder / PENDING / f"{digest}.fab").unlink(missing_ok=True)
    for path in folder.glob("*.fab"):
        if path.stem != digest:
            path.unlink()
    return made


def withdraw(kit: Kit) -> str:
    """Takes the approval back: nothing may run; returns the SHA-256 that could, "" for none."""
    before = approved(kit)
    replace_file(kit.folder / APPROVED, "[]\n")
    return before[-1].digest if before else ""


def difference(kit: Kit, content: bytes) -> list[str]:
    """What a bundle changes against the one approved last: a unified diff; new files whole.

    The lines are as they stand in the bundle: `core.text` makes them safe for a screen.
    """
    before: Mapping[str, str] = {}
    for entry in reversed(approved(kit)):
        path = kit.folder / BUNDLES / f"{entry.digest}.fab"
        if (content_before := kept_bytes(path)) is not None:
            before = _texts(content_before)
            break
    after = _texts(content)
    lines: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, ""), after.get(name, "")
        if old != new:
            named = (f"approved/{name}", f"new/{name}")
            split = (old.split("\n"), new.split("\n"))
            lines += difflib.unified_diff(*split, *named, lineterm="", n=2)
    return lines


def overview(bundle: Bundle) -> str:
    """SHA-256, origin and size of a bundle, by top folder, and what to compare before approving."""
    folders: dict[str, list[int]] = {}
    try:
        texts = _texts(bundle.content)
    except BundleError as error:
        return f"bundle {bundle.digest}\n  cannot be approved: {error}"
    for name, text in texts.items():
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
            *(f"  WARNING: {found}" for found in hidden_text(texts)),
            "  before it is approved: compare the SHA-256 above with the coordinator's, by phone",
        ]
    )


def hidden_text(texts: Mapping[str, str]) -> list[str]:
    """What files hold that a screen does not show as it is, and code can hide behind."""
    return [f"{name} holds {found}" for name, text in texts.items() for found in flagged(text)]


def _texts(content: bytes) -> dict[str, str]:
    return {name: text.decode("utf-8", "replace") for name, text in members(content).items()}
