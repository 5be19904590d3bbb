"""Tracking into ``RUN/tracking.jsonl``: one JSON object a line, nothing to install."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.journal import append_event
from core.tracking.numbers import Model

FILE = "tracking.jsonl"


class JsonlFile:
    """`core.tracking.numbers.Tracker` into a file.

    Args:
        folder: the run folder.
        steps: by phase, from `first_steps`.
    """

    def __init__(self, folder: Path, steps: Mapping[str, int]) -> None:
        self.notes: list[str] = []
        self._folder, self._steps = folder, steps

    def log(self, phase: str, round: int, values: Mapping[str, Any]) -> None:
        """One round."""
        step = self._steps.get(phase, 0) + round
        self._add("round", phase=phase, round=round, step=step, values=dict(values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """One table."""
        self._add("table", name=name, columns=list(columns), rows=[list(row) for row in rows])

    def model(self, model: Model) -> None:
        """Weights by their path in the run folder."""
        path = model.path.relative_to(self._folder).as_posix()
        self._add("model", name=model.name, path=path, uses=model.uses, about=model.about)

    def alert(self, title: str, text: str) -> None:
        """What somebody should look at."""
        self._add("alert", title=title, text=text)

    def finish(self, status: str = "completed") -> None:
        """The end."""
        self._add("end", status=status)

    def _add(self, kind: str, **values: Any) -> None:
        append_event(self._folder / FILE, {"event": kind, **values})
