"""The run's journal: one event a line of `journal.jsonl`, on disk before the run goes on."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.files import UnfitError, read_bounded
from core.os_refusals import about
from core.run_records import DEEPEST, require_shallow

LINE = "hnfed| "  # what tells the run's own lines on a screen from Flower's
JOURNAL = "journal.jsonl"
JOURNAL_BYTES = 2**30
MOST_UNREADABLE = 20  # lines that are told each; a torn one is left by a kill
NO_JOURNAL = 10_000


def append_event(path: Path, event: Mapping[str, Any]) -> None:
    """Appends one event as one line and waits until it is on disk.

    The line starts with `time` (UTC, ISO 8601, milliseconds) unless the event brings its own.
    Numbers that are not finite are written as null, so that every line is strict JSON. A last line
    that a killed process left half written is closed first, so that it does not spoil this one.

    Args:
        path: the journal; made with its folder where missing.
        event: must name its kind under `event`; values are JSON values, tuples, sets, paths or
            NumPy scalars.

    Raises:
        ValueError: the event has no kind.
        TypeError: a value has no place in JSON.
    """
    if not event.get("event"):
        raise ValueError(f"a journal event needs its kind under 'event': {dict(event)!r}")
    stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}
    line = json.dumps(_plain(stamped), allow_nan=False, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with about(path), path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode("ascii") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_events(path: Path, most: int | None = None) -> list[dict[str, Any]]:
    """Reads the events in the order in which they were written.

    Lines that are not an event (a tail torn by a kill) come back as
    `{"event": "unreadable", "line": number}`, counted from 1, so that a reader can say so. Of more
    than `MOST_UNREADABLE` the next one stands for the rest: its `lines` counts them. Behind
    `NO_JOURNAL` of them nothing is looked for.

    Args:
        path: the journal; a missing file is a journal without events.
        most: lines of one that may come from anywhere, with four lists and mappings each.

    Raises:
        ValueError: it is no plain file, or longer than `JOURNAL_BYTES`, or holds more than `most`.
    """
    try:
        content = read_bounded(path, JOURNAL_BYTES)
    except FileNotFoundError:
        return []
    if most is not None:
        if content.count(b"\n") > most:
            raise UnfitError(f"more than {most} events")
        if content.count(b"{") + content.count(b"[") > 4 * most:
            raise UnfitError(f"more than {4 * most} lists and mappings")
    events: list[dict[str, Any]] = []
    unreadable: list[dict[str, Any]] = []
    lines = io.BytesIO(content)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            if line.count(b"{") + line.count(b"[") > DEEPEST:
                require_shallow(event)
        except (ValueError, RecursionError):
            event = None
        kind = event.get("event") if isinstance(event, dict) else None
        if not isinstance(kind, str) or kind == "unreadable":
            if len(unreadable) > MOST_UNREADABLE:
                unreadable[-1]["lines"] += 1
                if unreadable[-1]["lines"] > NO_JOURNAL:
                    unreadable[-1]["lines"] += lines.read().count(b"\n")
                    break
                continue
            event = {"event": "unreadable", "line": number, "lines": 1}
            unreadable.append(event)
        events.append(event)
    return events


def _plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return [_plain(item) for item in sorted(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
