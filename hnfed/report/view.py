"""What the report's page says, computed from a run folder; words and looks are the template's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from core.metrics.advice import advise
from core.metrics.scores import MEASURES
from core.run_records import mapping, number
from hnfed.report import charts
from hnfed.report.advice import command_to_test, sentence
from hnfed.report.cases import dot_chart, organ_rows
from hnfed.report.contributions import contributions
from hnfed.report.curves import (
    LOSS_NAMES,
    loss_chart,
    loss_terms,
    mean_chart,
    organ_charts,
    weight_charts,
)
from hnfed.report.published import beside_paper
from hnfed.report.reasons import meaning, reasons
from hnfed.report.run import Picture, RunFolder, TestCase, Tests
from hnfed.report.settings import settings
from hnfed.report.tables import before_and_after, parts
from hnfed.report.verdict import verdict
from hnfed.report.volumes import volume_charts, without_volumes
from hnfed.report.wording import date, in_shell

COLOURS = 6

Event = Mapping[str, Any]
Cell = Mapping[str, Any]


def view(folder: RunFolder) -> dict[str, Any]:
    """Everything the template needs, by name; the verdict is made of the rest."""
    events, metrics = folder.events, folder.metrics
    start = _last(events, "run-start")
    end = _last(events, "run-end")
    names = phase_names(folder)
    sites = _site_names(folder)
    styles = {site: f"c{i % COLOURS + 1}" for i, site in enumerate(sites)}
    phases = [_phase(folder, name, styles) for name in names]
    described = _described(events)
    simulation = _section(folder.config, "simulation")
    asked = simulation.get("volumes")
    organs = [str(o) for o in asked] if isinstance(asked, list) else []
    shown = {
        "run": str(metrics.get("run") or start.get("run") or folder.name),
        "status": _status(metrics, start, end),
        "started": date(events[0].get("time")) if events else "",
        "seconds": number(end.get("seconds")) or _between(events),
        "start": start,
        "resumed": sum(1 for e in events if e["event"] == "run-start" and e.get("resumed")),
        "min_cell": None if folder.own else _section(folder.config, "federation").get("min_cell"),
        "facts": _facts(folder, start),
        "versions": start.get("versions") if isinstance(start.get("versions"), Mapping) else {},
        "sites": sites,
        "styles": styles,
        "described": described,
        "phases": phases,
        "measures": MEASURES,
        "volumes": volume_charts(organs, names, folder.volumes),
        "published": beside_paper(folder.config, metrics),
        "left": reasons(described, left_out=True),
        "noted": reasons(described, left_out=False),
        "rejected": [
            e | {"meaning": meaning(e.get("code"))} for e in events if e["event"] == "rejected"
        ],
        "notes": [e for e in events if e["event"] == "note"],
        "advice": [] if folder.own else _advice(folder),
        "own": folder.own,
        "findings": [{**f, "meaning": meaning(f["code"])} for f in folder.own.findings]
        if folder.own
        else [],
        "problems": (
            *folder.problems,
            *without_volumes(organs, folder.volumes, _scored_organs(folder)),
        ),
        "has_cases": any(phase["strip"] for phase in phases),
        "has_pictures": any(phase["pictures"] for phase in phases),
        "folder": in_shell(folder.name),
        "config": folder.config,
        "simulated": folder.simulated,
        "synthetic": folder.simulated and _synthetic(simulation, sites),
        "settings": settings(folder.config, folder.sources),
        "has_sources": bool(folder.sources),
        "contributions": contributions(events, phases, described),
    }
    return shown | {"verdict": verdict(shown)}


def _synthetic(simulation: Event, sites: Sequence[str]) -> bool:
    """Whether all patients are phantoms."""
    known = mapping(simulation.get("sites"))
    told = [mapping(known.get(site)) for site in sites]
    return bool(told) and all(s.get("phantom") and not s.get("root") for s in told)


def _status(metrics: Event, start: Event, end: Event) -> str:
    """Completed, failed ...; where the journal has no end, the run goes on or was killed."""
    ended = bool(end) and str(end.get("time", "")) >= str(start.get("time", ""))
    if ended:
        return str(end.get("status") or metrics.get("status") or "ended")
    status = str(metrics.get("status") or "")
    return status if status and status != "running" else "not finished"


def _facts(folder: RunFolder, start: Event) -> list[tuple[str, str]]:
    """What the whole run shares, as name and value; unknown ones are left out."""
    config = folder.config
    model, prepare = _section(config, "model"), _section(config, "preprocess")
    train, loss = _section(config, "train"), _section(config, "loss")
    strategy = _section(_section(config, "federation"), "strategy")
    terms = [f"{_plain(loss[t])} × {name}" for t, name in LOSS_NAMES.items() if loss.get(t)]
    window = prepare.get("window_hu")
    facts = [
        ("Network", " ".join([str(model.get("name", "")), _list(model.get("channels"), ", ")])),
        ("Voxels z, y, x", _list(prepare.get("spacing_mm"), " × ", " mm")),
        ("Crop z, y, x", _list(prepare.get("crop"), " × ", " voxels")),
        ("CT window", _list(window, " to ", " HU")),
        ("Loss", " + ".join(terms)),
        ("Optimiser", _list([train[k] for k in ("optimizer", "lr", "schedule") if k in train])),
        ("Aggregation", str(strategy.get("name", ""))),
        ("Seed", str(config.get("seed", start.get("seed", "")))),
        ("Plan hash", str(start.get("plan_hash", ""))),
    ]
    return [(name, value.strip()) for name, value in facts if value.strip()]


def _advice(folder: RunFolder) -> list[dict[str, Any]]:
    """What each site should use, in words, with the command that tests it."""
    found = advise(_planned(folder), _measured(folder), folder.events)
    return [
        entry
        | {"sentence": sentence(entry)}
        | {"command": command_to_test(entry, folder.name) if entry["choice"] else ""}
        for entry in found
    ]


def _described(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The last description of each site: cases, annotated organs, what it left out."""
    latest = {str(e.get("site")): e for e in events if e["event"] == "site-described"}
    return [
        {
            "site": site,
            "cases": mapping(event.get("cases")),
            "organs": mapping(event.get("organs")),
            "left_out": mapping(event.get("left_out")),
        }
        for site, event in sorted(latest.items())
    ]


def _phase(folder: RunFolder, name: str, styles: Mapping[str, str]) -> dict[str, Any]:
    """One phase: its plan, its curves, its scores."""
    events = [e for e in folder.events if e.get("phase") == name]
    plan = next((p for p in _planned(folder) if p.get("name") == name), {})
    block = _block(folder, name)
    start, end = _last(events, "phase-start"), _last(events, "phase-end")
    rounds = rounds_of(events)
    organs = [str(o) for o in block.get("organs") or start.get("organs") or plan.get("organs", [])]
    sites = [str(s) for s in start.get("sites") or plan.get("sites") or block.get("sites") or []]
    best = block.get("best_round", end.get("best_round"))
    if best is None and rounds:
        best = rounds[-1].get("best_round")
    best = int(best) if number(best) is not None else None
    planned = start.get("rounds", plan.get("rounds"))
    mean = mapping(block.get("mean"))
    return {
        "name": name,
        "plan": plan,
        "start": start,
        "organs": organs,
        "sites": sites,
        "rounds": block.get("rounds", end.get("rounds", len(rounds))),
        "planned": planned,
        "max_cases": plan.get("max_cases"),
        "state": "done" if end or block else "begun" if start or rounds else "not begun",
        "reason": str(end.get("reason", "")),
        "best": best,
        "best_rounds": mapping(block.get("best_rounds")),
        "mean": mean,
        "withheld": _suppressed(mapping(mean.get("organs"))),
        "withheld_val": any(
            _suppressed(mapping(mapping(site).get("val")))
            for e in (*rounds, block)
            for site in mapping(e.get("sites")).values()
        ),
        "mean_val": mapping(block.get("mean_val")),
        "tested": block.get("tested", True),
        "parts": parts(start, rounds),
        "old_organs": before_and_after(block, _block(folder, plan.get("init"))),
        "seconds": number(block.get("seconds", end.get("seconds"))),
        "cost": _cost(rounds, block),
        "loss": loss_chart(rounds),
        "loss_terms": [(LOSS_NAMES[term], style) for term, style in loss_terms(rounds)],
        "dice": mean_chart(rounds, best, block),
        "term_weights": weight_charts(rounds, "terms", LOSS_NAMES),
        "organ_weights": weight_charts(rounds, "organs", {}),
        "organ_charts": organ_charts(rounds, organs, sites, styles, best),
        "groups": _groups(block, organs, mean),
        "strip": dot_chart(
            _rows(folder.tests, name, organs, "dice"), styles, title="Dice of every test case"
        ),
        "organ_rows": organ_rows(
            organs,
            _pooled(block, organs, mean),
            _rows(folder.tests, name, organs, "dice"),
            _rows(folder.tests, name, organs, "surface_dice_2mm"),
        ),
        "pictures": _pictures(folder, name, organs),
        "cases": _worst(folder, name) if folder.own else [],
    }


def _worst(folder: RunFolder, phase: str) -> list[TestCase]:
    """Test cases of a site's own page by name, the lowest Dice first."""
    cases = [c for (_, name), tested in folder.tests.items() if name == phase for c in tested]
    return sorted(cases, key=lambda c: (c.dice, c.organ, c.case))


def _pooled(block: Event, organs: Sequence[str], mean: Event) -> Mapping[str, Any]:
    """Score cells over all sites; of a phase at one site, the site's own."""
    if not block:
        return {}
    pooled = mapping(mean.get("organs"))
    sites = [mapping(mapping(s).get("test")) for s in mapping(block.get("sites")).values()]
    if len(sites) == 1:
        return {o: sites[0].get(o) or pooled.get(o) or {} for o in organs}
    return pooled


def _pictures(
    folder: RunFolder, phase: str, organs: Sequence[str]
) -> list[tuple[str, list[tuple[str, Picture]]]]:
    """By organ: site and picture, the worst case first."""
    found: dict[str, list[tuple[str, Picture]]] = {organ: [] for organ in organs}
    for (site, name), pictures in sorted(folder.pictures.items()):
        for picture in pictures if name == phase else ():
            found.setdefault(picture.organ, []).append((site, picture))
    return [(organ, pictures) for organ, pictures in found.items() if pictures]


def _groups(block: Event, organs: Sequence[str], mean: Event) -> list[dict[str, Any]]:
    """Columns of the test table: one group a site, and all sites together where there are more."""
    sites = {
        site: mapping(mapping(splits).get("test"))
        for site, splits in sorted(mapping(block.get("sites")).items())
    }
    groups = [(site, cells) for site, cells in sites.items() if cells]
    pooled = mapping(mean.get("organs"))
    if len(groups) > 1 and pooled:
        groups.insert(0, ("all sites", pooled))
    result = []
    for title, cells in groups:
        row = {organ: mapping(cells.get(organ)) for organ in organs}
        total = mean if title == "all sites" else _means(row.values())
        if not total.get("n") and _suppressed(row):
            total = {"suppressed": True}
        result.append({"title": title, "cells": row, "mean": total})
    return result


def _suppressed(cells: Mapping[str, Any]) -> bool:
    """Whether a score of these organs is withheld."""
    return any(mapping(cell).get("suppressed") for cell in cells.values())


def _means(cells: Iterable[Cell]) -> dict[str, Any]:
    """Unweighted means over the published organs, sums of counts (D18)."""
    shown = [cell for cell in cells if cell.get("n")]
    result: dict[str, Any] = {}
    for key in MEASURES:
        values = [v for v in (number(cell.get(key)) for cell in shown) if v is not None]
        result[key] = sum(values) / len(values) if values else None
    for key in ("n", "missed"):
        told = [int(v) for cell in shown if (v := number(cell.get(key))) is not None]
        result[key] = sum(told) if told and len(told) == len(shown) else None
    return result


def _cost(rounds: Sequence[Event], block: Event) -> dict[str, Any]:
    """Seconds and bytes of a phase, summed over its rounds."""

    def total(key: str) -> float | None:
        values = [v for v in (number(e.get(key)) for e in rounds) if v is not None]
        return sum(values) if values else None

    cost: dict[str, Any] = {
        key: total(f"seconds_{key}") for key in ("compute", "startup", "waiting", "transport")
    }
    for key in ("bytes_to_sites", "bytes_from_sites"):
        cost[key] = block[key] if number(block.get(key)) is not None else total(key)
    shares = [(key, cost[key] or 0.0, f"f{i + 1}") for i, key in enumerate(list(cost)[:4])]
    cost["bar"] = charts.stacked_bar(shares, title="compute, startup, waiting and transport")
    return cost


def _rows(
    tests: Tests, phase: str, organs: Sequence[str], key: str
) -> dict[str, dict[str, list[float]]]:
    """Organ -> site -> a value of each of its test cases, of one phase."""
    rows: dict[str, dict[str, list[float]]] = {organ: {} for organ in organs}
    for (site, name), cases in sorted(tests.items()):
        for case in cases if name == phase else ():
            value = getattr(case, key)
            if case.organ in rows and value is not None:
                rows[case.organ].setdefault(site, []).append(value)
    return {organ: lanes for organ, lanes in rows.items() if lanes}


def _scored_organs(folder: RunFolder) -> dict[tuple[str, str], set[str]]:
    return {key: {case.organ for case in cases} for key, cases in folder.tests.items()}


def rounds_of(events: Sequence[Event]) -> list[Event]:
    """The last event of each round, in order: a resumed run may tell a round twice."""
    found = [e for e in events if e["event"] == "round" and number(e.get("round")) is not None]
    latest = {int(e["round"]): e for e in found}
    return [latest[number] for number in sorted(latest)]


def phase_names(folder: RunFolder) -> list[str]:
    """Phases that the plan, the metrics or the journal name, in order."""
    told = [e.get("phase") for e in folder.events if e["event"] in ("phase-start", "round")]
    names = [p.get("name") for p in (*_planned(folder), *_measured(folder))] + told
    return list(dict.fromkeys(str(name) for name in names if name))


def _site_names(folder: RunFolder) -> list[str]:
    names = {str(s) for p in _planned(folder) for s in p.get("sites") or []}
    names |= {str(s) for p in _measured(folder) for s in mapping(p.get("sites"))}
    names |= {str(e["site"]) for e in folder.events if e.get("site")}
    names |= {str(s) for e in folder.events if e["event"] == "phase-start" for s in e["sites"]}
    return sorted(names | {site for site, _ in (*folder.tests, *folder.pictures)})


def records(value: object) -> list[Event]:
    """The mappings of a list; none where it is no list."""
    return [p for p in value if isinstance(p, Mapping)] if isinstance(value, list) else []


def _planned(folder: RunFolder) -> list[Event]:
    """The plan's phases; of a site's own page those that it takes part in, as if it were alone."""
    planned, own = records(folder.config.get("phases")), folder.own
    if own is None:
        return planned
    return [{**p, "sites": [own.site]} for p in planned if p.get("name") in own.phases]


def _measured(folder: RunFolder) -> list[Event]:
    return records(folder.metrics.get("phases"))


def _block(folder: RunFolder, name: object) -> Event:
    return next((p for p in _measured(folder) if p.get("name") == name), {})


def _last(events: Sequence[Event], kind: str) -> Event:
    return next((e for e in reversed(events) if e["event"] == kind), {})


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return mapping(config.get(name))


def _list(value: object, between: str = ", ", unit: str = "") -> str:
    if not isinstance(value, list | tuple) or not value:
        return ""
    return between.join(_plain(item) for item in value) + unit


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _between(events: Sequence[Event]) -> float | None:
    """Seconds from the first event to the last."""
    try:
        times = [datetime.fromisoformat(str(e["time"])) for e in (events[0], events[-1])]
        return (times[1] - times[0]).total_seconds()
    except (IndexError, KeyError, ValueError, TypeError):
        return None
