"""Cross-validation over patients: every patient of every site is tested once."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.archives.caselist import read_rows
from core.errors import UserError
from core.files import plain_cell, replace_csv


def fold_splits(
    splits: Mapping[str, Sequence[str]], folds: int, field: str = "splits"
) -> list[dict[str, list[str]]]:
    """Divides the patients of a site into `folds` parts; fold k is tested on part k.

    The patients of the test, val and train lists are dealt to the parts in turn, within each list
    in an order drawn from their ids. So parts differ by one patient at most, every part has its
    share of each list (and of what the lists were stratified by), and the order within a list does
    not matter. Validation has as many patients as the given list, if that leaves the larger part
    for training: they come from the parts after part k, those of the former test and val lists
    first.

    Args:
        splits: patients by train, val and test.
        folds: at least 2.
        field: key of the lists, for errors.

    Returns:
        Splits of fold 0, 1, ...: each patient in exactly one list of each fold, and in exactly one
        test list over all folds.

    Raises:
        UserError: too few folds or patients, or a patient that is named twice.
    """
    names = [name for split in ("test", "val", "train") for name in _drawn(splits.get(split, ()))]
    if folds < 2:
        raise UserError("folds", folds, "give a whole number >= 2")
    _require_once(names, field)
    if len(names) < max(folds, 4):
        raise UserError(
            field,
            f"{len(names)} patients",
            f"list at least {max(folds, 4)} in train, val and test, or use fewer folds",
        )
    parts = [names[k::folds] for k in range(folds)]
    result = []
    for k, test in enumerate(parts):
        rest = [name for i in range(1, folds) for name in parts[(k + i) % folds]]
        count = max(1, min(len(splits.get("val", ())), (len(rest) - 1) // 2))
        result.append({"train": rest[count:], "val": rest[:count], "test": test})
    return result


def drawn_splits(
    names: Sequence[str], folds: int, *, train: int, val: int, seed: int, field: str = "splits"
) -> list[dict[str, list[str]]]:
    """Divides patients into `folds` test parts, and draws few of the others to learn from.

    The order of the patients is that of SHA-256 of ``SEED/NAME``; fold k tests every `folds`-th of
    them from the k-th on. Of the others, ordered by SHA-256 of ``SEED/K/NAME``, the first `train`
    train and the next `val` validate; the rest has no part in the fold.

    Args:
        names: of the patients, each once.
        folds: at least 2.
        train: patients that each fold trains on.
        val: patients that each fold validates on.
        seed: another seed, another draw.
        field: key of the lists, for errors.

    Raises:
        UserError: a patient that is named twice, or too few of them.
    """
    _require_once(names, field)
    parts = [_drawn(names, f"{seed}/")[k::folds] for k in range(folds)]
    if not all(parts) or len(names) - len(parts[0]) < train + val:
        raise UserError(
            field,
            f"{len(names)} patients",
            f"list more, or ask for less: {folds} folds, each of {train} to train on, {val} to "
            "validate on and at least one to test",
        )
    result = []
    for k, test in enumerate(parts):
        rest = _drawn([n for n in names if n not in test], f"{seed}/{k}/")
        result.append({"train": rest[:train], "val": rest[train : train + val], "test": test})
    return result


def _require_once(names: Sequence[str], field: str) -> None:
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UserError(field, ", ".join(twice), "name each patient once")


def _drawn(names: Sequence[str], prefix: str = "") -> list[str]:
    """Names in the order of SHA-256 of the prefix and the name."""

    def key(name: str) -> tuple[str, str]:
        return hashlib.sha256(f"{prefix}{name}".encode()).hexdigest(), name

    return sorted(map(str, names), key=key)


def has_own_splits(root: Path) -> bool:
    """True where the archive's ``cases.csv`` gives splits, which go before those of a plan."""
    return any(row.split for row in read_rows(root / "cases.csv") or ())


def view_of(root: Path, folder: Path) -> Path:
    """Where `make_view` puts the view of an archive: below `folder`, named by its path."""
    return folder / f"archive-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"


def make_view(root: Path, view: Path) -> None:
    """An archive without splits of its own: links to what `root` holds, and a list without splits.

    Args:
        root: archive with a ``cases.csv``; nothing in it is changed.
        view: folder to make, or to bring up to date.
    """
    view.mkdir(parents=True, exist_ok=True)
    for entry in root.iterdir():
        link = view / entry.name
        if entry.name != "cases.csv" and not entry.name.startswith(".") and not link.is_symlink():
            link.symlink_to(entry)
    rows = read_rows(root / "cases.csv") or ()
    table = [[row.case, "", row.site or "", row.path or ""] for row in rows]
    header = ["case", "split", "site", "path"]
    path = view / "cases.csv"
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            if [[plain_cell(c) for c in row] for row in csv.reader(file)] == [header, *table]:
                return
    replace_csv(path, header, table)
