"""What a run folder's files say, held to the names of a run: the folder may come from anywhere.

Events, phases and sites whose names are none are left out, and told as problems of the folder;
nothing else builds a path, a pattern or a page of them. Values keep their kinds: the page and the
tables take what is a number for a number and show the rest, escaped, as text. No link is followed
out of the folder, no pipe or device read, and a file is as long as those of a run at most.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import UnfitError, plain_row, read_bounded
from core.identifiers import organ_name, phase_name, run_id_from, site_name
from core.journal import JOURNAL, read_events
from core.processes import leave_if_told
from core.run_records import require_shallow
from core.text import shown

MOST_BYTES = 20_000_000  # of JSON, a table, a picture
OTHERS_BYTES = {JOURNAL: 64_000_000, "config.yaml": 1_000_000, "split.hmac": 1000}
MOST_EVENTS = 500_000  # 1,000 rounds of 30 sites, each of them refused and flagged, have 151,000
MOST_ROWS, MOST_COLUMNS = 100_000, 100  # of a table
Parse = Callable[[object], object]


def read_journal(run: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The events of a run folder, unreadable lines among them; none, and a problem, of too many."""
    if not is_own_or_told(run / JOURNAL, run, problems):
        return []
    try:
        return read_events(run / JOURNAL, MOST_EVENTS)
    except UnfitError as error:
        problems.append(f"{JOURNAL} is left out: {error}")
        return []


def sound_events(
    events: Sequence[dict[str, Any]], problems: list[str], where: str
) -> list[dict[str, Any]]:
    """The events whose run, phase and site are names; how many are not becomes a problem."""
    kept = [event for event in events if _named(event) and _times(event)]
    _tell(problems, where, len(events) - len(kept), "events")
    return kept


def sound_blocks(values: Mapping[str, Any], problems: list[str], where: str) -> dict[str, Any]:
    """Metrics or a configuration with those phases alone whose name, sites and organs are names."""
    found = dict(values)
    if "run" in found and not isinstance(found["run"], str):
        del found["run"]
    if "phases" not in found:
        return found
    phases = found["phases"] if isinstance(found["phases"], list) else [None]
    kept = [p for p in phases if isinstance(p, Mapping) and is_name(phase_name, p.get("name"))]
    kept = [p for p in kept if _listed(p.get("organs"), organ_name) and _sites(p.get("sites"))]
    found["phases"] = kept
    _tell(problems, where, len(phases) - len(kept), "phases")
    return found


def is_own_file(path: Path, run: Path) -> bool:
    """Whether a path is a file of a run folder that may come from anywhere.

    Links out of the folder are none: what they lead to, pictures of patients perhaps, would stand
    on a page that is handed on. Nor are devices, pipes, and files that no run has the size of.
    """
    try:
        inside = path.resolve(strict=True).is_relative_to(run.resolve())
        return inside and path.is_file() and path.stat().st_size <= most_bytes(path)
    except (OSError, RuntimeError, ValueError):
        return False


def is_own_or_told(path: Path, run: Path, problems: list[str]) -> bool:
    """`is_own_file`; one that is there and may not be read becomes a problem."""
    if is_own_file(path, run):
        return True
    if path.exists() or path.is_symlink():
        name, most = path.relative_to(run).as_posix(), most_bytes(path)
        problems.append(
            f"{name} is left out: a link out of the folder, no file, or more than {most} bytes"
        )
    return False


def most_bytes(path: Path) -> int:
    """What a file of a run has at most, by its name."""
    return OTHERS_BYTES.get(path.name, MOST_BYTES)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table, each with the number of its line; a missing cell is "".

    Raises:
        OSError, ValueError, csv.Error: it cannot be read, or not further.
    """
    text = io.StringIO(read_bounded(path, most_bytes(path)).decode("utf-8"), newline="")
    rows = csv.DictReader(text)
    if len(rows.fieldnames or ()) > MOST_COLUMNS:
        raise UnfitError(f"more than {MOST_COLUMNS} columns")
    for count, row in enumerate(rows, start=1):
        if count > MOST_ROWS:
            raise UnfitError(f"more than {MOST_ROWS} rows")
        yield rows.line_num, plain_row(row)


def reason(error: Exception) -> str:
    """Why a file cannot be read, in words that hold nothing of it."""
    return str(error) if isinstance(error, UnfitError) else type(error).__name__


def read_json(path: Path) -> Any:
    """A JSON file that may come from anywhere.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, too long or too deep.
    """
    try:
        value = json.loads(read_bounded(path, most_bytes(path)))
    except RecursionError:
        raise ValueError("too deep") from None
    require_shallow(value)
    return value


def read_blocks(path: Path, problems: list[str], lost: str = "") -> dict[str, Any]:
    """`sound_blocks` of a JSON file; {} and a problem where it cannot be read.

    Args:
        path: of the file, which exists.
        problems: gets what could not be used.
        lost: what is missing without the file, for the problem.
    """
    try:
        values = read_json(path)
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        problems.append(f"{path.name} cannot be read{lost}")
        return {}
    return sound_blocks(values, problems, path.name)


@contextlib.contextmanager
def of_run(path: Path) -> Iterator[None]:
    """Tells what breaks on the content of a run folder as files that hnfed did not write.

    Raises:
        UserError: names the folder and the kind of error.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # of a template, too, whose errors have a base of their own
        leave_if_told()
        remedy = "give a folder as hnfed left it; make it anew, or leave this run out"
        problem = f"a value in it is of a kind that no run has ({type(error).__name__})"
        raise UserError("RUN", shown(path), remedy, problem=problem) from error


def _named(event: Mapping[str, Any]) -> bool:
    for key, parse in (("phase", phase_name), ("site", site_name), ("run", _run)):
        value = event.get(key, "")
        if value != "" and not is_name(parse, value):
            return False
    return True


def _times(event: Mapping[str, Any]) -> bool:
    """Whether rounds and sites are of a kind that events have."""
    sites = event.get("sites", [])
    if isinstance(sites, Mapping):
        sites = list(sites)
    number = event.get("round", 0)
    whole = isinstance(number, int) and not isinstance(number, bool)
    return (whole or number is None) and _listed(sites, site_name)


def _run(value: object) -> str:
    """A run's id; of runs before ids had a rule, any one line."""
    if not isinstance(value, str) or not run_id_from(value):
        raise UserError("run", shown(value, 100), "give a run's id")
    return value


def _sites(value: object) -> bool:
    listed = list(value) if isinstance(value, Mapping) else value
    return _listed(listed, site_name)


def _listed(value: object, parse: Parse) -> bool:
    if value is None:
        return True
    return isinstance(value, list) and all(is_name(parse, item) for item in value)


def is_name(parse: Parse, value: object) -> bool:
    """Whether a reader of names takes a value."""
    try:
        parse(value)
    except UserError:
        return False
    return True


def _tell(problems: list[str], where: str, count: int, what: str) -> None:
    if count:
        problems.append(f"{where}: {count} {what} left out, their names are none of a run")
