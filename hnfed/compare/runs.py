"""What one argument of `hnfed compare` holds: a run folder, a site's own run, or scores as JSON."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import read_bounded
from core.metrics.scores import MEASURES, OrganSum, pool_sites
from core.run_records import mapping, number
from core.tracking.foreign_run import (
    is_own_file,
    is_own_or_told,
    most_bytes,
    of_run,
    read_json,
    read_rows,
    reason,
)
from hnfed.report.curves import validation_dice
from hnfed.report.run import RunFolder, read_run
from hnfed.report.view import phase_names, rounds_of

POOLED = "pooled"
ALONE = "local-only"
COLUMNS = ("case", "organ", "dice", "hd95_mm")

Key = tuple[str, str, str]
"""Site, case (of a phantom with the seed that made it, after a line break), organ."""


@dataclass(frozen=True)
class Score:
    """One annotated organ of one test case.

    Attributes:
        hd95_mm: None where the organ was missed.
        missed: 1 where the prediction was empty; a share where seeds are averaged.
        penalised_mm: HD95, or the penalty for a miss; None where the penalty is not known.
    """

    dice: float
    hd95_mm: float | None
    missed: float
    penalised_mm: float | None


@dataclass(frozen=True)
class Scored:
    """Validation Dice of the weights after so many local epochs, and the seconds until then."""

    epoch: float
    seconds: float | None
    dice: float


@dataclass(frozen=True)
class PhaseResult:
    """What came out of one phase of one run.

    Attributes:
        organs: of the phase, in the plan's order.
        trained: sites whose cases trained it; of a local-only run all of them, each alone.
        scores: on test, by case; empty where the run folder holds none (a server's).
        published: ``{"dice", ..., "organs": {organ: cell}}`` over all sites, as published.
        published_sites: site -> organ -> cell.
        curve: validation Dice by epoch.
    """

    organs: tuple[str, ...]
    trained: tuple[str, ...] = ()
    scores: Mapping[Key, Score] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    published_sites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    curve: tuple[Scored, ...] = ()


@dataclass(frozen=True)
class Member:
    """One argument.

    Attributes:
        label: as given, or the name of the folder or file.
        named: the label was given.
        path: where it lies.
        kind: ``run``, ``site`` (a site's own run) or ``scores`` (of `hnfed evaluate`).
        baseline: "", ``local-only`` or ``pooled``.
        config: `config.yaml`; empty where there is none.
        phases: by name, without the site that a local-only run appends.
        splits: site -> hash of its split.
        notes: what a reader must know of it.
    """

    label: str
    named: bool
    path: Path
    kind: str
    baseline: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    phases: Mapping[str, PhaseResult] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_member(argument: str) -> Member:
    """Reads ``[NAME=]RUN`` or ``[NAME=]FILE.json``.

    Raises:
        UserError: nothing that could be compared lies there, or a file of it is broken.
    """
    with of_run(Path(argument)):
        return _read_member(argument)


def _read_member(argument: str) -> Member:
    name, _, rest = argument.partition("=")
    named = bool(rest) and "/" not in name and not Path(argument).exists()
    path = Path(rest if named else argument)
    if path.is_file():
        return _read_scores(path, name if named else path.stem, named)
    label = name if named else path.resolve().name
    if not path.is_dir():
        remedy = "give run folders such as runs/demo, or files of `hnfed evaluate --json`"
        raise UserError("RUN", path, remedy, problem="no such folder or file")
    if any((path / f).is_file() for f in ("config.yaml", "journal.jsonl", "metrics.json")):
        return _read_folder(path, label, named)
    return _read_site(path, label, named)


def _read_folder(path: Path, label: str, named: bool) -> Member:
    folder = read_run(path, pictures=False)
    baseline = str(mapping(folder.config.get("simulation")).get("baseline") or "")
    parts: dict[str, list[str]] = {}
    for plan in _blocks(folder.config):
        stem, sites = str(plan.get("name")), [str(site) for site in plan.get("sites") or []]
        parts[stem] = [f"{stem}-{site}" for site in sites] if baseline == ALONE else [stem]
    if not parts:
        parts = {name: [name] for name in phase_names(folder)}
    notes = list(folder.problems)
    status = folder.metrics.get("status")
    if status != "completed":
        notes.append(f"status {status or 'unknown'}: the run did not complete")
    return Member(
        label,
        named,
        path,
        "run",
        baseline,
        folder.config,
        {stem: _phase(path, folder, stem, names) for stem, names in parts.items()},
        {p.parent.name: _split(p) for p in path.glob("sites/*/split.hmac") if is_own_file(p, path)},
        tuple(notes),
    )


def _blocks(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The phases of a configuration or of metrics."""
    phases = values.get("phases")
    return [mapping(p) for p in phases] if isinstance(phases, list) else []


def _block(values: Mapping[str, Any], phase: str) -> Mapping[str, Any]:
    return next((p for p in _blocks(values) if p.get("name") == phase), {})


def _phase(path: Path, folder: RunFolder, stem: str, names: Sequence[str]) -> PhaseResult:
    """One phase of the plan; of a local-only run the phases of all its sites together."""
    plan = _block(folder.config, stem)
    blocks = [_block(folder.metrics, name) for name in names]
    organs = [str(o) for b in (plan, *blocks) for o in b.get("organs") or []]
    scores: dict[Key, Score] = {}
    for name in names:
        files = sorted(path.glob(f"sites/*/{name}/cases.csv"))
        for file in (file for file in files if is_own_file(file, path)):  # the rest was told
            scores |= dict(_read_cases(file, file.parent.parent.name, folder.config))
    found = tuple(dict.fromkeys([*organs, *(organ for _, _, organ in scores)]))
    sites = {
        str(site): mapping(mapping(splits).get("test"))
        for block in blocks
        for site, splits in mapping(block.get("sites")).items()
    }
    published = mapping(blocks[0].get("mean")) if len(blocks) == 1 else {}
    if not published and any(sites.values()):
        published = _pooled(sites, found)
    trained = tuple(sorted(str(site) for site in plan.get("sites") or sites))
    epochs = number(plan.get("local_epochs")) or 1.0
    curve = _curve([_part(folder, name, epochs) for name in names])
    return PhaseResult(found, trained, scores, published, sites, curve)


def _pooled(sites: Mapping[str, Mapping[str, Any]], organs: Sequence[str]) -> dict[str, Any]:
    """`pool_sites` of cells that were published; one that is suppressed cannot contribute."""
    sums = {
        s: {o: _sum_of(mapping(cell)) for o, cell in cells.items()} for s, cells in sites.items()
    }
    pooled = pool_sites(sums, organs, 1)
    cells = [mapping(cell) for by_organ in sites.values() for cell in by_organ.values()]
    unsaid = any(number(c.get("n")) and number(c.get("missed")) is None for c in cells)
    return pooled | {"missed": None} if unsaid else pooled


def _sum_of(cell: Mapping[str, Any]) -> OrganSum:
    """The sums behind a published cell; HD95 is NaN where it was not published."""
    n, missed = (int(number(cell.get(key)) or 0) for key in ("n", "missed"))
    if not n:
        return OrganSum(n=0 if number(cell.get("n")) == 0 else -1)
    if number(cell.get("dice")) is None:
        return OrganSum(n=-1)
    sums = {}
    for key, measure in MEASURES.items():
        mean, count = number(cell.get(key)), measure.cases(n, n - missed)
        sums[measure.field] = 0.0 if not count else math.nan if mean is None else mean * count
    return OrganSum(n, n - missed, **sums)


def _penalty_mm(config: Mapping[str, Any]) -> float | None:
    """What a missed organ costs: the diagonal of the crop."""
    prepare = mapping(config.get("preprocess"))
    try:
        pairs = zip(prepare["crop"], prepare["spacing_mm"], strict=True)
        return math.hypot(*(float(n) * float(s) for n, s in pairs))
    except (KeyError, TypeError, ValueError):
        return None


def _read_cases(path: Path, site: str, config: Mapping[str, Any]) -> Iterator[tuple[Key, Score]]:
    for (own, case, organ), score in _scores(_csv_rows(path), path, site, _penalty_mm(config)):
        yield (own, case + _world(config, own), organ), score


def _world(config: Mapping[str, Any], site: str) -> str:
    """What tells phantoms of one name apart: another seed makes other patients."""
    sites = mapping(mapping(config.get("simulation")).get("sites"))
    return f"\nseed {config.get('seed')}" if mapping(sites.get(site)).get("phantom") else ""


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        for line, cells in read_rows(path):
            yield f"line {line}", {**cells, "hd95_mm": cells.get("hd95_mm") or None}
    except (OSError, ValueError, csv.Error) as error:
        remedy = "run the test again, or leave this run out"
        raise UserError("cases.csv", path, remedy, problem=reason(error)) from error


def _split(path: Path) -> str:
    return read_bounded(path, most_bytes(path)).decode("ascii").strip()


def _scores(
    rows: Iterable[tuple[str, Mapping[str, Any]]], path: Path, site: str, penalty: float | None
) -> Iterator[tuple[Key, Score]]:
    """Scores by site, case and organ; a pooled site's cases go back to where they came from.

    Raises:
        UserError: a row that is no score, or a second one of the same case and organ.
    """
    seen: set[Key] = set()
    for where, row in rows:
        try:
            case, organ, dice = str(row["case"]), str(row["organ"]), float(row["dice"])
            hd95 = None if row["hd95_mm"] is None else float(row["hd95_mm"])
            cost = penalty if row.get("penalty_mm") is None else float(row["penalty_mm"])
        except (KeyError, TypeError, ValueError) as error:
            remedy = f"it needs {', '.join(COLUMNS)}; make it again"
            problem = f"{where} is no score ({type(error).__name__})"
            raise UserError("scores", path, remedy, problem=problem) from error
        own = str(row.get("site") or site)
        if own == POOLED and "/" in case:
            own, case = case.split("/", 1)
        key = (own, case, organ)
        if key in seen or not 0 <= dice <= 1:
            problem = f"{where}: " + ("a case twice" if key in seen else "Dice is not in 0 to 1")
            raise UserError("scores", path, "make the file again", problem=problem)
        seen.add(key)
        yield key, Score(dice, hd95, float(hd95 is None), cost if hd95 is None else hd95)


def _read_site(path: Path, label: str, named: bool) -> Member:
    """A site's own run: PHASE/cases.csv below STATE/RUN_ID, or below RUN/sites/SITE."""
    notes: list[str] = []
    files = [p for p in sorted(path.glob("*/cases.csv")) if is_own_or_told(p, path, notes)]
    if not files:
        remedy = "give a run folder: it holds config.yaml, journal.jsonl and metrics.json"
        problem = notes[0] if notes else "neither a run nor a site's own run"
        raise UserError("RUN", path, remedy, problem=problem)
    found = [p for p in sorted(path.glob("*/best.json")) if is_own_or_told(p, path, notes)]
    about = [_read_json(p) for p in found]
    known = [str(meta["site"]) for meta in about if meta.get("site")]
    place = path.resolve()
    simulated = place.parent.name == "sites"
    site = known[0] if known else place.name if simulated else ""
    whole = place.parent.parent / "config.yaml"
    if simulated and whole.is_file():
        config = read_run(whole.parent, pictures=False).config
    else:
        config = next((meta for meta in about if _penalty_mm(meta) is not None), {})
    phases: dict[str, PhaseResult] = {}
    for file in files:
        scores = dict(_read_cases(file, site, config))
        organs = tuple(dict.fromkeys(organ for _, _, organ in scores))
        name = file.parent.name
        stem = name.removesuffix(f"-{site}") if site else name
        phases[stem] = PhaseResult(organs, (), scores)
    split = path / "split.hmac"
    splits = {site: _split(split)} if is_own_file(split, path) else {}
    about_it = tuple(notes)
    return Member(label, named, path, "site", phases=phases, splits=splits, notes=about_it)


def _read_scores(path: Path, label: str, named: bool) -> Member:
    """The JSON of `hnfed evaluate --json --per-case`; its one phase has no name."""
    content = _read_json(path)
    rows = content.get("cases")
    if not isinstance(rows, list):
        remedy = "write it with `hnfed evaluate ... --json FILE --per-case`"
        raise UserError("RUN", path, remedy, problem="no scores of single cases in it")
    numbered = ((f"cases[{i}]", mapping(row)) for i, row in enumerate(rows))
    scores = dict(_scores(numbered, path, "", None))
    organs = tuple(o for o in mapping(content.get("organs")) if any(k[2] == o for k in scores))
    phases = {"": PhaseResult(organs, (), scores)}
    notes = tuple(str(note) for note in content.get("notes") or [])
    return Member(label, named, path, "scores", phases=phases, notes=notes)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({reason(error)})"
        raise UserError("RUN", path, "make the file again", problem=problem) from error
    return mapping(content)


Part = Mapping[float, tuple[float | None, float | None, Mapping[str, Mapping[str, Any]]]]
"""Epoch -> seconds until then, mean validation Dice, site -> organ -> validation cell."""


def _curve(parts: Sequence[Part]) -> tuple[Scored, ...]:
    """Validation Dice by local epoch; of a local-only run over all sites, where all have a score.

    The seconds are those of the rounds that led to the weights; of a local-only run of all sites.
    """
    if len(parts) == 1:
        return tuple(
            Scored(epoch, seconds, dice)
            for epoch, (seconds, dice, _) in sorted(parts[0].items())
            if dice is not None
        )
    curve = []
    for epoch in sorted(set.intersection(*(set(part) for part in parts)) if parts else ()):
        cells = {site: c for part in parts for site, c in part[epoch][2].items()}
        organs = tuple(dict.fromkeys(o for by_organ in cells.values() for o in by_organ))
        mean = number(_pooled(cells, organs)["dice"])
        times = [
            seconds for seconds, _, _ in (part[epoch] for part in parts) if seconds is not None
        ]
        if mean is not None:
            total = None if None in times else math.fsum(t or 0.0 for t in times)
            curve.append(Scored(epoch, total, mean))
    return tuple(curve)


def _part(folder: RunFolder, name: str, epochs: float) -> Part:
    """What the journal tells of one phase as it ran; `epochs` are local ones a round."""
    events = rounds_of([e for e in folder.events if e.get("phase") == name])
    block = _block(folder.metrics, name)
    best = number(block.get("best_round"))
    dice = validation_dice(events, None if best is None else int(best), block)
    cells: dict[float, dict[str, Mapping[str, Any]]] = {}
    after, total = {0.0: 0.0}, 0.0
    for event in events:
        scored = number(event.get("scored_round"))
        cells[float(event["round"]) if scored is None else scored] = _validated(event)
        total += number(event.get("seconds")) or 0.0
        after[float(event["round"])] = total
    if best is not None and best not in cells:
        cells[best] = _validated(block)
    return {r * epochs: (after.get(r), d, cells.get(r, {})) for r, d in dice.items()}


def _validated(event: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    sites = mapping(event.get("sites"))
    return {str(site): mapping(mapping(splits).get("val")) for site, splits in sites.items()}
