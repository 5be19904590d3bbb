"""A run folder from elsewhere: reported and compared, or refused in words; nothing else happens."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.journal import JOURNAL
from core.tracking import foreign_run
from core.tracking.foreign_run import MOST_EVENTS, is_own_file, read_json, read_rows
from hnfed.compare.comparison import compare
from hnfed.report.page import write_report
from hnfed.report.run import read_run
from hnfed.watch.run_state import read_run_state
from tests.traps import TRAPS, within

CELL = {"n": 3, "missed": 0, "dice": 0.8, "hd95_mm": 4.0}
PHASE = {
    "name": "pretrain",
    "organs": ["Brainstem"],
    "rounds": 2,
    "best_round": 1,
    "seconds": 3.0,
    "bytes_to_sites": 1,
    "bytes_from_sites": 1,
    "sites": {"nyu": {"val": {"Brainstem": CELL}, "test": {"Brainstem": CELL}}},
    "mean": {"dice": 0.8, "hd95_mm": 4.0},
}
METRICS = {"schema": 1, "run": "demo", "status": "completed", "phases": [PHASE]}
CONFIG = {
    "preprocess": {"crop": [8, 8, 8], "spacing_mm": [1.0, 1.0, 1.0], "window_hu": [-200, 300]},
    "phases": [{"name": "pretrain", "sites": ["nyu"], "organs": ["Brainstem"], "local_epochs": 1}],
    "simulation": {"baseline": "", "volumes": ["Brainstem"]},
    "federation": {"min_cell": 1},
}
EVENTS = [
    {"event": "run-start", "run": "demo", "plan_hash": "a" * 64, "versions": {"torch": "2"}},
    {"event": "site-described", "site": "nyu", "cases": {"train": 3}, "organs": {"Brainstem": 3}},
    {"event": "phase-start", "phase": "pretrain", "sites": ["nyu"], "organs": ["Brainstem"]},
    {
        "event": "round",
        "phase": "pretrain",
        "round": 1,
        "scored_round": 0,
        "loss": {"total": 1.0, "ce": 1.0},
        "sites": {"nyu": {"val": {"Brainstem": CELL}}},
        "mean": {"dice": 0.5},
        "seconds": 1.0,
        "accepted": ["nyu"],
        "rejected": {},
        "weights": {"terms": {"ce": 1.0}, "organs": {"Brainstem": 1.0}},
    },
    {"event": "rejected", "phase": "pretrain", "round": 1, "site": "nyu", "code": "E_LOST"},
    {"event": "phase-end", "phase": "pretrain", "best_round": 1, "seconds": 2.0},
    {"event": "run-end", "status": "completed", "seconds": 3.0},
]
CASES = "case,organ,dice,hd95_mm\np1,Brainstem,0.8,3.0\np2,Brainstem,0.7,\n"


def write(run: Path, parts: dict[str, Any]) -> Path:
    run.mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps(parts["metrics"]))
    (run / "config.yaml").write_text(json.dumps(parts["config"]))
    lines = [json.dumps({"time": "2026-03-04T10:00:00+00:00", **e}) for e in parts["events"]]
    (run / "journal.jsonl").write_text("\n".join(lines) + "\n")
    folder = run / "sites" / "nyu" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "cases.csv").write_text(parts["cases"])
    return run


def whole() -> dict[str, Any]:
    parts = {"metrics": METRICS, "config": CONFIG, "events": EVENTS, "cases": CASES}
    return copy.deepcopy(parts)


def test_a_whole_run_loses_nothing(tmp_path: Path) -> None:
    run = write(tmp_path / "run", whole())
    found = read_run(run)
    assert found.problems == ()
    assert len(found.events) == len(EVENTS)
    assert write_report(run).is_file()
    assert compare([str(run)], tmp_path / "out", None, None, 0.7)[0].rows


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "a/b", "..", "*", "a\x1b[2Kb", 3])
def test_a_phase_whose_name_is_none_is_left_out_and_told(tmp_path: Path, name: object) -> None:
    parts = whole()
    parts["metrics"]["phases"][0]["name"] = name
    parts["config"]["phases"][0]["name"] = name
    parts["events"][3]["phase"] = name
    found = read_run(write(tmp_path / "run", parts))
    assert found.metrics["phases"] == found.config["phases"] == []
    assert all(e["event"] != "round" for e in found.events)
    assert len(found.problems) == 3


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: Any = ()
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(p for key, item in items for p in paths_in(item, (*path, key)))]


PLACES = paths_in({"metrics": METRICS, "config": CONFIG, "events": EVENTS})[1:]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**18),
    st.floats(allow_nan=False),
    st.sampled_from(["", "../x", "/etc/passwd", "=1+1", "\u202e", "${oc.env:HOME}", "<b>", "1"]),
    st.lists(st.integers(0, 3), max_size=2),
    st.just({}),
    st.just({"a": {"b": [{}]}}),
    st.just([[]]),
    st.just([None]),
)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=3),
    cases=st.sampled_from([CASES, "", "case\n", CASES.replace("0.8", "x"), CASES + "\0", "\xff"]),
)
def test_whatever_stands_in_a_run_folder(
    changes: list[tuple[tuple[Any, ...], Any]], cases: str
) -> None:
    parts = whole()
    parts["cases"] = cases
    for path, junk in changes:
        place = parts
        try:
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = junk
        except (KeyError, TypeError, IndexError):
            continue
    events = parts["events"] if isinstance(parts["events"], list) else []
    parts["events"] = [e for e in events if isinstance(e, dict)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = write(root / "run", parts)
        before = set(root.rglob("*"))
        for act in (
            partial(write_report, run),
            partial(compare, [f"a={run}", f"b={run}"], root / "out", None, None, 0.7),
        ):
            with contextlib.suppress(UserError):
                act()
        made = set(root.rglob("*")) - before
        assert all(p.is_relative_to(root / "out") or p.name == "report.html" for p in made)


def test_json_that_is_too_deep_or_too_long(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    for text in ("[" * 100_000, "[" * 60 + "]" * 60, "{"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r".+"):
            read_json(path)


def test_links_out_of_a_foreign_run_folder_are_not_followed(tmp_path: Path) -> None:
    """A page that is handed on would show what lies elsewhere; a device has no end."""
    run, private = tmp_path / "run", tmp_path / "patient.png"
    private.write_bytes(b"\x89PNG\r\n\x1a\n" + b"secret")
    site = run / "sites" / "nyu" / "p"
    (site / "overlays").mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps({"phases": []}))
    (site / "overlays" / "0_Larynx.png").symlink_to(private)
    (site / "overlays" / "1_Larynx.png").write_bytes(private.read_bytes())
    (site / "overlays" / "2_Larynx.png").symlink_to("1_Larynx.png")
    for path in (site / "cases.csv", run / "journal.jsonl"):
        path.symlink_to("/dev/zero")
    (tmp_path / "own.yaml").write_text("name: private\n")
    (run / "config.yaml").symlink_to(tmp_path / "own.yaml")
    found = read_run(run)
    assert (found.config, found.events, found.tests) == ({}, [], {})
    assert len(found.pictures["nyu", "p"]) == 2, "a link within the folder is followed"
    left_out = [p.split(" is left out")[0] for p in found.problems if "link out of" in p]
    assert left_out == ["config.yaml", "journal.jsonl", "sites/nyu/p/cases.csv"]
    assert "nyu p: 1 pictures are no PNG files of this folder, of at most 2 MB" in found.problems


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize(
    "name", ["metrics.json", "config.yaml", "journal.jsonl", "sources.json", "cases.csv"]
)
def test_pipes_and_devices_of_a_run_folder_hold_nobody_up(
    tmp_path: Path, trap: Callable[[Path], None], name: str
) -> None:
    run = write(tmp_path / "run", whole())
    path = run / "sites" / "nyu" / "pretrain" / name if name == "cases.csv" else run / name
    trap(path)
    assert not is_own_file(path, run)
    with within():
        with pytest.raises(ValueError, match="no plain file"):
            read_json(path)
        found = read_run(run)
        assert write_report(run).is_file()
        compare([str(run)], tmp_path / "out", None, None, 0.7)
    told = [p for p in found.problems if "is left out: a link out of the folder, no file" in p]
    assert len(told) == (name != "sources.json")


def test_what_is_longer_than_any_of_a_run_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write(tmp_path / "run", whole())
    monkeypatch.setattr(foreign_run, "MOST_BYTES", 20)
    monkeypatch.setattr(foreign_run, "OTHERS_BYTES", {"config.yaml": 10, "journal.jsonl": 15})
    found = read_run(run)
    assert (found.config, found.metrics, found.events, found.tests) == ({}, {}, [], {})
    names = [("config.yaml", 10), ("journal.jsonl", 15), ("metrics.json", 20)]
    names += [("sites/nyu/pretrain/cases.csv", 20)]
    for name, most in names:
        assert any(p.startswith(name) and p.endswith(f"{most} bytes") for p in found.problems)
    with pytest.raises(ValueError, match="more than 20 bytes"):
        read_json(run / "metrics.json")


def test_a_configuration_of_a_megabyte_is_the_longest() -> None:
    limits = [foreign_run.most_bytes(Path(n)) for n in ("config.yaml", "metrics.json", "x.csv")]
    assert limits == [1_000_000, 20_000_000, 20_000_000]
    assert foreign_run.MOST_ROWS == 100_000


def test_rows_and_columns_of_a_foreign_table_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_run, "MOST_ROWS", 1)
    run = write(tmp_path / "run", whole())
    found = read_run(run)
    assert len(found.tests["nyu", "pretrain"]) == 1, "what was read counts"
    told = "nyu/pretrain/cases.csv cannot be read to its end (more than 1 rows)"
    assert found.problems == (told,)
    with pytest.raises(UserError, match="more than 1 rows"):
        compare([str(run)], tmp_path / "out", None, None, 0.7)
    wide = tmp_path / "wide.csv"
    wide.write_text(",".join(map(str, range(101))) + "\n1\n")
    with pytest.raises(ValueError, match="more than 100 columns"):
        next(read_rows(wide))


def test_of_many_lines_that_are_no_events_a_few_are_named(tmp_path: Path) -> None:
    run = write(tmp_path / "run", whole())
    with (run / "journal.jsonl").open("a") as file:
        file.write("0\n" * 5000)
    found = read_run(run)
    assert len(found.events) == len(EVENTS)
    (told,) = found.problems
    first = len(EVENTS) + 1
    assert f"line {', '.join(map(str, range(first, first + 10)))} (and 4990 more) is" in told


def test_a_picture_whose_name_holds_no_number_refuses_no_folder(tmp_path: Path) -> None:
    run = write(tmp_path / "run", whole())
    overlays = run / "sites" / "nyu" / "pretrain" / "overlays"
    overlays.mkdir()
    for name in ("1_Brainstem_best_1.2.3", "2_Brainstem_best_.", "3_Brainstem_best_0.5"):
        (overlays / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    drawn = read_run(run).pictures["nyu", "pretrain"]
    assert [p.dice for p in drawn] == [None, None, 0.5]
    assert write_report(run).is_file()


def test_a_journal_of_too_many_events_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / JOURNAL).write_text('{"event":"note","text":""}\n' * 11)
    assert len(read_run(tmp_path).events) == 11
    assert "left out" not in " ".join(read_run_state(tmp_path).problems)
    monkeypatch.setattr(foreign_run, "MOST_EVENTS", 10)
    told = f"{JOURNAL} is left out: more than 10 events"
    found = read_run(tmp_path)
    assert found.events == []
    assert told in found.problems
    assert told in read_run_state(tmp_path).problems


def test_a_run_of_a_thousand_rounds_and_thirty_sites_passes() -> None:
    """Two orders a round and site, each refused, flagged and noted; every organ at every site."""
    sites = [f"s{i:02}" for i in range(30)]
    cell = {"n": 3, "missed": 0, "dice": 0.8, "hd95_mm": 4.0}
    whole = {s: {"val": {f"Organ_{o}": cell for o in range(30)}} for s in sites}
    head = {"time": "2026-01-01T00:00:00.000+00:00", "phase": "pretrain", "round": 1}
    round_ = json.dumps({**head, "event": "round", "sites": whole})
    of_site = [json.dumps({**head, "event": "sent", "site": s}) for s in sites] * 5
    lines = len(of_site) + 1
    nested = sum(text.count("{") + text.count("[") for text in (round_, *of_site))
    assert 1000 * lines * 3 < MOST_EVENTS
    assert 1000 * nested < 4 * MOST_EVENTS
