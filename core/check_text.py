"""A check on one screen, and how names are kept off it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.data.archive import Archive
from core.data.splits import case_hash
from core.errors import Finding

if TYPE_CHECKING:
    from core.check import Report

WIDTH, GROUPS, SHOWN_CASES = 100, 12, 4
HASH_LENGTH = 10


class Hider:
    """Replaces what could name a patient by salted hashes.

    Known are case ids, patients, everything between quotation marks in a message, and every folder
    and file name of the archive; a name of one or two characters only between quotation marks.

    Args:
        archive: whose names are hidden.
        secret: salt of the hashes.
    """

    def __init__(self, archive: Archive, secret: bytes) -> None:
        self._secret = secret
        names = {str(archive.root), *archive.root.parts[1:]}
        for ref in archive.cases:
            names |= {ref.case, ref.patient or ""}
            for path in (*ref.files, *ref.structures.values()):
                names |= set(_parts(path, archive.root))
        names |= {f.case for f in archive.findings}
        self._known = _pattern(n for n in names if len(n) > 2)

    def case(self, case: str) -> str:
        """The hash of a case id; "" for the archive as a whole."""
        return case_hash(case, self._secret)[:HASH_LENGTH] if case else ""

    def __call__(self, text: str) -> str:
        """The text with every known name, and everything quoted, as a hash."""
        text = re.sub(r"'([^']*)'", lambda m: self.case(m[1]) or "''", text)
        return self._known.sub(lambda m: self.case(m[0]), text) if self._known else text


def _parts(path: Path, root: Path) -> Iterator[str]:
    try:
        below = path.relative_to(root)
    except ValueError:
        below = path
    for part in below.parts:
        if part not in ("img.nrrd", "ct.csv", "structures", "/"):
            yield part
            yield part.split(".")[0]


def _pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    ordered = sorted(set(names), key=len, reverse=True)
    text = "|".join(map(re.escape, ordered))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{text})(?![A-Za-z0-9])") if ordered else None


def screen(report: Report) -> str:
    """The report as one screen of text."""
    lines = [f"{report.cases} cases ({report.format}), {report.usable} usable", ""]
    left = Counter(f.organ for f in report.findings if f.severity == "error" and f.organ)
    doubtful = Counter(f.organ for f in report.findings if f.severity != "error" and f.organ)
    lines.append(f"{'organ':<18}{'usable':>8}{'left out':>10}{'doubtful':>10}")
    for organ in dict.fromkeys([*report.organs, *sorted(left)]):
        n = report.organs.get(organ, 0)
        lines.append(f"{organ:<18}{n:>8}{left[organ] or '':>10}{doubtful[organ] or '':>10}")
    if not report.organs:
        lines.append("(none)")
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in report.findings:
        groups.setdefault((finding.severity, finding.code), []).append(finding)
    for severity, title in (("error", "errors: left out"), ("warning", "warnings: used")):
        told = [(code, found) for (kind, code), found in groups.items() if kind == severity]
        told.sort(key=lambda item: -len(item[1]))
        if told:
            lines += ["", f"{title} ({sum(len(found) for _, found in told)})"]
        for code, found in told[:GROUPS]:
            lines += _group(code, found)
        if len(told) > GROUPS:
            lines.append(f"  and {len(told) - GROUPS} further codes: see --json")
    if not report.findings:
        lines += ["", "nothing found"]
    return "\n".join(lines)


def _group(code: str, found: Sequence[Finding]) -> list[str]:
    """Two lines on all findings of one code: how many, where, the first message, the remedy."""
    where = list(dict.fromkeys(f.case for f in found if f.case))
    shown = " ".join(where[:SHOWN_CASES]) + (" ..." if len(where) > SHOWN_CASES else "")
    organs = ", ".join(dict.fromkeys(f.organ for f in found if f.organ))
    head = f"  {code} x{len(found)}" + (f"  {shown}" if shown else "")
    head += f"  [{organs}]" if organs and len(organs) < 50 else ""
    text = f"      {found[0].message.splitlines()[0]} -> {found[0].remedy}"
    return [head[:WIDTH], text if len(text) <= 2 * WIDTH else text[: 2 * WIDTH - 3] + "..."]
