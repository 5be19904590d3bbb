"""What the sites of a simulation say of a failure: here they are the researcher's own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from core.journal import JOURNAL, read_events
from core.wire.messages import OF_THE_PLAN

LOG = "client.log"
SHOWN_LINES = 6
TAIL_BYTES = 64 << 10
_RAISED = re.compile(r"(?:[\w.]+\.)?(\w+): |(\w+(?:Error|Exception))$")


def sizes_of_logs(folder: Path) -> dict[Path, int]:
    """The sites' logs of a run and their sizes now, for `words_since`."""
    return {path: path.stat().st_size for path in sorted(folder.glob(f"sites/*/{LOG}"))}


def words_since(folder: Path, before: Mapping[Path, int]) -> dict[str, list[str]]:
    """By site, the errors that its log has got since: each once, without tracebacks.

    Args:
        folder: of the run.
        before: from `sizes_of_logs`.
    """
    found: dict[str, list[str]] = {}
    for path, size in sizes_of_logs(folder).items():
        start = before.get(path, 0) if size >= before.get(path, 0) else 0
        with path.open("rb") as file:
            file.seek(max(start, size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
        if errors := list(dict.fromkeys(_errors(text))):
            found[path.parent.name] = errors
    return found


def _errors(text: str) -> Iterator[str]:
    """The last error of each traceback: its text with its remedy."""
    for part in re.split(r"^Traceback \(most recent call last\):\n", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        first = next((i for i, line in enumerate(lines) if _RAISED.match(line)), None)
        if first is None:
            continue
        told = [line for line in lines[first:] if line.strip()]
        turned = any(line.startswith(("During handling", "The above exc")) for line in told)
        if not turned:  # else what it was turned into comes next
            name = _RAISED.match(told[0])
            assert name is not None
            if name[1] == "UserError" or told[0].startswith("core."):
                told[0] = told[0].partition(": ")[2]
            yield "\n".join(told[:SHOWN_LINES])


def plan_at_fault(folder: Path) -> bool:
    """Whether the run of a folder found that its plan, or an archive, cannot be gone on with."""
    events = read_events(folder / JOURNAL)
    starts = [i for i, event in enumerate(events) if event["event"] == "run-start"]
    last = events[starts[-1] :] if starts else events
    if not last or last[-1].get("status") != "failed":
        return False
    codes = {event.get("code") for event in last if event["event"] == "rejected"}
    notes = [str(event["text"]) for event in last if event["event"] == "note"]
    return bool(codes & OF_THE_PLAN) or (bool(notes) and "\n  remedy: " in notes[-1])


def told_failure(folder: Path, words: Sequence[str], before: Mapping[Path, int]) -> str:
    """What to read and to do about a run that failed; names only files that are there.

    Args:
        folder: of the run.
        words: of the command line: configuration and overrides.
        before: the sites' logs as they were when it began.
    """
    lines = []
    for site, errors in words_since(folder, before).items():
        for error in errors:
            first, *rest = error.splitlines()
            lines += [f"  site {site}: {first}", *(f"    {line.strip()}" for line in rest)]
    logs = [folder / JOURNAL, *sizes_of_logs(folder), folder / "flower" / "flower.log"]
    there = ", ".join(str(path) for path in logs if path.is_file() and path.stat().st_size)
    read = f"read {there}; " if there else ""
    if plan_at_fault(folder):
        lines.append(
            f"  remedy: {read}change the plan or the archive, and start a new run in another folder"
        )
    else:
        command = ["hnfed", "simulate", *words, "--out", str(folder), "--resume"]
        lines += [f"  remedy: {read}mend the cause, then:", "  " + shlex.join(command)]
    return "\n".join(lines)
