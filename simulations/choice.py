"""A study that chooses a setting: few cells decide, on validation, which of the others are run."""

from __future__ import annotations

from pathlib import Path

from simulations.cell import mean_dice, read_metrics
from simulations.study import Cell, Study

NOT_CHOSEN = "not chosen"


def dropped(cell: Cell, study: Study, out: Path) -> bool | None:
    """Whether another value of the study's choice than this cell's won; None while it is open.

    The value of the rival with the highest mean Dice on its own validation patients wins; of equals
    the one that the study names first. Test scores have no part in it.

    Args:
        cell: of the study.
        study: with all of its cells.
        out: folder of the cells.
    """
    if not cell.rivals:
        return False
    rivals = [other for other in study.cells if other.name in cell.rivals]
    scores: dict[str, float] = {}
    for rival in rivals:
        metrics = read_metrics(out / rival.name)
        if metrics.get("status") != "completed":
            return None
        dice = mean_dice(metrics["phases"][-1:], "val")
        scores[rival.values[study.choice]] = -1.0 if dice is None else dice
    return cell.values[study.choice] != max(scores, key=lambda value: scores[value])
