"""The screen at 80 and 120 columns, and in a low terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hnfed.watch.kit_state import ClientState, Reply, ServerState
from hnfed.watch.run_state import OrganState, PhaseState, RunState, SiteState
from hnfed.watch.screen import screen_of, size, spoken, trend

MACHINE = {
    "processes": 3, "memory_bytes": 2.5e9,
    "gpus": [{"index": 0, "name": "X", "busy": 40.0, "used_bytes": 3e9, "bytes": 80e9}],
}  # fmt: skip


def shown(state: Any, width: int = 80, height: int = 0, *, plain: bool = False) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(screen_of(state, MACHINE, height=height, width=width, plain=plain))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def running(organs: int = 9, sites: int = 2) -> RunState:
    names = [f"site{i}" for i in range(sites)]
    learnt = [
        OrganState(f"Organ_{i}", i / 10, [(0, 0.0), (1, i / 10)], dict.fromkeys(names, i / 10))
        for i in range(organs)
    ]
    phase = PhaseState("pretrain", "running", 2, 4, 1, "all", 0.4, seconds_left=95, organs=learnt)
    told = [SiteState(n, "training", "train", 3, 12.0, 2) for n in names]
    told[-1] = SiteState(names[-1], "refused", "train", 3, code="E_POLICY", refused=1,
                         why="the site's policy.yaml does not allow the plan")  # fmt: skip
    return RunState("r", "r-1", "running", seconds=200, phase=0, sites=told,
                    phases=[phase, PhaseState("personalise", rounds=2)], bytes_to_sites=1,
                    notes=["a word"])  # fmt: skip


@pytest.mark.parametrize("width", [80, 120])
def test_all_of_a_run_is_on_the_screen(width: int) -> None:
    text = shown(running(), width)
    for words in (
        "r-1  running for 3 min 20 s", "pretrain", "2/4", "at most 1 min 35 s", "to come",
        "training", "train 3", "refused", "E_POLICY", "policy.yaml does not allow", "Organ_8",
        "0.800", "+0.800", "note: a word", "2.5 GB in 3 processes", "GPU 0: 40 % busy, 3 GB of 80",
    ):  # fmt: skip
        assert words in text, words
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_scores_by_site_stand_where_there_is_room_for_all() -> None:
    assert "site1" not in shown(running(sites=5), 80).split("Dice of")[1]
    assert "site3  site4" in shown(running(sites=5), 120)


def test_a_low_terminal_shows_what_needs_a_look_first() -> None:
    text = shown(running(organs=30, sites=40), height=30)
    assert len(text.splitlines()) <= 45
    assert "site39" in text, "refused"
    assert "more" in text
    assert "Organ_0 " in text, "the weakest"
    assert "Organ_29" not in text
    assert "and" in text.split("Dice of")[1]


def test_withheld_scores_are_called_so() -> None:
    state = running(organs=1)
    state.phases[0].organs = [
        OrganState("Larynx", None, [], {"a": None}, withheld=True),
        OrganState("Brainstem", 0.5, [(0, 0.5)], {"a": 0.5, "b": None}, withheld=True),
    ]
    text = shown(state, 120)
    assert "withheld" in text
    assert "0.500*" in text
    assert "too few cases" in text
    state.phases[0].dice = None
    assert shown(state).count("withheld") == 1, "an organ's score is told, so no mean is withheld"
    del state.phases[0].organs[1]
    assert shown(state).count("withheld") == 2, "of the phase, too"
    state.phases[0].organs = [OrganState("Larynx", 0.5, [(0, 0.5)], {"all sites": 0.5})]
    assert "secure aggregation" in shown(state)


def test_a_site_without_a_part_shows_no_order_of_an_earlier_phase() -> None:
    state = running()
    state.sites = [SiteState("site0", "no part", "test", 3, 12.0, 2)]
    line = next(line for line in shown(state).splitlines() if line.startswith("site0"))
    assert line.split() == ["site0", "no", "part", "-", "-", "2", "0"]


def test_an_end_says_how(tmp_path: Path) -> None:
    state = running()
    state.state, state.ended = "vanished", "it was killed"
    text = shown(state)
    assert "vanished, last heard of after 3 min 20 s" in text
    assert "it was killed" in text


def test_a_server_names_who_is_connected() -> None:
    state = ServerState("hn", "fed:1", True, {"a": True, "site1": False}, running(), 1)
    text = shown(state)
    assert "connected: a; not connected: site1" in text
    assert "server is not running" in shown(ServerState("hn", "fed:1", False))
    assert "hnfed run" in shown(ServerState("hn", "fed:1", True))


def test_a_client_shows_its_order_and_what_left() -> None:
    work = {"run": "r-1", "phase": "p", "round": "2", "rounds": "4", "task": "train", "seconds": 61}
    last = [
        Reply("2026-11-29T12:00:00+0000", "r-1", "train", "p", 1, "OK", "", 4000, 1),
        Reply("2026-11-29T12:01:00+0000", "r-1", "error", "p", 2, "E_TIME", "too long", 0, 2),
    ]
    state = ClientState(
        "a",
        "hn",
        "connected",
        since=90,
        work=work,
        replies={"OK": 1, "E_TIME": 1},
        last=last,
        organs=[OrganState("Larynx", 0.5, [(0, 0.1), (1, 0.5)])],
    )
    text = shown(state)
    for words in (
        "a in hn  connected for 1 min 30 s",
        "p round 2 of 4, train, for 1 min 1 s",
        "2 replies have left",
        "not done: E_TIME 1",
        "E_TIME: too long",
        "4 kB",
        "Larynx",
        "for this site's eyes",
    ):
        assert words in text, words
    state.last = [
        Reply("2026-11-29T12:00:00+0000", "r-1", "train", "p", 1, "NEED_BASE", "lacks", 0, 3)
    ]
    assert "asked for base" in shown(state, 100)
    assert "lacks" not in shown(state, 100), "nothing is wrong"
    state.organs, state.masked = [], True
    assert "under masks" in shown(state)


def test_markup_in_a_name_stays_text() -> None:
    state = running()
    state.notes = ["[bold]x[/bold] [link=file:///etc]y[/link]"]
    assert "[bold]x[/bold] [link=file:///etc]y[/link]" in shown(state, 120)


def test_words_for_numbers() -> None:
    assert [spoken(s) for s in (3, 61, 700, 7300, 2e5)] == [
        "3 s", "1 min 1 s", "11 min", "2 h 1 min", "2 d 7 h",
    ]  # fmt: skip
    assert [size(n) for n in (5, 5120, 3.2e7, 4e9, 5e12)] == [
        "5 B", "5.12 kB", "32 MB", "4 GB", "5 TB",
    ]  # fmt: skip
    assert trend([0.0, 0.5, 1.0]) == "▁▅█"
    assert trend([0.0, 0.5, 1.0], plain=True) == "_=#"
    assert len(trend([0.5] * 99)) == 16
    assert shown(running(), plain=True).isascii()
