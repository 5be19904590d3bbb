"""A run as one of its sites knows it, for that site's own page: nothing of it is sent.

Made of what the site keeps: its receipts, the plan, and the run's folder in its state. Into that
folder the approved code writes, so it is read as a run folder that may come from anywhere.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from core.data.site import FINDINGS
from core.identifiers import phase_name
from core.metrics.scores import CaseScore, OrganSum, organ_sums, pool_sites
from core.plan.load import plan_json
from core.plan.schema import LOSSES, Phase, Plan
from core.text import shown
from core.tracking.foreign_run import is_name, is_own_file, read_rows
from core.wire.messages import CODES, OK, Result
from hnfed.report.run import Own, RunFolder, TestCase, Tests, read_tests
from hnfed.report.wording import in_shell

Line = Mapping[str, Any]
Event = dict[str, Any]
MOST_FINDINGS = 1000
NUMBERS = {  # what leaves beside weights: words, and names of it in a receipt
    "counts of cases": ("cases", "annotated", "voxels"),
    "losses": ("loss",),
    "sums of scores over the cases": ("val.dice", "test.dice"),
}


@dataclass(frozen=True)
class Kept:
    """What a site keeps of a run.

    Attributes:
        site: its name.
        run: its id.
        folder: ``STATE/RUN``.
        kit: folder of the kit.
        site_file: that was given beside the kit; None for the kit's own.
        plan: of the run; None where it was not kept.
        receipts: of the run, in order.
        left_out: reason code -> how many cases were left out.
        cases: split -> how many cases; empty where the cache does not tell.
        organs: organ -> how many training cases annotate it.
    """

    site: str
    run: str
    folder: Path
    kit: Path
    site_file: Path | None
    plan: Plan | None
    receipts: Sequence[Line]
    left_out: Mapping[str, int] = field(default_factory=dict)
    cases: Mapping[str, int] = field(default_factory=dict)
    organs: Mapping[str, int] = field(default_factory=dict)


def read_site_run(kept: Kept) -> RunFolder:
    """The run as its page needs it: the site's own part of it."""
    problems: list[str] = []
    if kept.plan is None:
        problems.append(
            "the plan of this run was not kept (no order of a phase was answered, or an earlier "
            "version did): phases and settings are missing here"
        )
    planned = kept.plan.phases if kept.plan is not None else []
    phases = [p.name for p in planned if kept.site in p.sites] if planned else _tested(kept)
    folders = {(kept.site, name): kept.folder / name for name in phases}
    folders = {key: path for key, path in folders.items() if path.is_dir()}
    tests, drawn = read_tests(folders, kept.folder, problems)
    of_phase = {p.name: p for p in planned}
    found = [of_phase.get(name) or _guessed(name, kept.site, tests) for name in phases]
    events = _events(kept, found)
    return RunFolder(
        name=kept.run,
        config=json.loads(plan_json(kept.plan)) if kept.plan is not None else {},
        events=events,
        metrics=_metrics(kept, found, tests, events),
        tests=tests,
        pictures=drawn,
        problems=tuple(problems),
        sources={},
        simulated=False,
        own=_own(kept, phases),
    )


def _own(kept: Kept, phases: Sequence[str]) -> Own:
    planned = kept.plan.phases if kept.plan is not None else []
    sites = {s for p in planned if p.name in phases for s in p.sites} - {kept.site}
    weights = [n for n in phases if (kept.folder / n / "best.safetensors").is_file()]
    return Own(
        site=kept.site,
        others=tuple(sorted(sites)),
        phases=tuple(phases),
        place=in_shell(kept.folder),
        kit=in_shell(kept.kit),
        option=f"--site {in_shell(kept.site_file)}" if kept.site_file else "",
        weights=tuple(weights),
        findings=tuple(_findings(kept.folder)),
        replies=Counter(shown(line.get("kind", ""), 20) for line in kept.receipts),
        numbers=tuple(
            words
            for words, names in NUMBERS.items()
            if any(name in line["scalars"] for line in kept.receipts for name in names)
        ),
        masked=any("masked" in line["scalars"] for line in kept.receipts),
    )


def _findings(folder: Path) -> list[Mapping[str, str]]:
    """What `hnfed.deploy.prepare` wrote; code of the bundle could have written it since."""
    path = folder / FINDINGS
    if not is_own_file(path, folder):
        return []
    try:
        rows = [row for _, row in islice(read_rows(path), MOST_FINDINGS)]
    except (OSError, ValueError, csv.Error):
        return []
    keys = ("code", "severity", "case", "organ", "message", "remedy")
    return [{key: row.get(key, "") for key in keys} for row in rows]


def _tested(kept: Kept) -> list[str]:
    """Without a plan: the phases of the receipts, and those that left a test here."""
    told = [str(line["scalars"].get("phase") or "") for line in kept.receipts]
    told += sorted(path.parent.name for path in kept.folder.glob("*/cases.csv"))
    return [name for name in dict.fromkeys(told) if is_name(phase_name, name)]


def _guessed(name: str, site: str, tests: Tests) -> Phase:
    organs = list(dict.fromkeys(case.organ for case in tests.get((site, name), ())))
    return Phase(name=name, sites=[site], organs=organs)


def _events(kept: Kept, phases: Sequence[Phase]) -> list[Event]:
    """What a journal would tell, of this site alone, from its receipts."""
    site = kept.site
    first: Line = kept.receipts[0] if kept.receipts else {}
    events: list[Event] = [{"event": "run-start", "run": kept.run, "time": first.get("at", "")}]
    query: Line = next((r["scalars"] for r in kept.receipts if r.get("kind") == "query"), {})
    marked = "version."
    events[0]["versions"] = {
        k.removeprefix(marked): v for k, v in query.items() if k.startswith(marked)
    }
    described = {"event": "site-described", "site": site, "left_out": dict(kept.left_out)}
    events.append(described | {"cases": dict(kept.cases), "organs": dict(kept.organs)})
    by_name = {phase.name: phase for phase in phases}
    for line in kept.receipts:
        phase = by_name.get(str(line["scalars"].get("phase", "")))
        events += _events_of(site, line, phase)
    return events


def _events_of(site: str, line: Line, phase: Phase | None) -> list[Event]:
    """What one reply was."""
    scalars, code = line["scalars"], str(line["scalars"].get("code", OK))
    round_ = scalars.get("round", 0)
    event = {
        "time": line.get("at", ""),
        "phase": phase.name if phase else "",
        "round": round_ if type(round_) is int else 0,
        "site": site,
    }
    if code not in (OK, "NEED_BASE"):
        detail = "" if code in CODES else "of another version"
        return [event | {"event": "rejected", "code": code, "detail": detail}]
    if phase is None or code != OK:
        return []
    told = _result(scalars, phase)
    cost = {"seconds_compute": scalars.get("seconds"), "bytes": line.get("bytes", 0)}
    answered = event | {"event": "accepted"} | cost
    if line.get("kind") != "train":
        return [answered]
    cells = _cells(told.scores.get("val", {}), phase)
    shown_loss = dict(zip(LOSSES, told.loss, strict=False))
    return [
        event | {"event": "sent", "kind": "train"},
        answered,
        event
        | {
            "event": "round",
            "scored_round": event["round"] - (phase.share != "none"),
            "loss": shown_loss,
            "sites": {site: {"val": cells["organs"]}},
            "mean": {"dice": cells["dice"]},
            "accepted": [site],
            "seconds_compute": cost["seconds_compute"],
            "seconds_startup": scalars.get("startup"),
            "bytes_from_sites": cost["bytes"],
        },
    ]


def _result(scalars: Line, phase: Phase) -> Result:
    """The numbers of a reply; none where they left masked, or the policy kept them."""
    try:
        return Result.from_metrics(scalars, phase.organs)
    except (KeyError, TypeError, ValueError):
        return Result()


def _cells(sums: Mapping[str, OrganSum], phase: Phase) -> dict[str, Any]:
    known = {organ: one for organ, one in sums.items() if one.n > 0}
    return pool_sites({"here": known}, phase.organs, 1)


def _metrics(
    kept: Kept, phases: Sequence[Phase], tests: Tests, events: Sequence[Event]
) -> dict[str, Any]:
    """The site's exact scores of its own test cases, in the form of ``metrics.json``."""
    blocks = []
    penalty_mm = float("nan")  # of a miss: the diagonal of the crop
    if kept.plan is not None:
        grid = kept.plan.preprocess
        penalty_mm = math.hypot(*(n * mm for n, mm in zip(grid.crop, grid.spacing_mm, strict=True)))
    for phase in phases:
        cases = tests.get((kept.site, phase.name))
        if not cases:
            continue
        sums = organ_sums((_score(case, penalty_mm) for case in cases), phase.organs)
        pooled = pool_sites({kept.site: sums}, phase.organs, 1)
        rounds = [e["round"] for e in events if (e.get("phase"), e["event"])
                  == (phase.name, "round")]  # fmt: skip
        blocks.append(
            {
                "name": phase.name,
                "organs": list(phase.organs),
                "rounds": max(rounds, default=0),
                "sites": {kept.site: {"test": pooled["organs"]}},
                "mean": pooled,
            }
        )
    through = bool(phases) and phases[-1].name in [b["name"] for b in blocks]
    status = "completed" if through else "running"
    return {"schema": 1, "run": kept.run, "status": status, "phases": blocks}


def _score(case: TestCase, penalty_mm: float) -> CaseScore:
    """A row of ``cases.csv``."""
    nan = float("nan")
    return CaseScore(
        case.case,
        case.organ,
        case.dice,
        case.hd95_mm,
        penalty_mm,
        nan if case.volume_ml is None else case.volume_ml,
        nan if case.predicted_ml is None else case.predicted_ml,
        nan if case.surface_dice_2mm is None else case.surface_dice_2mm,
    )
