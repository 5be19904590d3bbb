"""What `hnfed watch` shows: tables for a terminal of 80 columns or more.

Every text of a file is made safe before it is shown (`core.text.shown`, where it is read), and none
of it is taken for rich's markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hnfed.watch.kit_state import ClientState, ServerState
from hnfed.watch.run_state import OrganState, PhaseState, RunState, SiteState

BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
POINTS = 16  # of a trend
BAR = 10
COLOURS = {
    "completed": "green", "connected": "green", "answered": "green", "done": "green",
    "running": "cyan", "training": "cyan", "validating": "cyan", "testing": "cyan",
    "preparing": "cyan", "at work": "cyan", "counting": "cyan",
    "late": "yellow", "silent": "yellow", "waiting": "yellow", "dialling": "yellow",
    "awaited": "yellow", "unanswered": "yellow", "incomplete": "yellow", "interrupted": "yellow",
    "failed": "red", "refused": "red", "vanished": "red", "not connected": "red",
    "not running": "red",
}  # fmt: skip
DONE = ("OK", "NEED_BASE")  # codes of replies that are in order
FEWEST_ROWS = 4  # of a table that is cut to the height of a screen
SECURE = "secure aggregation: scores are sums over all sites, none of one site is known"


def screen_of(
    state: RunState | ServerState | ClientState,
    machine: Mapping[str, Any],
    *,
    height: int = 0,
    width: int = 80,
    plain: bool = False,
) -> RenderableType:
    """The whole screen.

    Args:
        state: of what is watched.
        machine: from `hnfed.watch.processes.machine`; {} where nothing is at work here.
        height: rows of the terminal; tables are cut to it. 0: no bound.
        width: columns of the terminal.
        plain: no bars beyond ASCII.
    """
    if isinstance(state, ClientState):
        parts = _client(state, plain)
    elif isinstance(state, ServerState):
        used = 4 + (len(state.sites) > 0)
        parts = _server(state)
        if state.run is not None:
            parts += ["", *_run(state.run, max(height - used, 0), width, plain, state.sites)]
    else:
        parts = _run(state, height, width, plain, {})
    told = machine_words(machine)
    return Group(*parts, *([Text(told, style="dim")] if told else []))


def spoken(seconds: float) -> str:
    """A duration for people: ``14 s``, ``4 min 34 s``, ``2 h 3 min``, ``3 d 4 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: float) -> str:
    """Bytes for people, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def trend(values: Sequence[float], plain: bool = False) -> str:
    """Dice over the rounds as a row of bars, 0 to 1; of many rounds the last `POINTS`."""
    bars = PLAIN_BARS if plain else BARS
    return "".join(
        bars[min(max(int(value * len(bars)), 0), len(bars) - 1)] for value in values[-POINTS:]
    )


def machine_words(machine: Mapping[str, Any]) -> str:
    """Memory and GPUs of this machine in one line; "" where nothing is at work here."""
    if not machine:
        return ""
    parts = [f"{size(machine['memory_bytes'])} in {machine['processes']} processes"]
    for gpu in machine.get("gpus", []):
        busy = "" if gpu["busy"] is None else f"{gpu['busy']:.0f} % busy, "
        memory = f"{size(gpu['used_bytes'])} of {size(gpu['bytes'])}"
        parts.append(f"GPU {gpu['index']}: {busy}{memory}")
    return "this machine: " + "; ".join(parts)


def head_words(state: RunState) -> str:
    """The state of a run in a few words, with its time."""
    if state.state == "waiting":
        return "has not begun"
    if state.state == "preparing":
        return "prepares the data and the sites"
    verb = {"running": " for", "vanished": ", last heard of after"}
    return f"{state.state}{verb.get(state.state, ' after')} {spoken(state.seconds)}"


def _run(
    state: RunState, height: int, width: int, plain: bool, connected: Mapping[str, bool | None]
) -> list[RenderableType]:
    name = state.run or state.name
    parts: list[RenderableType] = [_title(name, state.state, head_words(state))]
    if state.ended and state.state != "completed":
        parts.append(Text(state.ended, style=_colour(state.state)))
    parts += [_phases(state.phases, plain)] if state.phases else []
    room = max(height - len(state.phases) - len(state.sites) - 12, FEWEST_ROWS) if height else 0
    if state.sites:
        parts += ["", _sites(state, connected, height // 2 if height else 0)]
    shown = state.phases if state.over else [p for i, p in enumerate(state.phases)
                                             if i == state.phase]  # fmt: skip
    for phase in shown:
        if phase.organs:
            parts += ["", *_scores(phase, room, width, plain)]
    traffic = f"sent {size(state.bytes_to_sites)}, received {size(state.bytes_from_sites)}"
    parts += ["", Text(traffic, style="dim")] if state.bytes_to_sites else [""]
    parts += [Text(f"note: {text}", style="yellow") for text in state.notes]
    parts += [Text(f"left out: {text}", style="yellow") for text in state.problems]
    return parts


def _title(name: str, state: str, words: str) -> Text:
    return Text.assemble((name, "bold"), "  ", (words, _colour(state)))


def _phases(phases: Sequence[PhaseState], plain: bool) -> Table:
    table = _table("", "phase", "round", "best", "val", "test", "", right=(2, 3, 4, 5))
    for number, phase in enumerate(phases, 1):
        left = phase.seconds_left
        words = "" if phase.state == "to come" else _bar(phase, plain)
        if phase.state == "running" and left:
            words += f" at most {spoken(left)}"
        elif phase.state == "running":
            words += " scoring" if phase.round else " first round"
        table.add_row(
            str(number), Text(phase.name, style="bold" if phase.state == "running" else ""),
            f"{phase.round}/{phase.rounds}", str(phase.best_round) if phase.round else "-",
            _mean(phase), "withheld" if phase.withheld else _figure(phase.test),
            Text(words or phase.state),
        )  # fmt: skip
    return table


def _mean(phase: PhaseState) -> str:
    """Mean validation Dice, or that it is withheld: no organ has one that may be told."""
    told = any(organ.dice is not None for organ in phase.organs)
    withheld = not told and any(organ.withheld for organ in phase.organs)
    return "withheld" if phase.dice is None and withheld else _figure(phase.dice)


def _bar(phase: PhaseState, plain: bool) -> str:
    if phase.state == "done":
        return "done" + (f", {phase.reason}" if phase.reason != "all rounds done" else "")
    filled = BAR * phase.round // max(phase.rounds, 1)
    return ("#" if plain else "━") * filled + ("." if plain else "┈") * (BAR - filled)


def _sites(state: RunState, connected: Mapping[str, bool | None], room: int) -> Table:
    table = _table("site", "state", "order", "time", "answered", "refused", right=(3, 4, 5))
    sites = sorted(state.sites, key=_urgency)
    cut = max(room, FEWEST_ROWS) if room else len(sites)
    for site in sites[:cut]:
        told, of_site = site.state, connected.get(site.name)
        if of_site is False and site.state not in ("answered", "no part") and not state.over:
            told = "not connected"
        idle = site.state == "no part"  # what it did last was of another phase
        order = f"{site.task} {site.round}".strip() if site.task and not idle else "-"
        time = "-" if site.seconds is None or idle else spoken(site.seconds)
        table.add_row(
            Text(site.name), Text(told, style=_colour(told)), Text(order), time,
            str(site.answered), Text(str(site.refused), style="red" if site.refused else ""),
        )  # fmt: skip
    if len(sites) > cut:
        table.add_row(f"and {len(sites) - cut} more", "", "", "", "", "")
    refused = [s for s in sites[:cut] if s.code]
    if not refused:
        return table
    outer = Table.grid()
    outer.add_row(table)
    for site in refused:
        outer.add_row(Text(f"{site.name}: {site.code}: {site.why}", style="red"))
    return outer


def _urgency(site: SiteState) -> tuple[int, str]:
    """Those that a person should look at come first."""
    order = ("refused", "not connected", "late", "unanswered", "awaited")
    return (order.index(site.state) if site.state in order else len(order), site.name)


def _scores(phase: PhaseState, room: int, width: int, plain: bool) -> list[RenderableType]:
    """Table of the organs; the weakest first where not all have room."""
    sites = sorted({site for organ in phase.organs for site in organ.sites})
    taken = sum(2 + len(name) for name in sites)
    sites = sites if len(sites) > 1 and width - 62 >= taken else []
    tested = any(organ.test is not None for organ in phase.organs)
    names = [f"Dice of {phase.name}", "val", "change", "trend"]
    table = _table(*names, *(["test"] if tested else []), *sites, right=(1, 2, *range(4, 99)))
    organs = list(phase.organs)
    if room and len(organs) > room:
        organs = sorted(organs, key=lambda o: (o.dice is None, o.dice or 0.0))[:room]
    for organ in organs:
        table.add_row(
            Text(organ.organ), _score(organ), _change(organ),
            Text(trend([dice for _, dice in organ.history], plain)),
            *([_figure(organ.test)] if tested else []),
            *(_cell(organ, site) for site in sites),
        )  # fmt: skip
    parts: list[RenderableType] = [table]
    if len(phase.organs) > len(organs):
        more = len(phase.organs) - len(organs)
        parts.append(Text(f"and {more} more organs, which are better", style="dim"))
    if any(organ.withheld for organ in phase.organs):
        parts.append(Text("* without sites that have too few cases to be told", style="dim"))
    if any("all sites" in organ.sites for organ in phase.organs):
        parts.append(Text(SECURE, style="dim"))
    return parts


def _score(organ: OrganState) -> str:
    if organ.dice is None:
        return "withheld" if organ.withheld else "-"
    return _figure(organ.dice) + ("*" if organ.withheld else "")


def _cell(organ: OrganState, site: str) -> str:
    if site not in organ.sites:
        return "-"
    value = organ.sites[site]
    return "*" if value is None and organ.withheld else _figure(value)


def _change(organ: OrganState) -> Text:
    if len(organ.history) < 2:
        return Text("-")
    moved = organ.history[-1][1] - organ.history[-2][1]
    style = "green" if moved > 0.005 else "red" if moved < -0.005 else ""
    return Text(f"{moved:+.3f}", style=style)


def _server(state: ServerState) -> list[RenderableType]:
    words = "server is up" if state.up else "server is not running (hnfed server KIT)"
    parts: list[RenderableType] = [
        _title(f"{state.federation} {state.address}", "connected" if state.up else "failed", words)
    ]
    if state.up:
        here = [site for site, known in state.sites.items() if known]
        away = [site for site, known in state.sites.items() if not known]
        told = Text.assemble(("connected: ", ""), (", ".join(here) or "no site", "green"))
        if away:
            told.append("; not connected: ").append(", ".join(away), style="red")
        parts.append(told)
    if state.run is None:
        parts.append(Text("no run yet: hnfed run PLAN --server KIT"))
    return parts


def _client(state: ClientState, plain: bool) -> list[RenderableType]:
    since = "" if state.since is None else f" for {spoken(state.since)}"
    parts: list[RenderableType] = [
        _title(f"{state.site} in {state.federation}", state.state, state.state + since)
    ]
    if state.why:
        parts.append(Text(state.why, style=_colour(state.state)))
    if state.work:
        work = state.work
        of = f" of {work['rounds']}" if work["rounds"] not in ("0", "") else ""
        where = f"{work['phase']} round {work['round']}{of}, " if work["phase"] else ""
        told = f"at work: run {work['run']}: {where}{work['task']}, for {spoken(work['seconds'])}"
        parts.append(Text(told, style="cyan"))
    elif state.state == "connected":
        parts.append(Text("waiting for an order"))
    total = sum(state.replies.values())
    codes = ", ".join(
        f"{code} {n}" for code, n in sorted(state.replies.items()) if code not in DONE
    )
    left = f"{total} replies have left, {size(state.bytes)} of weights"
    parts.append(Text(left + (f"; not done: {codes}" if codes else "")))
    if state.last:
        parts += ["", _replies(state)]
    if state.organs:
        table = _table("own val Dice", "latest", "change", "trend", right=(1, 2))
        for organ in state.organs:
            bars = Text(trend([dice for _, dice in organ.history], plain))
            table.add_row(Text(organ.organ), _figure(organ.dice), _change(organ), bars)
        parts += ["", table]
        parts.append(Text("these scores are exact and for this site's eyes", style="dim"))
    elif state.masked:
        parts += ["", Text("the scores left under masks: none is kept here", style="dim")]
    return parts


def _replies(state: ClientState) -> Table:
    table = _table("left at", "run", "what", "how it went", "weights", right=(4,))
    for reply in state.last:
        what = f"{reply.phase} {reply.round} {reply.kind}" if reply.phase else reply.kind
        good = reply.code in DONE
        at = reply.at[5:19].replace("T", " ")
        went = "asked for base" if reply.code == "NEED_BASE" else reply.code
        code = Text(went, style="green" if good else "red")
        table.add_row(Text(at), Text(reply.run), Text(what), code, size(reply.bytes))
    outer = Table.grid()
    outer.add_row(table)
    for told, why in {r.code: r.why for r in state.last if r.why and r.code not in DONE}.items():
        outer.add_row(Text(f"{told}: {why}", style="red"))
    return outer


def _table(*names: str, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, name in enumerate(names):
        justify: Any = "right" if index in right else "left"
        least = max(len(name), 5) if index in right else None
        table.add_column(
            Text(name), justify=justify, no_wrap=True, overflow="ellipsis", min_width=least
        )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _colour(state: str) -> str:
    return COLOURS.get(state, "")
