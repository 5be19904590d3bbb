"""A site's own cases, scored; what is told of each stays on its disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import nn

from client.local_epochs import Task
from client.overlays import write_overlays
from core.data.cached_case import Entry
from core.data.site import Site
from core.files import private_folder, replace_csv
from core.metrics.scores import CaseScore, OrganSum, organ_sums
from core.organs.vocabulary import vocabulary
from core.plan.schema import Phase
from core.training.engine import validate


def score(task: Task, model: nn.Module, split: str, *, draw: bool = False) -> list[CaseScore]:
    """Scores of a split on each CT's own grid; draws the first cases where the site allows it."""
    site, plan, phase = task.site, task.plan, task.phase
    drawn: list[str] = []
    colours = {n: o.colour for n, o in vocabulary(plan.organs).items()}

    def on_case(entry: Entry, labelmap: npt.NDArray[np.uint8]) -> None:
        if draw and len(drawn) < site.overlays:
            drawn.append(entry.case)
            folder = site.phase_folder(phase.name) / "overlays"
            write_overlays(folder, entry, labelmap, phase.organs, colours)

    if split != "val":
        phase = replace(phase, validate_hd95=True)
    return validate(model, task.entries(split), plan, phase, site.device, on_case)


def control_sums(task: Task, model: nn.Module) -> dict[str, OrganSum]:
    """Sums over the val split; 0 for distances that the plan leaves out, since no NaN travels."""
    sums = organ_sums(score(task, model, "val"), task.phase.organs)
    if task.phase.validate_hd95:
        return sums
    return {o: replace(s, hd95_mm=0.0, penalised_mm=0.0) for o, s in sums.items()}


def write_cases(site: Site, phase: Phase, scores: Sequence[CaseScore]) -> None:
    """``cases.csv``: per-case test figures, on the site's own disk, never sent.

    `volume_ml` is that of the site's own contour, `predicted_ml` that of the prediction: as
    ``hnfed evaluate --per-case`` calls them.
    """
    folder = site.phase_folder(phase.name)
    private_folder(folder)
    rows = (
        (
            s.case,
            s.organ,
            f"{s.dice:.6f}",
            "" if s.hd95_mm is None else f"{s.hd95_mm:.4f}",
            f"{s.volume_ml:.6f}",
            f"{s.predicted_ml:.6f}",
        )
        for s in scores
    )
    columns = ("case", "organ", "dice", "hd95_mm", "volume_ml", "predicted_ml")
    replace_csv(folder / "cases.csv", columns, rows)
