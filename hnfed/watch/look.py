"""`hnfed watch`: looks again and again at a run or a kit, until the run is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from core.errors import UserError
from core.files import replace_file
from core.plan.load import read_yaml
from core.processes import leave_if_told, tell
from core.tracking.foreign_run import read_json
from hnfed.guard.kit import FILE, SERVER, read_kit
from hnfed.watch.endpoint import listening
from hnfed.watch.kit_state import ClientState, ServerState, read_client_state, read_server_state
from hnfed.watch.metrics import prometheus
from hnfed.watch.processes import machine
from hnfed.watch.run_state import RunState, read_run_state
from hnfed.watch.screen import head_words, screen_of

State = RunState | ServerState | ClientState
KINDS = {RunState: "run", ServerState: "server", ClientState: "client"}
SOCKET = "metrics.sock"


@dataclass(frozen=True)
class Watched:
    """What is watched.

    Attributes:
        read: its state now.
        home: folder where its socket lies, if none is named.
    """

    read: Callable[[], State]
    home: Path


def watched(target: Path, *, run: str = "", site_file: Path | None = None) -> Watched:
    """A run's folder, a server's kit, or a site's kit.

    Args:
        target: the folder.
        run: of a server's kit: name of the run; "" for the newest.
        site_file: of a site's kit; by default ``KIT/site.yaml``.

    Raises:
        UserError: it is neither, or an option does not fit it.
    """
    kit_file = target / FILE
    if not kit_file.is_file():
        for option, value in (("--run", run), ("--site", site_file)):
            if value:
                raise UserError(option, value, "leave it out", problem=f"{target} is no kit")
        read_run_state(target)  # tells what is wrong with it
        return Watched(lambda: read_run_state(target), target)
    if _is_server(kit_file):
        kit = read_kit(target, SERVER)
        return Watched(lambda: read_server_state(kit, run), target)
    kit = read_kit(target, "site")
    state = state_folder(site_file or target / "site.yaml")
    return Watched(lambda: read_client_state(kit, state), state / "guard")


def state_folder(site_file: Path) -> Path:
    """`state` of a site file; nothing is made there.

    Raises:
        UserError: no site file, or one without it.
    """
    if not site_file.is_file():
        remedy = "name the site file: --site SITE.yaml, or lay it into the kit as site.yaml"
        raise UserError("--site", site_file, remedy, problem="no such file")
    value = read_yaml(site_file).get("state")
    if not isinstance(value, str) or not value:
        raise UserError("site file: state", value, "give the folder that the client keeps")
    return Path(value)


def look_once(of: Watched, show: Console | None) -> tuple[State, dict[str, Any]]:
    """One look; shown where a console is given. Returns the state, and the same as data."""
    state = of.read()
    here = machine(state.pids)
    if show is not None:
        show.print(screen_of(state, here, width=show.width, plain=_plain(show)))
    return state, as_json(state, here)


def as_json(state: State, here: dict[str, Any]) -> dict[str, Any]:
    """A state as data, with what kind it is of, and this machine's part."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    head = {"schema": 1, "kind": KINDS[type(state)], "at": at, "well": state.well}
    return {**head, **state.to_json(), "machine": here}


def write_prometheus(path: Path, state: State) -> None:
    """Writes the metrics, whole or not at all, for node_exporter's textfile collector."""
    replace_file(path, prometheus(state, machine(state.pids)))


def follow(of: Watched, console: Console, seconds: float, write: Path | None = None) -> State:
    """Looks every few seconds; a run is followed to its end, a kit until Ctrl-C.

    Args:
        of: what is watched.
        console: a terminal gets a screen, anything else a line whenever something has changed.
        seconds: between two looks.
        write: file for the metrics, renewed with each look.

    Returns:
        The last state.
    """
    if not console.is_terminal:
        return _lines(of, seconds, write)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            state = of.read()
            if write is not None:
                write_prometheus(write, state)
            over = isinstance(state, RunState) and state.over
            if over:
                live.vertical_overflow = "visible"
            live.update(
                screen_of(
                    state,
                    machine(state.pids),
                    height=0 if over else console.height,
                    width=console.width,
                    plain=_plain(console),
                ),
                refresh=True,
            )
            if over:
                return state
            _rest(seconds)


def serve(of: Watched, path: Path | None) -> None:
    """Answers /health and /metrics on a socket until Ctrl-C."""
    place = path or of.home / SOCKET

    def answer() -> tuple[bool, str]:
        state = of.read()
        return state.well, prometheus(state, machine(state.pids))

    with listening(place, answer):
        tell(f"listening on {place} (mode 0600): /health, /metrics")
        while True:
            _rest(1.0)


def line_of(state: State) -> str:
    """A state in one line, without what changes by itself."""
    if isinstance(state, ClientState):
        work = state.work
        doing = f"{work['phase']} {work['round']} {work['task']}" if work else "no order"
        count = sum(state.replies.values())
        why = f" ({state.why})" if state.why else ""
        return f"{state.site} {state.state}{why}; {doing}; {count} replies have left"
    if isinstance(state, ServerState):
        here = ", ".join(site for site, known in state.sites.items() if known) or "no site"
        head = f"{state.federation} {'up' if state.up else 'not running'}; connected: {here}"
        return f"{head}; {line_of(state.run)}" if state.run else f"{head}; no run yet"
    parts = [f"{state.run or state.name} {state.state}"]
    if state.phase is not None:
        phase = state.phases[state.phase]
        dice = "" if phase.dice is None else f", val Dice {phase.dice:.3f}"
        parts.append(f"{phase.name} {phase.round}/{phase.rounds}{dice}")
    parts.append(", ".join(f"{s.name} {s.state}{f' {s.code}' if s.code else ''}"
                           for s in state.sites))  # fmt: skip
    return "; ".join(part for part in parts if part)


def _lines(of: Watched, seconds: float, write: Path | None) -> State:
    before = ""
    while True:
        state = of.read()
        if write is not None:
            write_prometheus(write, state)
        if (line := line_of(state)) != before:
            tell(line)
            before = line
        if isinstance(state, RunState) and state.over:
            tell(f"{state.run or state.name} {head_words(state)}: {state.ended}")
            return state
        _rest(seconds)


def _rest(seconds: float) -> None:
    time.sleep(seconds)
    leave_if_told()


def _plain(console: Console) -> bool:
    """Whether the terminal's letters have no bars."""
    return not (console.encoding or "").lower().startswith("utf")


def _is_server(kit_file: Path) -> bool:
    try:
        values = read_json(kit_file)
        return bool(values["role"] == SERVER)
    except (OSError, ValueError, KeyError, TypeError):
        return False
