"""``cases.csv`` at an archive's root: case, split and, optionally, site, path and patient."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from core.errors import UserError
from core.files import plain_cell
from core.identifiers import case_name, site_name
from core.plan.schema import SPLITS

IMAGE_NAMES = ("img.nrrd", "ct.csv")


@dataclass(frozen=True)
class Row:
    """One line of the list.

    Attributes:
        case: the case's id.
        split: train, val, test, or None where the cell is empty.
        site: or None where there is no such column or the cell is empty.
        path: the case's folder below the root, or None: then the folder is called as the case.
        patient: whose case it is, where several cases may be of one patient; else None.
    """

    case: str
    split: str | None
    site: str | None
    path: str | None
    patient: str | None = None


def read_rows(path: Path) -> tuple[Row, ...] | None:
    """Reads the list; further columns do not matter.

    Args:
        path: the file, UTF-8 with a header line.

    Returns:
        Its rows, or None where there is no such file.

    Raises:
        UserError: unreadable, without the columns ``case`` and ``split``, an unknown split, a case
            or a path that stands twice, an id that cannot be a file's name, a path out of the root.
    """
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            columns = [name.strip().lower() for name in table.fieldnames or ()]
            table.fieldnames = columns
            if not {"case", "split"} <= set(columns):
                remedy = (
                    "give it a header line with the columns case, split (and site, path, patient)"
                )
                raise UserError("cases.csv", path, remedy, problem=f"columns are {columns}")
            rows = tuple(_row(path, table.line_num, line) for line in table)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        remedy = "save it as comma-separated UTF-8 text"
        raise UserError("cases.csv", path, remedy, problem=str(error)) from error
    _refuse_duplicates(path, "case", [row.case for row in rows])
    _refuse_duplicates(path, "path", [row.path for row in rows if row.path])
    return rows


def _row(path: Path, line: int, cells: dict[str, str | None]) -> Row:
    field = f"cases.csv, line {line}"
    case, split, site, below, patient = (
        plain_cell((cells.get(name) or "").strip())
        for name in ("case", "split", "site", "path", "patient")
    )
    case_name(case, field)
    if site:
        site_name(site, field)
    split = split.lower()
    if split and split not in SPLITS:
        raise UserError(field, split, "use train, val or test, or leave the split empty")
    path_below = _folder(field, below) if below else None
    return Row(case, split or None, site or None, path_below, patient or None)


def _folder(field: str, below: str) -> str:
    """The case's folder, as a clean path below the root; the path may name the image itself."""
    clean = PurePosixPath(below.replace("\\", "/"))
    if clean.is_absolute() or ".." in clean.parts or ":" in below:
        raise UserError(field, below, "give a path below the archive's root")
    return str(clean.parent if clean.name in IMAGE_NAMES else clean)


def _refuse_duplicates(path: Path, column: str, values: list[str]) -> None:
    double = sorted(value for value, count in Counter(values).items() if count > 1)
    if double:
        problem = f"{len(double)} values of column {column} stand twice"
        raise UserError(
            "cases.csv", f"{path}: {', '.join(double)}", "keep one row a case", problem=problem
        )
