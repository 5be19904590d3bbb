"""The tables of a grid: on the screen, as CSV and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.files import replace_csv, replace_file
from simulations.cell import mean_dice, minutes, of_other_code, read_metrics, read_record
from simulations.study import Study


def write_tables(study: Study, out: Path) -> list[dict[str, Any]]:
    """``grid.csv`` and ``grid.json``: every cell of the study, a row a phase."""
    axes = list(dict.fromkeys(a for cell in study.cells for a in cell.values))
    rows: list[dict[str, Any]] = []
    for cell in study.cells:
        folder = out / cell.name
        record, metrics = read_record(folder) or {}, read_metrics(folder)
        common = {
            "cell": cell.name,
            "variant": cell.variant,
            **{axis: cell.values.get(axis, "") for axis in axes},
            "seed": cell.seed,
            "status": "completed" if metrics.get("status") == "completed" else record.get("status"),
            "minutes": round(minutes(folder), 2),
            "other_code": of_other_code(folder),
        }
        empty = dict.fromkeys(("phase", "val_dice", "test_dice", "test_hd95_mm", "missed"))
        phases = [
            {
                "phase": block["name"],
                "val_dice": mean_dice([block], "val"),
                "test_dice": mean_dice([block], "test"),
                "test_hd95_mm": block["mean"].get("hd95_mm"),
                "missed": block["mean"].get("missed"),
                "rounds": block["rounds"],
                "best_round": block["best_round"],
                "seconds": block["seconds"],
            }
            for block in metrics.get("phases", [])
        ]
        rows += [{**common, **phase} for phase in phases or [empty]]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = [["" if row.get(c) is None else row[c] for c in columns] for row in rows]
    replace_csv(out / "grid.csv", columns, table)
    text = json.dumps({"schema": 1, "study": study.name, "rows": rows}, indent=1, allow_nan=False)
    replace_file(out / "grid.json", text)
    return rows


def count_cells(count: int) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{count} cell" if count == 1 else f"{count} cells"
