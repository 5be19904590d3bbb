"""Variants of a cross-validated study, over all folds together: per site, per organ, in pairs.

Every patient is a test patient of one fold. Variants are compared over the patients that both
judged, with a fold as one draw (`hnfed.evaluate.clusters`); p values are Holm's over all
comparisons of the table.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.errors import UserError
from core.tracking.foreign_run import is_own_file, most_bytes, read_rows, reason
from hnfed.evaluate.clusters import clustered, clustered_difference
from hnfed.evaluate.statistics import Difference, Estimate, holm, verdict

CELL = re.compile(r"(?P<variant>.+)-fold(?P<fold>\d+)-seed(?P<seed>\d+)")
REMEDY = "run the test of this cell again, or leave the cell out"
Patient = tuple[str, str]
"""Site and case."""
Scores = Mapping[Patient, Mapping[str, float]]
"""Dice of a patient's organs."""


@dataclass(frozen=True)
class Folded:
    """The test scores of a study with folds.

    Attributes:
        scores: variant -> patient -> organ -> Dice.
        fold: the fold in which a patient is tested, the same for every variant.
        counts: variant -> how many folds it has.
    """

    scores: Mapping[str, Scores]
    fold: Mapping[Patient, str]
    counts: Mapping[str, int]


def read_grid(grid: Path) -> Folded:
    """Test scores of every completed cell.

    Args:
        grid: folder of a study with folds; one seed.

    Raises:
        UserError: no cells with folds, a patient judged twice by one variant, or in another fold
            by another.
    """
    found: dict[str, dict[Patient, dict[str, float]]] = defaultdict(dict)
    folds: dict[str, set[str]] = defaultdict(set)
    fold: dict[Patient, str] = {}
    for folder in sorted(grid.iterdir()):
        cell = CELL.fullmatch(folder.name)
        if cell is None or not folder.is_dir():
            continue
        seen: set[Patient] = set()
        for key, organ, dice in _rows(folder):
            patients = found[cell["variant"]]
            if (key in patients and key not in seen) or fold.get(key, cell["fold"]) != cell["fold"]:
                problem = f"{cell['variant']}: a patient is a test patient of two folds or seeds"
                raise UserError("STUDY_FOLDER", grid, "give the cells of one seed", problem=problem)
            seen.add(key)
            fold[key] = cell["fold"]
            patients.setdefault(key, {})[organ] = dice
            folds[cell["variant"]].add(cell["fold"])
    if not found:
        raise UserError(
            "STUDY_FOLDER", grid, "give the folder of a study with folds (`hnfed grid`)"
        )
    return Folded(dict(found), fold, {variant: len(held) for variant, held in folds.items()})


def _rows(folder: Path) -> Iterator[tuple[Patient, str, float]]:
    for path in sorted(folder.glob("sites/*/*/cases.csv")):
        site = path.parent.parent.name
        if not is_own_file(path, folder.parent):
            problem = f"a link out of the study, no file, or more than {most_bytes(path)} bytes"
            raise UserError("cases.csv", path, REMEDY, problem=problem)
        try:
            for _, row in read_rows(path):
                place, _, case = row["case"].rpartition("/")  # pooled: site/case
                yield (place or site, case), row["organ"], float(row["dice"])
        except (OSError, ValueError, KeyError, csv.Error) as error:
            problem = f"cannot be read ({reason(error)})"
            raise UserError("cases.csv", path, REMEDY, problem=problem) from error


@dataclass(frozen=True)
class _Line:
    """A variant in one block of the table; `difference` is None for the reference."""

    title: str
    variant: str
    told: Estimate
    difference: Difference | None = None


def lines_of(study: Folded, reference: str) -> list[str]:
    """The table: each variant per site and over all, then per organ, against the reference."""
    scores = study.scores
    if reference not in scores:
        known = ", ".join(sorted(scores))
        raise UserError("--reference", reference, f"choose one of {known}")
    sites = sorted({site for one in scores.values() for site, _ in one})
    organs = list(dict.fromkeys(o for one in scores.values() for row in one.values() for o in row))
    lines = [
        line
        for site in [*sites, ""]
        for line in _block(site or "all sites", study, reference, organs, site)
    ]
    lines += [line for o in organs for line in _block(o, study, reference, [o], "")]
    ps = holm([line.difference.p if line.difference else None for line in lines])
    head = (
        f"{'':<16}{'variant':<14}{'patients':>9}{'Dice':>7}{'95 %':>17}{'difference':>12}"
        f"{'95 %':>19}{'p Holm':>8}"
    )
    return [head, *(_text(line, p, reference) for line, p in zip(lines, ps, strict=True))]


def _block(
    title: str, study: Folded, reference: str, organs: Sequence[str], site: str
) -> Iterator[_Line]:
    keys = sorted(k for k in study.scores[reference] if not site or k[0] == site)
    folds = [study.fold[key] for key in keys]
    base = _table(study.scores[reference], keys, organs)
    yield _Line(title, reference, clustered(base, folds))
    for variant in (v for v in study.scores if v != reference):
        table = _table(study.scores[variant], keys, organs)
        yield _Line("", variant, clustered(table, folds), clustered_difference(base, table, folds))


def _text(line: _Line, p: float | None, reference: str) -> str:
    told = line.told
    text = (
        f"{line.title:<16}{line.variant:<14}{told.patients:>9}{_number(told.value, 7)}"
        f"{_range(told)}"
    )
    if line.difference is None:
        return text
    return (
        f"{text}{_number(line.difference.value, 12, '+')}{_range(line.difference, '+'):>19}"
        f"{_number(p, 8)}  {reference} {verdict(line.difference, p)}"
    )


def _table(
    scores: Scores, keys: Sequence[tuple[str, str]], organs: Sequence[str]
) -> npt.NDArray[np.float64]:
    return np.array([[scores.get(k, {}).get(o, np.nan) for o in organs] for k in keys])


def _number(value: float | None, width: int, sign: str = "") -> str:
    return f"{'-' if value is None else format(value, f'{sign}.3f'):>{width}}"


def _range(estimated: Estimate, sign: str = "") -> str:
    low, high = estimated.low, estimated.high
    text = "-" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"
    return f"{text:>17}"


def folds_text(folder: Path, reference: str) -> str:
    """The table of a study's folder, how many comparisons it makes, and each variant's folds.

    Raises:
        UserError: no study with folds, or no variant called `reference`.
    """
    study = read_grid(folder)
    counts = ", ".join(f"{variant}: {n} folds" for variant, n in study.counts.items())
    how = "a fold counts as one draw; p is Holm's over all comparisons of this table"
    return "\n".join([*lines_of(study, reference), how, counts])
