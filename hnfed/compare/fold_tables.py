"""Variants of a cross-validated study, over all folds together: per site, per organ, in pairs.

Every patient is a test patient of one fold. Variants are compared over the patients that both
judged (`hnfed.evaluate.statistics.paired`), p values are Holm's within each block.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.errors import UserError
from core.files import plain_row
from hnfed.evaluate.statistics import estimate, holm, paired, verdict

CELL = re.compile(r"(?P<variant>.+)-fold(?P<fold>\d+)-seed(?P<seed>\d+)")
# (site, patient) -> organ -> Dice
Scores = Mapping[tuple[str, str], Mapping[str, float]]


def read_grid(grid: Path) -> tuple[dict[str, Scores], dict[str, int]]:
    """Test scores of every completed cell, by variant; and how many folds each has.

    Args:
        grid: folder of a study with folds; one seed.

    Raises:
        UserError: no cells with folds, or a patient judged twice by one variant.
    """
    found: dict[str, dict[tuple[str, str], dict[str, float]]] = defaultdict(dict)
    folds: dict[str, set[str]] = defaultdict(set)
    for folder in sorted(grid.iterdir()):
        cell = CELL.fullmatch(folder.name)
        if cell is None or not folder.is_dir():
            continue
        seen: set[tuple[str, str]] = set()
        for key, organ, dice in _rows(folder):
            patients = found[cell["variant"]]
            if key in patients and key not in seen:
                problem = f"{cell['variant']}: a patient is a test patient of two folds or seeds"
                raise UserError("STUDY_FOLDER", grid, "give the cells of one seed", problem=problem)
            seen.add(key)
            patients.setdefault(key, {})[organ] = dice
            folds[cell["variant"]].add(cell["fold"])
    if not found:
        raise UserError(
            "STUDY_FOLDER", grid, "give the folder of a study with folds (`hnfed grid`)"
        )
    return dict(found), {variant: len(held) for variant, held in folds.items()}


def _rows(folder: Path) -> Iterator[tuple[tuple[str, str], str, float]]:
    for path in sorted(folder.glob("sites/*/*/cases.csv")):
        site = path.parent.parent.name
        with path.open(encoding="utf-8", newline="") as file:
            for row in map(plain_row, csv.DictReader(file)):
                place, _, case = row["case"].rpartition("/")  # pooled: site/case
                yield (place or site, case), row["organ"], float(row["dice"])


def lines_of(scores: Mapping[str, Scores], reference: str) -> list[str]:
    """The table: each variant per site and over all, then per organ, against the reference."""
    if reference not in scores:
        known = ", ".join(sorted(scores))
        raise UserError("--reference", reference, f"choose one of {known}")
    sites = sorted({site for one in scores.values() for site, _ in one})
    organs = list(dict.fromkeys(o for one in scores.values() for row in one.values() for o in row))
    out = [
        f"{'':<16}{'variant':<14}{'patients':>9}{'Dice':>7}{'95 %':>17}{'difference':>12}"
        f"{'95 %':>19}{'p Holm':>8}"
    ]
    for site in [*sites, ""]:
        out += _block(site or "all sites", scores, reference, organs, site)
    for organ in organs:
        out += _block(organ, scores, reference, [organ], "")
    return out


def _block(
    title: str, scores: Mapping[str, Scores], reference: str, organs: Sequence[str], site: str
) -> list[str]:
    keys = sorted(k for k in scores[reference] if not site or k[0] == site)
    others = [variant for variant in scores if variant != reference]
    tables = {v: _table(scores[v], keys, organs) for v in (reference, *others)}
    first = estimate(tables[reference])
    rows = [
        f"{title:<16}{reference:<14}{first.patients:>9}{_number(first.value, 7)}{_range(first)}"
    ]
    differences = [paired(tables[reference], tables[v]) for v in others]
    ps = holm([d.p for d in differences])
    for variant, difference, p in zip(others, differences, ps, strict=True):
        told = estimate(tables[variant])
        rows.append(
            f"{'':<16}{variant:<14}{told.patients:>9}{_number(told.value, 7)}{_range(told)}"
            f"{_number(difference.value, 12, '+')}{_range(difference, '+'):>19}"
            f"{_number(p, 8)}  {reference} {verdict(difference, p)}"
        )
    return rows


def _table(
    scores: Scores, keys: Sequence[tuple[str, str]], organs: Sequence[str]
) -> npt.NDArray[np.float64]:
    return np.array([[scores.get(k, {}).get(o, np.nan) for o in organs] for k in keys])


def _number(value: float | None, width: int, sign: str = "") -> str:
    return f"{'-' if value is None else format(value, f'{sign}.3f'):>{width}}"


def _range(estimated: object, sign: str = "") -> str:
    low, high = getattr(estimated, "low", None), getattr(estimated, "high", None)
    text = "-" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"
    return f"{text:>17}"


def folds_text(study: Path, reference: str) -> str:
    """The table of a study's folder, and how many folds each variant has.

    Raises:
        UserError: no study with folds, or no variant called `reference`.
    """
    scores, folds = read_grid(study)
    counts = ", ".join(f"{variant}: {n} folds" for variant, n in folds.items())
    return "\n".join([*lines_of(scores, reference), counts])
