"""A site's own cases, scored; what is told of each stays on its disk."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import nn

from client.local_epochs import Task
from client.overlays import ranked, write_overlay
from core.data.cached_case import Entry
from core.data.site import Site
from core.files import plain_cell, private_folder, replace_csv
from core.metrics.scores import CaseScore, OrganSum, organ_sums
from core.organs.vocabulary import vocabulary
from core.plan.schema import Phase
from core.training.engine import validate

ROUND_CASES = "rounds.csv"


def score(
    task: Task, model: nn.Module, split: str, *, draw: bool = False, quick: bool = False
) -> list[CaseScore]:
    """Scores of a split on each CT's own grid; draws cases where the site allows it.

    With `quick` Dice alone.
    """
    site, phase = task.site, task.phase
    drawn: dict[str, tuple[Entry, bytes]] = {}

    def on_case(entry: Entry, labelmap: npt.NDArray[np.uint8]) -> None:
        if draw and site.overlays:
            drawn[entry.case] = entry, zlib.compress(labelmap.tobytes(), 1)

    if quick or split != "val":
        phase = replace(phase, validate_hd95=not quick)
    scores = validate(model, task.entries(split), task.plan, phase, site.device, on_case)
    if drawn:
        _draw(task, scores, drawn)
    return scores


def _draw(
    task: Task, scores: Sequence[CaseScore], drawn: Mapping[str, tuple[Entry, bytes]]
) -> None:
    """Pictures of each organ, from its worst case to its best."""
    known = vocabulary(task.plan.organs)
    folder = task.site.phase_folder(task.phase.name) / "overlays"
    for earlier in folder.glob("*.png"):
        earlier.unlink()  # of a test that was asked for again
    for label, organ in enumerate(task.phase.organs, start=1):
        for rank, score in ranked(scores, organ, task.site.overlays).items():
            entry, packed = drawn[score.case]
            labels = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(entry.source.size)
            name = f"{rank}_{score.dice:.3f}"
            write_overlay(folder, name, entry, labels == label, organ, known[organ].colour)


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
            f"{s.surface_dice_2mm:.6f}",
        )
        for s in scores
    )
    columns = ("case", "organ", "dice", "hd95_mm", "volume_ml", "predicted_ml", "surface_dice_2mm")
    replace_csv(folder / "cases.csv", columns, rows)


def write_round_cases(task: Task, model: nn.Module) -> None:
    """``rounds.csv``: Dice of each test case after this round, on the site's own disk.

    Nothing of it is sent or chooses anything. Rows of this round and later ones, which a run that
    was taken up again has left behind, are written anew.
    """
    path = task.site.phase_folder(task.phase.name) / ROUND_CASES
    private_folder(path.parent)
    rows: list[tuple[str, ...]] = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            _, *found = csv.reader(file)
        rows = [tuple(map(plain_cell, row)) for row in found if int(row[0]) < task.order.round]
    rows += [
        (str(task.order.round), s.case, s.organ, f"{s.dice:.6f}")
        for s in score(task, model, "test", quick=True)
    ]
    replace_csv(path, ("round", "case", "organ", "dice"), rows)
