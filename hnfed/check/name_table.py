"""The table of structure names in an archive: found -> organ, what is asked, what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.archives.name_matching import NONE, Match, matcher
from core.organs.vocabulary import Organ

KINDS = ("ask", "organ", "no")


@dataclass(frozen=True)
class Row:
    """One name of an archive.

    Attributes:
        name: as it stands in the archive; stays at the site.
        cases: in how many cases it is.
        match: what it means.
    """

    name: str
    cases: int
    match: Match

    @property
    def kind(self) -> str:
        """``ask``, ``organ`` or ``no``."""
        return "ask" if self.match.ask else "organ" if self.match.organ else "no"


def name_rows(
    names: Mapping[str, int],
    vocabulary: Mapping[str, Organ],
    answers: Mapping[str, Sequence[str]] | None = None,
) -> list[Row]:
    """The rows of the table: first what is asked, then the organs in their order, then the rest.

    Args:
        names: number of cases by name (`Archive.names`).
        vocabulary: organs by TG-263 name.
        answers: the site's aliases.
    """
    look = matcher(vocabulary, answers)
    order = {organ: i for i, organ in enumerate(vocabulary)}
    rows = [Row(name, cases, look(name)) for name, cases in names.items()]
    return sorted(
        rows,
        key=lambda r: (
            KINDS.index(r.kind),
            order.get(r.match.organ or next(iter(r.match.candidates), ""), -1),
            -r.cases,
            r.name,
        ),
    )


def name_text(rows: Sequence[Row]) -> str:
    """The table as text, and what to write into the site file where something is asked."""
    shown = [("found", "cases", "organ", "why")]
    shown += [(r.name, str(r.cases), _meaning(r.match), r.match.why) for r in rows]
    widths = [max(len(row[i]) for row in shown) for i in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {cases:>{widths[1]}}  {organ:<{widths[2]}}  {why}".rstrip()
        for name, cases, organ, why in shown
    ]
    counts = {kind: sum(r.kind == kind for r in rows) for kind in KINDS}
    lines += [
        "",
        f"{len(rows)} names: {counts['organ']} are organs, {counts['ask']} are asked, "
        f"{counts['no']} are no organ.",
    ]
    asked = [r for r in rows if r.match.ask]
    if asked:
        lines += ["Answer in the site file; each name under one organ, or under none:", "aliases:"]
        for organ in dict.fromkeys([*(o for r in asked for o in r.match.candidates), NONE]):
            fitting = [r.name for r in asked if organ in (*r.match.candidates, NONE)]
            lines.append(f"  {organ}: [{', '.join(map(_quoted, fitting))}]")
    return "\n".join(lines)


def name_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for ``--json``."""
    return [
        {
            "name": r.name,
            "cases": r.cases,
            "organ": r.match.organ,
            "candidates": list(r.match.candidates),
            "why": r.match.why,
        }
        for r in rows
    ]


def _meaning(match: Match) -> str:
    if match.ask:
        return f"? {' or '.join(match.candidates)}"
    return match.organ or "-"


def _quoted(name: str) -> str:
    """A name as a YAML string in double quotes."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{"".join(c if c.isprintable() else " " for c in escaped)}"'
