"""Which cases stand behind the scores of personal phases that have left, over all runs of a site.

Of two sums over nearly the same cases one taken from the other tells of those that only one of them
has: with one patient more, that patient's Dice and HD95. The sets are kept in the guard's folder,
as hashes; nothing of them leaves.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.data.cached_case import Entry
from hnfed.guard.kit_files import kept_text

FILE = "scored-sets.jsonl"
MOST_SETS = 256  # in the file; once it is full, scores of further sets stay here
MOST_GROUPS = 12  # small groups of cases that are looked through
DIGEST_BYTES = 8
Cell = tuple[str, str]  # split (val or test) and organ
Cells = dict[Cell, frozenset[str]]


def cells_of(split: str, organs: Sequence[str], entries: Sequence[Entry]) -> Cells:
    """The cases behind each organ's score: one word each, and a further one for a further copy.

    Args:
        split: val or test.
        organs: of the phase.
        entries: its cases of that split.
    """
    cells = {}
    for organ in organs:
        copies: Counter[str] = Counter()
        words = set()
        for entry in entries:
            if organ in entry.annotated:
                name = entry.image_sha256 or f"case {entry.case}"
                copies[name] += 1
                text = f"{name} {copies[name]}".encode()
                words.add(hashlib.blake2b(text, digest_size=DIGEST_BYTES).hexdigest())
        cells[split, organ] = frozenset(words)
    return cells


def too_near(folder: Path, cell: int, cells: Cells) -> frozenset[Cell]:
    """The scores that would, with those that left before, tell of fewer than `cell` cases.

    Args:
        folder: the guard's.
        cell: fewest cases of a score.
        cells: cases behind each score that is to leave.
    """
    known = _read(folder / FILE)
    full = sum(map(len, known.values())) >= MOST_SETS
    return frozenset(
        key
        for key, cases in cells.items()
        if len(cases) >= cell
        and cases not in known.get(key, ())
        and (full or tells_of_few([*known.get(key, ()), cases], cell))
    )


def remember_scores(
    folder: Path, cells: Cells, organs: Sequence[str], told: Mapping[str, Any]
) -> None:
    """Remembers the cases behind the scores that are about to leave.

    Args:
        folder: the guard's.
        cells: cases behind each score.
        organs: of the phase.
        told: numbers of the reply, as it leaves.
    """
    known = _read(folder / FILE)
    for (split, organ), cases in cells.items():
        counts = dict(zip(organs, told.get(f"{split}.n", ()), strict=False))
        if counts.get(organ, 0) > 0 and cases not in known.get((split, organ), ()):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            line = {"split": split, "organ": organ, "cases": sorted(cases)}
            with (folder / FILE).open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(line) + "\n")  # begins anew behind a torn line


def tells_of_few(sets: Sequence[frozenset[str]], cell: int) -> bool:
    """Whether sums over these sets, added and subtracted in any way, give one over few cases.

    Cases that the same sets hold stay together in every such combination. One over few cases
    vanishes on all groups but some small ones: without these groups the sets are then no longer
    as independent as with them.

    Args:
        sets: of cases.
        cell: fewest cases of a score.
    """
    groups = Counter(tuple(case in one for one in sets) for case in frozenset().union(*sets))
    rows, sizes = np.array(list(groups), dtype=float), list(groups.values())
    rank = np.linalg.matrix_rank(rows)
    small = [i for i, size in enumerate(sizes) if size < cell]
    if len(small) > MOST_GROUPS:
        return True
    for count in range(1, len(small) + 1):
        for some in itertools.combinations(small, count):
            if sum(sizes[i] for i in some) < cell:
                rest = np.delete(rows, some, axis=0)
                if not len(rest) or np.linalg.matrix_rank(rest) < rank:
                    return True
    return False


def _read(path: Path) -> dict[Cell, list[frozenset[str]]]:
    known: dict[Cell, list[frozenset[str]]] = {}
    for line in (kept_text(path) or "").splitlines():
        if line.endswith("}"):  # a line that a power cut tore had let nothing out
            value = json.loads(line)
            key = value["split"], value["organ"]
            known.setdefault(key, []).append(frozenset(value["cases"]))
    return known
