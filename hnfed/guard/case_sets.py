"""Which cases stand behind the updates that have left, over all runs of a site.

Two updates whose cases differ by a few would, one taken from the other, tell of those few. The sets
are kept in the guard's folder, as digests of images; nothing of them leaves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.data.cached_case import Entry
from core.plan.schema import Phase
from hnfed.guard.floors import distinct, too_few_apart
from hnfed.guard.kit_files import kept_text
from hnfed.guard.rules import Policy, PolicyError

FILE = "case-sets.jsonl"
MOST_BYTES = 2**30  # it grows with every other set of cases


@dataclass(frozen=True)
class CaseSet:
    """The cases behind an update.

    Attributes:
        split: HMAC of the site's split; another one after the archive has changed.
        cut: a plan's `max_cases` chose them.
        cases: one word for each distinct CT.
    """

    split: str
    cut: bool
    cases: frozenset[str]


def require_apart_from_earlier(
    folder: Path, policy: Policy, phase: Phase, split: str, entries: Sequence[Entry]
) -> None:
    """Requires that no run, with what left before, singles out a few cases.

    Compared are sets of one archive of which a plan cut one: what the site itself adds to its
    archive, and cases that lack the organs of a phase, are not of a plan's choosing.

    Args:
        folder: the guard's.
        policy: of the site.
        phase: of the order, one whose updates leave.
        split: HMAC of the site's split.
        entries: training cases of the phase.

    Raises:
        PolicyError: an earlier set differs by fewer than `fewest_cases`; it stays in the site's
            log.
    """
    mine = _set_of(phase, split, entries)
    for earlier in _read(folder / FILE):
        comparable = earlier.split == split and (earlier.cut or mine.cut)
        apart = too_few_apart(policy, mine.cases, earlier.cases)
        if comparable and apart:
            raise PolicyError(
                f"fewest_cases: phase {phase.name} has {apart} other cases than an update that "
                "has left: `max_cases` or `seed` differ from an earlier run"
            )


def remember_cases(folder: Path, phase: Phase, split: str, entries: Sequence[Entry]) -> None:
    """Remembers the cases behind an update that is about to leave; of no order that was refused.

    Args:
        folder: the guard's.
        phase: of the order.
        split: HMAC of the site's split.
        entries: training cases of the phase.
    """
    mine = _set_of(phase, split, entries)
    if mine not in _read(folder / FILE):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = {"split": split, "cut": mine.cut, "cases": sorted(mine.cases)}
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(line) + "\n")  # begins anew behind a torn line


def _set_of(phase: Phase, split: str, entries: Sequence[Entry]) -> CaseSet:
    return CaseSet(split, phase.max_cases is not None, frozenset(distinct(entries)))


def _read(path: Path) -> Iterator[CaseSet]:
    for line in (kept_text(path, MOST_BYTES) or "").splitlines():
        if line.endswith("}"):  # a line that a power cut tore had let nothing out
            value = json.loads(line)
            yield CaseSet(value["split"], value["cut"], frozenset(value["cases"]))
