"""Where a federation's server or a site's client stands, from its kit and its state folder.

Nothing is asked over a network: the SuperLink's log, the runs' folders, the site's receipts and
what the client notes of itself are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.identifiers import folder_name
from core.journal import JOURNAL
from core.metrics.scores import MEASURES
from core.run_records import mapping, number
from core.text import shown
from core.tracking.foreign_run import read_json
from core.wire.messages import CODES, OK
from hnfed.deploy.provision import ROSTER
from hnfed.deploy.superlink import ADMITTED, COMES, SUPERLINK_LOG
from hnfed.guard.kit import Kit
from hnfed.guard.receipts import read_receipts
from hnfed.guard.standing import CLIENT, LOCK, WORK, read_note
from hnfed.watch.processes import holder
from hnfed.watch.run_state import OrganState, RunState, read_run_state

SILENT_SECONDS = 60.0  # the client notes every few seconds that it heard the server
LAST = 5


@dataclass
class ServerState:
    """A federation's server.

    Attributes:
        federation: its name.
        address: what sites dial.
        up: whether `hnfed server` is at work.
        sites: of the roster: True connected, False not, None not known.
        run: the newest of its runs, or the one asked for; None where there is none.
        runs: how many there are.
        pids: of the server, and of the run.
    """

    federation: str
    address: str
    up: bool
    sites: dict[str, bool | None] = field(default_factory=dict)
    run: RunState | None = None
    runs: int = 0
    pids: list[int] = field(default_factory=list)

    @property
    def well(self) -> bool:
        """Whether it is up, and its run goes as it should."""
        return self.up and (self.run is None or self.run.well)

    def to_json(self) -> dict[str, Any]:
        """As data."""
        told = {k: v for k, v in vars(self).items() if k not in ("pids", "run")}
        return told | {"run": self.run.to_json() if self.run else None}


@dataclass
class Reply:
    """One thing that left a site, by its receipt.

    Attributes:
        at: when, ISO 8601.
        run, kind, phase, round: what it belongs to.
        code: ``OK``, or why the order was not done.
        why: that in words; "" for ``OK``.
        bytes: of weights.
        number: in the chain; 0 for one of an earlier version.
    """

    at: str
    run: str
    kind: str
    phase: str
    round: int
    code: str
    why: str
    bytes: int
    number: int


@dataclass
class ClientState:
    """A site's client.

    Attributes:
        site: its name.
        federation: of the kit.
        state: ``connected``, ``silent`` (connected, and the server not heard for a minute),
            ``dialling``, ``waiting`` (to dial again) or ``not running``.
        why: what stands in the way, if something does.
        since: seconds in that state; None where not known.
        work: the order at work: run, phase, round, rounds, task, seconds; None: none.
        replies: how many left, by code.
        last: the last ones.
        bytes: of weights that left.
        organs: this site's own validation scores in the phase it works on, or did last. They are
            exact and stay here: on this screen, never in the metrics.
        masked: whether the last scores left under masks: then there are none to show.
        pids: of the client.
    """

    site: str
    federation: str
    state: str = "not running"
    why: str = ""
    since: float | None = None
    work: dict[str, Any] | None = None
    replies: dict[str, int] = field(default_factory=dict)
    last: list[Reply] = field(default_factory=list)
    bytes: int = 0
    organs: list[OrganState] = field(default_factory=list)
    masked: bool = False
    pids: list[int] = field(default_factory=list)

    @property
    def well(self) -> bool:
        """Whether it is connected."""
        return self.state == "connected"

    def to_json(self) -> dict[str, Any]:
        """As data."""
        told = {k: v for k, v in vars(self).items() if k != "pids"}
        told["last"] = [vars(reply) for reply in self.last]
        return told | {"organs": [vars(organ) for organ in self.organs]}


def read_server_state(kit: Kit, run: str = "", now: float | None = None) -> ServerState:
    """Where a server stands.

    Args:
        kit: the server's.
        run: name of a folder below ``KIT/runs``; "" for the newest.
        now: seconds since 1970; for tests.

    Raises:
        UserError: no such run.
    """
    pid = holder(kit.folder / "flower" / "server.lock")
    found = ServerState(kit.federation, f"{kit.host}:{kit.port}", pid is not None)
    found.sites = _connections(kit, up=found.up)
    folders = [p for p in (kit.folder / "runs").glob("*") if (p / "run_id").is_file()]
    found.runs = len(folders)
    if run:
        folder_name(run, "--run")
        if kit.folder / "runs" / run not in folders:
            names = ", ".join(sorted(p.name for p in folders)) or "(none yet)"
            raise UserError("--run", run, f"choose one of {names}", problem="no such run")
        folders = [kit.folder / "runs" / run]
    if folders:
        found.run = read_run_state(max(folders, key=_changed), now)
    found.pids = [p for p in (pid, *(found.run.pids if found.run else [])) if p]
    return found


def read_client_state(kit: Kit, state: Path, now: float | None = None) -> ClientState:
    """Where a site's client stands.

    Args:
        kit: the site's.
        state: folder of the site file's `state`.
        now: seconds since 1970; for tests.
    """
    at = datetime.now(UTC).timestamp() if now is None else now
    found = ClientState(kit.role, kit.federation)
    _connection(found, state / "guard", at)
    receipts = read_receipts(state)
    lines = [(run, line) for run, rows in receipts.items() for line in rows]
    replies = [_reply(run, line) for run, line in lines if line.get("kind") in KINDS]
    for reply in replies:
        found.replies[reply.code] = found.replies.get(reply.code, 0) + 1
    found.last = sorted(replies, key=lambda r: r.number)[-LAST:]
    found.bytes = sum(reply.bytes for reply in replies)
    _own_scores(found, read_note(state / "guard" / WORK), receipts)
    return found


KINDS = ("query", "train", "evaluate", "error")


def _changed(folder: Path) -> float:
    for name in (JOURNAL, "run_id"):
        if (folder / name).is_file():
            return (folder / name).stat().st_mtime
    return 0.0


def _connections(kit: Kit, *, up: bool) -> dict[str, bool | None]:
    """By site of the roster: what the SuperLink's log says of it last."""
    home = kit.folder / "flower"
    roster, admitted = mapping(_json(kit.folder / ROSTER)), mapping(_json(home / ADMITTED))
    names = {str(mapping(e).get("node")): site for site, e in admitted.items()}
    found: dict[str, bool | None] = dict.fromkeys(sorted(map(str, roster)), None if up else False)
    if not up:
        return found
    for log in (home / f"{SUPERLINK_LOG}.1", home / SUPERLINK_LOG):
        said = log.read_bytes() if log.is_file() else b""
        for what, node in COMES.findall(said):
            site = names.get(node.decode("ascii"))
            if site in found:
                found[site] = what == b"Activate"
    return {site: bool(known) if known is not None else False for site, known in found.items()}


def _connection(found: ClientState, guard: Path, now: float) -> None:
    """Connection and work, as the client and its node note them; a dead client notes nothing."""
    told = read_note(guard / CLIENT)
    pid = holder(guard / LOCK)
    if pid is None:
        state = shown(told.get("state", ""), 20)
        if state == "stopped":
            found.why = "stopped in good order"
        elif state:
            found.why = "it ended without a word: killed, or the machine went down"
        return
    found.pids = [pid] if pid else []
    found.state = shown(told.get("state", "dialling"), 20)
    found.why = shown(told.get("why", ""), 400)
    since, heard = number(told.get("since")), number(told.get("heard"))
    found.since = None if since is None else max(now - since, 0.0)
    work = read_note(guard / WORK)
    begun = number(work.get("begun"))
    at_work = begun is not None and work.get("done") is None and begun >= (since or 0.0)
    if found.state == "connected" and begun is not None and at_work:
        keys = ("run", "phase", "round", "rounds", "task")
        found.work = {key: shown(work.get(key, ""), 80) for key in keys}
        found.work["seconds"] = max(now - begun, 0.0)
    silent = heard is not None and now - heard > SILENT_SECONDS
    if found.state == "connected" and silent and found.work is None:
        found.state = "silent"
        found.why = f"the server was not heard for {now - (heard or now):.0f} s"


def _reply(run: str, line: Mapping[str, Any]) -> Reply:
    scalars = line["scalars"]
    code = shown(scalars.get("code", OK), 20)
    return Reply(
        at=shown(line.get("at", ""), 40),
        run=shown(run, 64),
        kind=shown(line.get("kind", ""), 20),
        phase=shown(scalars.get("phase", ""), 64),
        round=int(number(scalars.get("round")) or 0),
        code=code,
        why="" if code == OK else CODES.get(code, ""),
        bytes=int(number(line.get("bytes")) or 0),
        number=int(number(line.get("n")) or 0),
    )


def _own_scores(
    found: ClientState,
    work: Mapping[str, Any],
    receipts: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """The site's own validation scores in the phase of its last order, from its receipts."""
    run, phase, organs = str(work.get("run", "")), work.get("phase"), work.get("organs")
    if not isinstance(organs, list):
        return
    states = [OrganState(shown(organ, 64)) for organ in organs]
    for line in receipts.get(run, []):
        scalars = line["scalars"]
        if scalars.get("phase") != phase:
            continue
        found.masked = "masked" in scalars
        counts, sums = (scalars.get(f"val.{name}") for name in ("n", MEASURES["dice"].field))
        if not _as_long(counts, organs) or not _as_long(sums, organs):
            continue
        for one, count, total in zip(states, counts, sums, strict=True):
            n, dice = number(count), number(total)
            if n and n > 0 and dice is not None:
                one.dice = dice / n
                one.history.append((int(number(scalars.get("round")) or 0), one.dice))
    found.organs = [one for one in states if one.history]


def _as_long(values: object, organs: Sequence[object]) -> bool:
    return isinstance(values, list) and len(values) == len(organs)


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
