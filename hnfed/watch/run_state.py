"""Where a run stands, from its folder alone: the journal, metrics.json, who holds its locks.

Published figures only (D5): what is withheld in the journal is withheld here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.identifiers import site_name
from core.journal import JOURNAL
from core.plan.secure import ALL
from core.run_records import mapping, number
from core.text import shown
from core.tracking.foreign_run import is_own_file, of_run, read_blocks, read_journal, sound_events
from core.wire.messages import CODES
from hnfed.watch.processes import began, holder

Event = Mapping[str, Any]
SERVER_LOCK, START_LOCK = Path("state", ".lock"), ".start.lock"
TASKS = {"train": "training", "validate": "validating", "test": "testing", "tally": "counting"}
AWAY = "the site is not connected"
LATE_FACTOR, LATE_SECONDS = 1.5, 30.0
RECENT = 5  # rounds that the time left is judged by
NOTES = 3
OVER = {
    "completed": "all phases done",
    "failed": "it found no way on; mend the cause, then --resume",
    "incomplete": "a simulated site was lost; find the cause, then --resume",
    "interrupted": "stopped from outside; --resume goes on",
}
VANISHED = (
    "no process of this machine works on it, and its journal has no end: it was killed (--resume "
    "goes on), or works on another machine"
)


@dataclass
class SiteState:
    """One site of a run.

    Attributes:
        name: of the site.
        state: ``awaited``, ``ready``, ``training``, ``validating``, ``testing``, ``late``,
            ``answered``, ``refused``, ``not connected`` or ``no part`` (in this phase).
        task, round: of the last order; "" and 0 before one.
        seconds: since the order that is not answered yet, else those of the last answer.
        answered, refused: orders of this run so far.
        code, why: of the last refusal, if it is the last word.
        bytes: from the site so far.
    """

    name: str
    state: str = "awaited"
    task: str = ""
    round: int = 0
    seconds: float | None = None
    answered: int = 0
    refused: int = 0
    code: str = ""
    why: str = ""
    bytes: int = 0
    since: float | None = None
    took: list[float] = field(default_factory=list)


@dataclass
class OrganState:
    """Scores of one organ in one phase.

    Attributes:
        organ: its name.
        dice: mean over the cases of all sites whose score is published: of a phase that is through
            that of its best weights, else the latest; None: none told.
        history: the same by scored round, as pairs (round, Dice).
        sites: the latest by site; None where withheld.
        withheld: whether a site's latest score is of too few cases to be published.
        test: Dice on test, once the phase is through.
    """

    organ: str
    dice: float | None = None
    history: list[tuple[int, float]] = field(default_factory=list)
    sites: dict[str, float | None] = field(default_factory=dict)
    withheld: bool = False
    test: float | None = None


@dataclass
class PhaseState:
    """One phase of the plan.

    Attributes:
        name: of the phase.
        state: ``to come``, ``running`` or ``done``.
        round, rounds: the last committed one, and how many are planned.
        best_round: of the best weights so far.
        share: what travels.
        dice: mean on validation; of a phase that is through that of its best weights.
        test: mean Dice on test, once it is through.
        withheld: there is a test score, of too few cases to be told.
        reason: why it ended.
        seconds: of its rounds so far.
        seconds_left: of the rounds that are left at most; None where no round is done.
        organs: scores of those that it learns.
    """

    name: str
    state: str = "to come"
    round: int = 0
    rounds: int = 0
    best_round: int = 0
    share: str = ""
    dice: float | None = None
    test: float | None = None
    withheld: bool = False
    reason: str = ""
    seconds: float = 0.0
    seconds_left: float | None = None
    organs: list[OrganState] = field(default_factory=list)


@dataclass
class RunState:
    """A run as it stands.

    Attributes:
        name: of its folder.
        run: its id; "" before it has one.
        state: ``waiting`` (for its server), ``preparing``, ``running``, ``completed``, ``failed``,
            ``incomplete``, ``interrupted``, or ``vanished``: it ended without a word.
        ended: how, in words; "" while it has not.
        seconds: since it began, to its end.
        phase: index of the phase at work, or of the last one that was; None before the first.
        phases: of the plan, in order.
        sites: by name.
        bytes_to_sites, bytes_from_sites: of all rounds so far.
        notes: the last ones.
        last_event: when the journal was written last, seconds since 1970.
        problems: what of the folder could not be used.
        pids: processes that hold the run's locks.
    """

    name: str
    run: str = ""
    state: str = "waiting"
    ended: str = ""
    seconds: float = 0.0
    phase: int | None = None
    phases: list[PhaseState] = field(default_factory=list)
    sites: list[SiteState] = field(default_factory=list)
    bytes_to_sites: int = 0
    bytes_from_sites: int = 0
    notes: list[str] = field(default_factory=list)
    last_event: float | None = None
    problems: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether nothing more comes of this start."""
        return bool(self.ended)

    @property
    def well(self) -> bool:
        """Whether it goes as it should."""
        return self.state in ("waiting", "preparing", "running", "completed")

    def to_json(self) -> dict[str, Any]:
        """As data; numbers are finite."""
        told = {k: v for k, v in asdict(self).items() if k not in ("pids",)}
        for site in told["sites"]:
            del site["since"], site["took"]
        return told


def read_run_state(run: Path, now: float | None = None) -> RunState:
    """Where a run stands.

    Args:
        run: its folder, which may come from anywhere.
        now: seconds since 1970; for tests.

    Raises:
        UserError: no folder of a run, or one with values of kinds that no run has.
    """
    if not run.is_dir():
        raise UserError("RUN", run, "give a run folder such as runs/demo, or a kit", problem=(
            "no such folder"))  # fmt: skip
    names = (JOURNAL, "metrics.json", "config.yaml", "plan.json", "run_id", START_LOCK)
    if not any((run / name).exists() for name in names):
        remedy = f"give a run folder (it holds {JOURNAL}), or a kit (it holds kit.json)"
        raise UserError("RUN", run, remedy, problem="neither a run nor a kit lies there")
    with of_run(run):
        return _read(run, datetime.now(UTC).timestamp() if now is None else now)


def _read(run: Path, now: float) -> RunState:
    found = RunState(run.resolve().name)
    raw = read_journal(run, found.problems)
    torn = sum(e["lines"] for e in raw if e["event"] == "unreadable")
    if raw and raw[-1]["event"] == "unreadable":  # the last line may be half written
        torn -= 1
    if torn:
        found.problems.append(f"{JOURNAL}: {torn} lines are no events")
    raw = [e for e in raw if e["event"] != "unreadable"]
    events = sound_events(raw, found.problems, JOURNAL)
    plan = _json(run / "plan.json", run, found.problems)
    metrics = _json(run / "metrics.json", run, found.problems)
    _judge(found, run, events, now)
    blocks = {str(b["name"]): b for b in metrics.get("phases", [])}
    _phases(found, plan, events, blocks)
    _sites(found, plan, events, now)
    for phase in found.phases:
        phase.organs = _organs(_rounds(events, phase.name), mapping(blocks.get(phase.name)))
    rounds = _rounds(events)
    for key in ("bytes_to_sites", "bytes_from_sites"):
        setattr(found, key, int(sum(number(e.get(key)) or 0 for e in rounds)))
    notes = [e.get("text") for e in events if e["event"] == "note"]
    found.notes = [shown(text, 600) for text in notes[-NOTES:]]
    return found


def _judge(found: RunState, run: Path, events: Sequence[Event], now: float) -> None:
    """State, end and time of the run's latest start."""
    server, command = holder(run / SERVER_LOCK), holder(run / START_LOCK)
    found.pids = [pid for pid in (command, server) if pid]
    marks = [e for e in events if e["event"] in ("run-start", "run-end")]
    starts = [e for e in marks if e["event"] == "run-start"]
    found.run = str(starts[-1].get("run", "")) if starts else ""
    found.last_event = _time(events[-1]) if events else None
    begun = _time(starts[-1]) if starts else None
    at_work = server is not None or command is not None
    end = marks[-1] if marks and marks[-1]["event"] == "run-end" else None
    if end is not None and not _again(command, server, end):
        status = str(end.get("status", ""))
        found.state = status if status in OVER else "failed"
        found.ended = OVER[found.state]
        found.seconds = number(end.get("seconds")) or 0.0
        return
    if end is not None or not starts:
        found.state = "preparing" if at_work else "waiting"
    elif at_work:
        found.state = "running"
        found.seconds = max(now - (begun or now), 0.0)
    else:
        found.state, found.ended = "vanished", VANISHED
        found.seconds = max((found.last_event or 0.0) - (begun or 0.0), 0.0)


def _again(command: int | None, server: int | None, end: Event) -> bool:
    """Whether a new start is at work behind the end of an earlier one."""
    if server is not None:
        return True
    started, ended = began(command) if command else None, _time(end)
    return started is not None and ended is not None and started > ended


def _phases(
    found: RunState, plan: Event, events: Sequence[Event], blocks: Mapping[str, Any]
) -> None:
    planned = [p for p in plan.get("phases", []) if isinstance(p, Mapping)]
    names = [shown(p.get("name", "?"), 64) for p in planned]
    starts = {str(e["phase"]): e for e in events if e["event"] == "phase-start"}
    names += [n for n in (*starts, *blocks) if n not in names]
    by_name = dict(zip(names, planned, strict=False))
    ends = {str(e["phase"]): e for e in events if e["event"] == "phase-end"}
    for name in names:
        start = starts.get(name, {})
        of_plan = by_name.get(name, {})
        phase = PhaseState(
            name,
            rounds=int(number(start.get("rounds", of_plan.get("rounds"))) or 0),
            share=shown(start.get("share", of_plan.get("share", "")), 20),
        )
        rounds = _rounds(events, name)
        if rounds:
            last = rounds[-1]
            phase.round = int(last.get("round") or 0)
            phase.best_round = int(number(last.get("best_round")) or 0)
            phase.dice = number(mapping(last.get("mean")).get("dice"))
            took = [number(e.get("seconds")) or 0.0 for e in rounds]
            phase.seconds = sum(took)
            phase.seconds_left = statistics.fmean(took[-RECENT:]) * (phase.rounds - phase.round)
        if rounds or start:
            phase.state = "running"
        if name in ends or name in blocks:
            phase.state, phase.seconds_left = "done", 0.0
            phase.reason = shown(ends.get(name, {}).get("reason", ""), 80)
            block = mapping(blocks.get(name))
            phase.best_round = int(number(block.get("best_round")) or phase.best_round)
            phase.round = int(number(block.get("rounds")) or phase.round)
            phase.test = number(mapping(block.get("mean")).get("dice"))
            cells = mapping(mapping(block.get("mean")).get("organs")).values()
            hidden = any(mapping(cell).get("suppressed") for cell in cells)
            phase.withheld = phase.test is None and hidden
            phase.dice = number(mapping(block.get("mean_val")).get("dice")) or phase.dice
        found.phases.append(phase)
    running = [i for i, p in enumerate(found.phases) if p.state == "running"]
    done = [i for i, p in enumerate(found.phases) if p.state == "done"]
    found.phase = running[-1] if running else done[-1] if done else None


def _sites(found: RunState, plan: Event, events: Sequence[Event], now: float) -> None:
    """Each site by the last word that was said to it or came from it, in the latest start."""
    first = max((i for i, e in enumerate(events) if e["event"] == "run-start"), default=0)
    sites: dict[str, SiteState] = {}
    for planned in _planned_sites(plan):
        sites[planned] = SiteState(planned)
    for event in events[first:]:
        name = event.get("site")
        if name and isinstance(name, str):
            _told(sites.setdefault(name, SiteState(name)), event)
    members = _members(found, plan, events)
    for site in sites.values():
        waits = site.since is not None
        if site.state == "ready" and found.over:
            site.state = "no part"
        elif waits and found.over:
            site.state, site.since = "unanswered", None
        elif waits:
            site.seconds = max(now - (site.since or now), 0.0)
            if site.took and site.seconds > LATE_FACTOR * max(site.took) + LATE_SECONDS:
                site.state = "late"
        elif (
            members
            and not found.over
            and site.name not in members
            and site.state in ("ready", "answered")
        ):
            site.state = "no part"
    found.sites = [sites[name] for name in sorted(sites)]


def _told(site: SiteState, event: Event) -> None:
    kind = event["event"]
    if kind == "site-described":
        site.state = "ready"
    elif kind == "sent":
        task = str(event.get("kind", ""))
        site.state, site.task = TASKS.get(task, "at work"), shown(task, 20)
        site.round, site.since = int(event.get("round") or 0), _time(event)
        site.code = site.why = ""
    elif kind == "accepted":
        site.state, site.since = "answered", None
        site.seconds = number(event.get("seconds"))
        site.answered += 1
        site.bytes += int(number(event.get("bytes")) or 0)
        if site.seconds is not None and site.task == "train":
            site.took = [*site.took, site.seconds][-RECENT:]
    elif kind == "rejected":
        detail = shown(event.get("detail", ""), 300)
        away = detail.startswith(AWAY)
        site.state, site.since = ("not connected" if away else "refused"), None
        site.refused += 1
        site.code = shown(event.get("code", ""), 20)
        known = CODES.get(site.code, "")
        site.why = detail if away or not known or detail == known else f"{known} ({detail})"
        if not detail:
            site.why = known


def _members(found: RunState, plan: Event, events: Sequence[Event]) -> set[str]:
    """Sites of the phase that is shown."""
    if found.phase is None:
        return set()
    name = found.phases[found.phase].name
    starts = [e for e in events if e["event"] == "phase-start" and e.get("phase") == name]
    return set(starts[-1].get("sites") or []) if starts else set()


def _planned_sites(plan: Event) -> list[str]:
    named: list[str] = []
    for phase in plan.get("phases", []):
        for name in phase.get("sites") or []:
            named.append(site_name(name))
    return list(dict.fromkeys(named))


def _organs(rounds: Sequence[Event], block: Event) -> list[OrganState]:
    """Per organ, pooled over the sites whose cell is published; its way through the rounds."""
    organs: dict[str, OrganState] = {}
    for event in rounds:
        for organ, by_site in _val_cells(event).items():
            one = organs.setdefault(organ, OrganState(shown(organ, 64)))
            _by_site(one, by_site)
            one.dice = _pooled(by_site.values())
            if one.dice is not None:
                scored = int(number(event.get("scored_round")) or 0)
                one.history = [h for h in one.history if h[0] != scored]
                one.history.append((scored, one.dice))
    told = _val_cells(block)
    best = int(number(block.get("best_round")) or 0)
    for organ, cell in mapping(mapping(block.get("mean_val")).get("organs")).items():
        one = organs.setdefault(organ, OrganState(shown(organ, 64)))
        _by_site(one, told.get(organ, {}))
        if (dice := number(mapping(cell).get("dice"))) is not None:
            one.dice = dice
            one.history = [h for h in one.history if h[0] != best] + [(best, dice)]
    for organ, cell in mapping(mapping(block.get("mean")).get("organs")).items():
        one = organs.setdefault(organ, OrganState(shown(organ, 64)))
        one.test = number(mapping(cell).get("dice"))
    return list(organs.values())


def _val_cells(told: Event) -> dict[str, dict[str, Event]]:
    """Organ -> site -> validation cell, of a round or a phase."""
    cells: dict[str, dict[str, Event]] = {}
    for site, splits in mapping(told.get("sites")).items():
        for organ, cell in mapping(mapping(splits).get("val")).items():
            cells.setdefault(organ, {})[site] = mapping(cell)
    return cells


def _by_site(organ: OrganState, cells: Mapping[str, Event]) -> None:
    organ.sites = {_site(s): number(c.get("dice")) for s, c in cells.items()}
    organ.withheld = any(c.get("suppressed") for c in cells.values())


def _site(name: str) -> str:
    return "all sites" if name == ALL else name


def _pooled(cells: Any) -> float | None:
    """Mean Dice over the cases behind cells that are published."""
    told = [(number(c.get("n")), number(c.get("dice"))) for c in cells]
    kept = [(n, dice) for n, dice in told if n and dice is not None and math.isfinite(n * dice)]
    count = sum(n for n, _ in kept)
    return sum(n * dice for n, dice in kept) / count if count else None


def _rounds(events: Sequence[Event], phase: str | None = None) -> list[Event]:
    """Each committed round once: a resumed run may have told one again."""
    found: dict[tuple[str, int], Event] = {}
    for event in events:
        if event["event"] == "round" and phase in (None, event.get("phase")):
            found[str(event.get("phase")), int(event.get("round") or 0)] = event
    return list(found.values())


def _json(path: Path, run: Path, problems: list[str]) -> dict[str, Any]:
    return read_blocks(path, problems) if is_own_file(path, run) else {}


def _time(event: Event) -> float | None:
    try:
        found = datetime.fromisoformat(str(event.get("time", "")))
    except ValueError:
        return None
    return found.timestamp() if found.tzinfo else None
