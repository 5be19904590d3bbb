"""Does `hnfed check` find what is wrong? Planted defects, one at a time, and clean phantoms.

python -m benchmarks.defects
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import defect_kinds as kinds
from benchmarks.measure import AtMost, row, save, show
from core.archives.archive import open_archive
from core.errors import Finding
from hnfed.check.archive_check import Report, check_archive
from simulations.phantom.cases import SIGNATURES, Cohort, write_site

SPACING_MM = (4.0, 2.5, 2.5)
CLEAN = {"nyu": 7, "miccai": 7, "clinic": 6}
SEED = 11


@dataclass(frozen=True)
class Outcome:
    """One planted defect: what was expected, and what the check said of the defective cases."""

    name: str
    expected: str
    found: bool
    said: tuple[str, ...]


def write_clean(folder: Path, counts: dict[str, int] | None = None) -> dict[str, Path]:
    """Writes the clean phantoms, an archive a site; returns its folder by site."""
    counts = CLEAN if counts is None else counts
    for site, count in counts.items():
        write_site(folder / site, Cohort(SIGNATURES[site], count, SEED, SPACING_MM))
    return {site: folder / site for site in counts}


def planted(clean: dict[str, Path], folder: Path, name: str) -> Outcome:
    """Plants one defect in a copy of clean cases and checks that archive.

    Args:
        clean: from `write_clean`.
        folder: an empty folder for the copy.
        name: a key of `defect_kinds.KINDS`.
    """
    kind = kinds.KINDS[name]
    names = sorted(p.name for p in clean[kind.site].iterdir() if p.is_dir())[: kind.cases]
    for case in names:
        shutil.copytree(clean[kind.site] / case, folder / case)
    kind.plant(folder, [folder / case for case in names])
    report = check(folder)
    said = tuple(sorted({f.code for f in report.findings}))
    return Outcome(name, kind.code, kind.code in said, said)


def check(folder: Path) -> Report:
    """Checks the archive in `folder`, in this process."""
    return check_archive(open_archive(folder), secret=None)


def false_alarms(clean: dict[str, Path]) -> list[Finding]:
    """Every finding about the clean archives."""
    return [finding for folder in clean.values() for finding in check(folder).findings]


def write_table(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Writes the outcomes as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["defect", "expected", "found", "codes"])
        writer.writerows((o.name, o.expected, o.found, " ".join(o.said)) for o in outcomes)


def main() -> int:
    """Plants every kind of defect, prints the table; exit code 1 where one was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--csv", type=Path, help="the table, as CSV")
    parser.add_argument("--keep", type=Path, help="folder of the clean phantoms, kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        clean = write_clean(options.keep or Path(scratch) / "clean")
        outcomes = [planted(clean, Path(scratch) / name, name) for name in kinds.KINDS]
        alarms = false_alarms(clean)
    for outcome in outcomes:
        mark = "found" if outcome.found else "MISSED"
        print(f"{mark:<7} {outcome.name:<34} {outcome.expected:<22} {' '.join(outcome.said)}")
    told = Counter(finding.code for finding in alarms)
    cases = sum(CLEAN.values())
    print(f"clean: {cases} cases, {len(alarms)} false alarms {dict(told)}")
    found = sum(o.found for o in outcomes)
    rows = [
        row("check: planted defects found", found, "", "kinds", found / len(outcomes), 1.0),
        row("check: false alarms", len(alarms), "", "20 clean cases", len(alarms), AtMost(0)),
    ]
    show(rows)
    if options.csv:
        write_table(options.csv, outcomes)
    if options.json:
        save(options.json, rows)
    return int(found < len(outcomes) or bool(alarms))


if __name__ == "__main__":
    sys.exit(main())
