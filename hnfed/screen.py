"""What a command that works on many cases says meanwhile, and what it left out."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from core.errors import Finding, UserError
from core.os_refusals import in_words
from core.text import shown, shown_text

SHOWN_FINDINGS = 12


def make_folder(folder: Path, field: str) -> None:
    """Makes a folder for results before the work begins; `UserError` where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = in_words(error)
        problem, remedy = (told.problem, told.remedy) if told else (str(error), "")
        remedy = remedy or "choose another place"
        raise UserError(field, folder, remedy, problem=problem) from error
    if not os.access(folder, os.W_OK):
        raise UserError(field, folder, "choose another place", problem="no permission to write")


def shortened(names: Sequence[str], limit: int = 8) -> str:
    """The first names, and how many there are beside them."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def print_findings(findings: Sequence[Finding]) -> None:
    """What was left out, each; warnings as counts by code."""
    errors = [f for f in findings if f.severity == "error"]
    for f in errors[:SHOWN_FINDINGS]:
        what = "/".join(part for part in (f.case, f.organ) if part)
        told = f"left out: {shown(what)}: {f.code} {shown(f.message)}"
        print(f"{told}\n  remedy: {shown_text(f.remedy)}", file=sys.stderr)
    if len(errors) > SHOWN_FINDINGS:
        print(f"left out: {len(errors) - SHOWN_FINDINGS} more; see `hnfed check`", file=sys.stderr)
    warnings = Counter(f.code for f in findings if f.severity != "error")
    if warnings:
        counts = ", ".join(f"{code} {n}" for code, n in sorted(warnings.items()))
        print(f"warnings: {counts}; see `hnfed check`", file=sys.stderr)


class Progress:
    """One line a case on stderr, with the time left."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def __call__(self, done: int, count: int, case: str) -> None:
        """One line: how many of how many, which case, and about how long the rest takes."""
        left = ""
        if done:
            seconds = (time.monotonic() - self.start) / done * (count - done)
            minutes = seconds / 60
            about = f"{minutes:.0f} min" if minutes > 2 else f"{seconds:.0f} s"
            left = f", about {about} left"
        print(f"[{done + 1}/{count}] {shown(case)}{left}", file=sys.stderr, flush=True)
