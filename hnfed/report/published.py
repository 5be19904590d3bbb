"""The report's section that lays a run beside tables of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.run_records import number
from hnfed.report.paper_tables import TABLES, Table

UNITS = {"dice": "Dice in percent", "hd95_mm": "95 % Hausdorff distance in mm"}


def beside_paper(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables that `simulation.published` lists, with the test scores of the run's phases.

    Args:
        config: the run's `config.yaml`.
        metrics: its `metrics.json`; phases without an organ of a table are left out of that table.
    """
    simulation = config.get("simulation")
    names = simulation.get("published") if isinstance(simulation, Mapping) else None
    blocks = [p for p in metrics.get("phases") or [] if isinstance(p, Mapping)]
    return [_shown(TABLES[n], blocks) for n in names or [] if n in TABLES]


def _shown(table: Table, blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    places = 1 if table.score == "dice" else 2
    scale = 100 if table.score == "dice" else 1

    def text(value: float | None) -> str:
        return "–" if value is None else f"{value:.{places}f}"

    def measured(block: Mapping[str, Any], organ: str) -> float | None:
        mean = block.get("mean") or {}
        known = number((mean.get("organs") or {}).get(organ, {}).get(table.score))
        return None if known is None else known * scale

    used = [b for b in blocks if set(b.get("organs") or ()) & set(table.organs)]
    means = table.averages()
    ours = [[measured(b, o) for o in table.organs] for b in used]
    notes = list(table.notes)
    notes += [
        f"{name}: the printed average is {printed:g}, that of the rows {mean:.2f}."
        for name, (printed, mean) in table.differing().items()
    ]
    for block, values in zip(used, ours, strict=True):
        absent = [o for o, v in zip(table.organs, values, strict=True) if v is None]
        if absent:
            notes.append(f"{block['name']}: no mean, as it lacks a score of {', '.join(absent)}.")
    return {
        "title": table.title,
        "unit": UNITS[table.score],
        "columns": list(table.columns),
        "measured": [str(b.get("name")) for b in used],
        "rows": [
            {
                "organ": organ,
                "printed": [text(v[i]) for v in table.columns.values()],
                "measured": [text(values[i]) for values in ours],
            }
            for i, organ in enumerate(table.organs)
        ],
        "means": [text(means[c]) for c in table.columns],
        "measured_means": [text(_mean(values)) for values in ours],
        "notes": notes,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
