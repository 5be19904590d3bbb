"""The paper's tables: rows as printed, in `paper_tables.json`; averages are computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROUNDING = {"dice": 0.0501, "hd95_mm": 0.0101}  # of means over rows that were rounded


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        title: what it compares.
        score: ``dice`` (in percent) or ``hd95_mm``.
        organs: of the rows, TG-263 names.
        columns: values by method, one an organ, as printed.
        printed: averages as printed, by method.
        notes: slips and how they are read.
    """

    title: str
    score: str
    organs: tuple[str, ...]
    columns: Mapping[str, Sequence[float]]
    printed: Mapping[str, float]
    notes: tuple[str, ...] = ()

    def averages(self) -> dict[str, float]:
        """Unweighted mean over the rows, by method."""
        return {name: sum(values) / len(values) for name, values in self.columns.items()}

    def differing(self) -> dict[str, tuple[float, float]]:
        """(printed, recomputed) where the printed average is not that of the rows."""
        return {
            name: (self.printed[name], mean)
            for name, mean in self.averages().items()
            if abs(self.printed[name] - mean) > ROUNDING[self.score]
        }


def _read() -> dict[str, Table]:
    tables = {}
    for name, values in json.loads(Path(__file__).with_suffix(".json").read_text()).items():
        listed = {key: tuple(values.pop(key)) for key in ("organs", "notes")}
        tables[name] = Table(**(values | listed))
    return tables


TABLES = _read()
