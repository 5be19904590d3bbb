"""A check on one screen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from core.errors import Finding
from hnfed.check.archive_check import Report

WIDTH, GROUPS, SHOWN_CASES, REASONS = 100, 12, 4, 3


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


def _group(code: str, findings: Sequence[Finding]) -> list[str]:
    """Lines on all findings of one code: how many, where, and the reasons with their remedies.

    Messages that differ in nothing but numbers and hidden names are one reason.
    """
    where = list(dict.fromkeys(f.case for f in findings if f.case))
    shown = " ".join(where[:SHOWN_CASES]) + (" ..." if len(where) > SHOWN_CASES else "")
    organs = ", ".join(dict.fromkeys(f.organ for f in findings if f.organ))
    head = f"  {code} x{len(findings)}" + (f"  {shown}" if shown else "")
    head += f"  [{organs}]" if organs and len(organs) < 50 else ""
    reasons: dict[str, Finding] = {}
    for one in findings:
        reasons.setdefault(re.sub(r"\b[0-9a-f]*\d[0-9a-f.]*\b", "#", one.message), one)
    lines = [head[:WIDTH]]
    for one in list(reasons.values())[:REASONS]:
        text = f"      {one.message.splitlines()[0]} -> {one.remedy}"
        lines.append(text if len(text) <= 2 * WIDTH else text[: 2 * WIDTH - 3] + "...")
    if len(reasons) > REASONS:
        lines.append(f"      and {len(reasons) - REASONS} further reasons: see --json")
    return lines
