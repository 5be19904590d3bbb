"""Published scores that a run's test scores are laid beside, each with its source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnfed.report.paper_tables import TABLES

# Columns of the paper's tables that are shown, by table; the paper prints per cent.
PAPER = {
    "table1": (("Res3DUnet, transfer", "paper"),),
    "table3": (("first half frozen", "paper"),),
    "table5": (("MICCAI 2015 winner", "MICCAI 2015"),),
}


@dataclass(frozen=True)
class Reference:
    """Scores of one publication.

    Attributes:
        name: of its column.
        kind: ``human`` (agreement of two readers) or ``network``.
        source: publication, data, and what is to be careful about.
        dice: by organ, 0 to 1.
    """

    name: str
    kind: str
    source: str
    dice: Mapping[str, float]


def references() -> list[Reference]:
    """All that are known, human readers first."""
    found = [
        Reference(**values)
        for values in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    ]
    for name, columns in PAPER.items():
        table = TABLES[name]
        for column, short in columns:
            values = [v / 100 for v in table.columns[column]]
            source = (
                f"{column}, in T. Zhang, Transfer Learning for Head and Neck CT Image "
                f"Segmentation, Table {name[5:]} ({table.title})"
            )
            dice = dict(zip(table.organs, values, strict=True))
            found.append(Reference(short, "network", source, dice))
    return found


def of_organs(organs: Sequence[str]) -> list[Reference]:
    """Those that score one of the organs, human readers first."""
    known = [r for r in references() if set(organs) & set(r.dice)]
    return sorted(known, key=lambda r: r.kind != "human")


def human(organ: str, known: Sequence[Reference]) -> float | None:
    """How well two readers agree on an organ; None where no figure is known."""
    return next((r.dice[organ] for r in known if r.kind == "human" and organ in r.dice), None)


def networks(organ: str, known: Sequence[Reference]) -> list[float]:
    """What networks have reached on an organ."""
    return [r.dice[organ] for r in known if r.kind == "network" and organ in r.dice]
