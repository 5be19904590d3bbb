"""What in an archive can be used, and what is wrong with the rest: `hnfed check`.

Errors are what `prepare` leaves out; warnings are used all the same. A case appears by a salted
hash; its name, and names of files, only where they were asked for.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from core.archives.archive import Archive
from core.archives.parallel import each
from core.errors import Finding
from core.organs.vocabulary import BUILT_IN
from hnfed.check.case_check import CaseFacts, examine
from hnfed.check.cohort_check import duplicates, protocols, split_leaks
from hnfed.check.hider import Hider

Progress = Callable[[int, int], None]
NO_ORGAN = "E_NO_ORGAN"


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        format: of the archive.
        cases: cases listed.
        usable: cases of which at least one organ can be used.
        organs: organ -> number of cases in which it can be used, in the order of the vocabulary.
        findings: errors first; each case appears by its hash, or by its id where asked for.
    """

    format: str
    cases: int
    usable: int
    organs: Mapping[str, int]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(f.severity == "error" for f in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The report as `hnfed check --json` writes it."""
        return {
            "schema": 1,
            "format": self.format,
            "cases": self.cases,
            "usable": self.usable,
            "organs": {organ: {"n": n} for organ, n in self.organs.items()},
            "findings": [asdict(finding) for finding in self.findings],
        }


def check_archive(
    archive: Archive,
    organs: Sequence[str] = tuple(BUILT_IN),
    *,
    splits: Mapping[str, str] | None = None,
    secret: bytes | None = b"",
    jobs: int = 1,
    progress: Progress | None = None,
) -> Report:
    """Reads every case of an archive and judges it; writes nothing.

    Args:
        archive: from `core.archives.archive.open_archive`.
        organs: organs to look at.
        splits: split by case id; those of ``cases.csv`` by default.
        secret: salt of the case hashes: the site's own secret, so that they stay the same; None
            tells cases and files by name.
        jobs: processes.
        progress: called with (cases done, cases in all).
    """
    facts: list[CaseFacts | None] = [None] * len(archive.cases)
    lone = replace(archive, cases=(), findings=())  # all that a worker needs to read one case
    job = functools.partial(examine, lone, tuple(organs))
    for done, (index, result) in enumerate(each(job, archive.cases, jobs)):
        facts[index] = result
        if progress is not None:
            progress(done + 1, len(archive.cases))
    known = [f for f in facts if f is not None]
    listed = {r.case: r.split for r in archive.cases if r.split}
    parts = listed if splits is None else dict(splits)
    doubled = duplicates(known, parts)
    # A case whose contours are lost for a reason that is told needs no second word on it.
    told = {f.case for f in archive.findings if f.severity == "error" and f.case and not f.organ}
    findings = [
        *archive.findings,
        *(f for one in known for f in one.findings if f.code != NO_ORGAN or f.case not in told),
        *doubled,
        *split_leaks(archive, parts),
        *protocols(known, {r.case: r.site or "" for r in archive.cases}),
    ]
    lost = {f.case for f in findings if f.severity == "error" and f.case and not f.organ}
    counts = Counter(o for one in known if one.case not in lost for o in one.places)
    usable = sum(bool(one.places) and one.case not in lost for one in known)
    findings.sort(key=lambda f: (f.severity != "error", f.code, f.organ, f.case))
    if secret is not None:
        hide = Hider(archive, secret)
        findings = [replace(f, case=hide.case(f.case), message=hide(f.message)) for f in findings]
    table = {organ: counts[organ] for organ in organs if counts[organ]}
    return Report(archive.format, len(archive.cases), usable, table, tuple(findings))
