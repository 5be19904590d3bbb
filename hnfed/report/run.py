"""A run folder as its report and a comparison need it; the folder may come from anywhere."""

from __future__ import annotations

import base64
import csv
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import yamltext
from core.errors import UserError
from core.files import UnfitError, read_bounded
from core.identifiers import organ_name
from core.journal import JOURNAL
from core.processes import leave_if_told
from core.run_records import mapping
from core.tracking.foreign_run import (
    is_name,
    is_own_file,
    is_own_or_told,
    most_bytes,
    read_blocks,
    read_journal,
    read_json,
    read_rows,
    reason,
    sound_blocks,
    sound_events,
)
from hnfed.report.volumes import Volumes

MEASURED = ("dice", "hd95_mm", "surface_dice_2mm", "volume_ml", "predicted_ml")
PICTURE_BYTES, ALL_PICTURES_BYTES = 2_000_000, 6_500_000  # as text below 9 MB
NAME = re.compile(
    r"^\d+_(?P<organ>.+?)(?:_(?P<rank>worst|median|best|only|\d+th)_(?P<dice>\d+(?:\.\d+)?))?$"
)
NAMED_LINES = 10
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """One overlay, ready for the page: of which organ, its case's rank and Dice where told."""

    organ: str
    source: str
    rank: str = ""
    dice: float | None = None


@dataclass(frozen=True)
class TestCase:
    """Scores of one organ of one test case; None where the test did not write them, or missed.

    Attributes:
        case: its name, which no page shows but a site's own.
        organ, dice, hd95_mm, surface_dice_2mm: as in ``cases.csv``.
        volume_ml, predicted_ml: true and predicted.
    """

    case: str
    organ: str
    dice: float
    hd95_mm: float | None = None
    surface_dice_2mm: float | None = None
    volume_ml: float | None = None
    predicted_ml: float | None = None


Tests = Mapping[tuple[str, str], Sequence[TestCase]]  # (site, phase) -> its test


@dataclass(frozen=True)
class Own:
    """What a site's own page has beside a run's.

    Attributes:
        site: its name.
        others: the other sites that the plan names.
        phases: the phases that it takes part in.
        place: folder of what it keeps of the run, as a command names it.
        kit: the same of its kit.
        option: ``--site FILE`` of its commands; "" where the site file lies in the kit.
        weights: the phases of which it keeps weights.
        findings: what was left out or noted when its cases were prepared, with their names.
        replies: what left, by kind of reply.
        numbers: what left beside weights, in words.
        masked: whether what left was masked.
    """

    site: str
    others: tuple[str, ...]
    phases: tuple[str, ...]
    place: str
    kit: str
    option: str
    weights: tuple[str, ...]
    findings: tuple[Mapping[str, str], ...]
    replies: Mapping[str, int]
    numbers: tuple[str, ...]
    masked: bool


@dataclass(frozen=True)
class RunFolder:
    """Everything the report is made from; what is missing is empty.

    Attributes:
        name: of the folder.
        config: `config.yaml`.
        events: the journal.
        metrics: `metrics.json`.
        tests: (site, phase) -> scores of its test cases.
        pictures: (site, phase) -> overlays.
        problems: files that could not be used, one sentence each.
        sources: `sources.json`: dotted key of the configuration -> where its value comes from.
        simulated: it holds the sites' folders; the run folder of a federation's server does not.
        own: of a site's own page; None of a run's.
    """

    name: str
    config: Mapping[str, Any]
    events: list[dict[str, Any]]
    metrics: Mapping[str, Any]
    tests: Tests
    pictures: Mapping[tuple[str, str], list[Picture]]
    problems: tuple[str, ...]
    sources: Mapping[str, Any]
    simulated: bool
    own: Own | None = None

    @property
    def volumes(self) -> Mapping[tuple[str, str], Mapping[str, Volumes]]:
        """(site, phase) -> organ -> case -> true and predicted mL, where a test wrote them."""
        found: dict[tuple[str, str], dict[str, dict[str, tuple[float, float]]]] = {}
        for key, cases in self.tests.items():
            by_organ = found.setdefault(key, {})
            for one in cases:
                if one.volume_ml is not None and one.predicted_ml is not None:
                    both = one.volume_ml, one.predicted_ml
                    by_organ.setdefault(one.organ, {})[one.case] = both
        return found


def read_run(run: Path, *, pictures: bool = True) -> RunFolder:
    """Reads a run folder, its pictures where wanted; errors as for `write_report`."""
    problems: list[str] = []
    names = ("config.yaml", JOURNAL, "metrics.json")
    if not any((run / name).is_file() for name in names):
        raise UserError("RUN", run, f"give a run folder: it holds {JOURNAL} and metrics.json")
    whole = {name for name in names if name != JOURNAL and _own(run / name, run, problems)}
    events = read_journal(run, problems)
    broken = [e for e in events if e["event"] == "unreadable"]
    if broken:
        named = ", ".join(str(e["line"]) for e in broken[:NAMED_LINES])
        more = sum(e["lines"] for e in broken[NAMED_LINES:])
        named += f" (and {more} more)" if more else ""
        problems.append(f"{JOURNAL}: line {named} is not an event (torn by a kill?)")
    folders = {(f.parent.name, f.name): f for f in sorted(run.glob("sites/*/*"))}
    tests, drawn = read_tests(folders, run, problems, pictures=pictures)
    return RunFolder(
        name=run.resolve().name,
        config=_read_config(run / "config.yaml", problems) if "config.yaml" in whole else {},
        events=sound_events(
            [event for event in events if event["event"] != "unreadable"], problems, JOURNAL
        ),
        metrics=_read_metrics(run / "metrics.json", problems) if "metrics.json" in whole else {},
        tests=tests,
        pictures=drawn,
        problems=tuple(problems),
        sources=_read_sources(run / "sources.json", run),
        simulated=(run / "sites").is_dir(),
    )


def read_tests(
    folders: Mapping[tuple[str, str], Path],
    run: Path,
    problems: list[str],
    *,
    pictures: bool = True,
) -> tuple[Tests, dict[tuple[str, str], list[Picture]]]:
    """Test cases and pictures that phases left at their sites.

    Args:
        folders: (site, phase) -> its folder.
        run: the folder that all of them lie in; links out of it are not followed.
        problems: gets what could not be used.
        pictures: whether to read them.
    """
    tests: dict[tuple[str, str], Sequence[TestCase]] = {}
    drawn: dict[tuple[str, str], list[Picture]] = {}
    room = [ALL_PICTURES_BYTES]
    for key, folder in folders.items():
        if _own(folder / "cases.csv", run, problems):
            tests[key] = _read_cases(folder / "cases.csv", problems)
        if pictures and (folder / "overlays").is_dir():
            drawn[key] = _read_pictures(folder / "overlays", run, room, problems)
    return tests, drawn


def _own(path: Path, run: Path, problems: list[str]) -> bool:
    """Whether a file may be read; one that is there and may not, or that must be there, is told."""
    known = len(problems)
    if is_own_or_told(path, run, problems):
        return True
    if len(problems) == known and path.parent == run:
        scores = ": no test scores" if path.name == "metrics.json" else ""
        problems.append(f"{path.name} is missing{scores}")
    return False


def _read_config(path: Path, problems: list[str]) -> Mapping[str, Any]:
    try:
        values = yamltext.parse(read_bounded(path, most_bytes(path)).decode("utf-8"))
    except (OSError, ValueError) as error:
        leave_if_told()
        problems.append(f"{path.name} cannot be read ({type(error).__name__})")
        return {}
    except Exception as error:  # PyYAML's errors have no base class but this
        leave_if_told()
        problems.append(f"{path.name} is not YAML ({type(error).__name__})")
        return {}
    if not isinstance(values, dict):
        return {}
    return sound_blocks({str(k): v for k, v in values.items()}, problems, path.name)


def _read_metrics(path: Path, problems: list[str]) -> Mapping[str, Any]:
    """The metrics, of whose sites' scores those of organs' names alone are kept."""
    found = read_blocks(path, problems, ": no test scores")
    lost = 0
    for block in found.get("phases", []):
        for splits in mapping(block.get("sites")).values():
            for cells in mapping(splits).values():
                for key in [k for k in mapping(cells) if not is_name(organ_name, k)]:
                    del cells[key]
                    lost += 1
    if lost:
        problems.append(f"{path.name}: {lost} scores left out, their organs' names are none")
    return found


def _read_sources(path: Path, run: Path) -> Mapping[str, Any]:
    """Where values come from; {} in a run of an earlier version."""
    try:
        values = read_json(path) if is_own_file(path, run) else {}
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _read_cases(path: Path, problems: list[str]) -> list[TestCase]:
    """The rows of a ``cases.csv``, as far as it can be read."""
    cases: list[TestCase] = []
    try:
        for _, row in read_rows(path):
            values = {key: float(row[key]) for key in MEASURED if row.get(key)}
            cases.append(TestCase(row.get("case", ""), row["organ"], **values))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        name = "/".join(path.parts[-3:])
        problems.append(f"{name} cannot be read to its end ({reason(error)})")
    return cases


def _read_pictures(folder: Path, run: Path, room: list[int], problems: list[str]) -> list[Picture]:
    """The pictures of a phase at a site, as data URIs, as far as the page has room for them."""
    pictures, unusable, more = [], 0, 0
    name = " ".join(folder.parts[-3:-1])
    for path in sorted(folder.glob("*.png")):
        content = b""
        if is_own_file(path, run):
            with suppress(OSError, UnfitError):
                content = read_bounded(path, PICTURE_BYTES)
        found = NAME.match(path.stem)
        if not content.startswith(PNG) or found is None:
            unusable += 1
        elif len(content) > room[0]:
            more += 1
        else:
            room[0] -= len(content)
            source = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
            dice = None if found["dice"] is None else float(found["dice"])
            pictures.append(Picture(found["organ"], source, found["rank"] or "", dice))
    if more:
        problems.append(f"{name}: {more} more pictures lie in its overlays folder")
    if unusable:
        problems.append(
            f"{name}: {unusable} pictures are no PNG files of this folder, of at most 2 MB"
        )
    return pictures
