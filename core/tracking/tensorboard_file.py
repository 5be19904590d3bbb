"""Tracking into ``RUN/tensorboard``, by TensorBoard's own records, without its names of files.

Its writer puts the name of this machine into the file's; the records are the same without.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.tracking.numbers import Model

FOLDER = "tensorboard"


class TensorboardFile:
    """`core.tracking.numbers.Tracker` into an event file; a resumed run begins another one.

    Args:
        folder: the run folder.
        steps: by phase, from `first_steps`.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, steps: Mapping[str, int]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.notes: list[str] = []
        self._folder, self._steps, self._step = folder, steps, 0
        self._event, self._summary = event_pb2.Event, summary_pb2
        self._tensor, self._types = tensor_pb2, types_pb2
        place = folder / FOLDER
        place.mkdir(exist_ok=True)
        number = len(list(place.iterdir()))
        self._file = (place / f"events.out.tfevents.{number:010d}.hnfed").open("wb")
        self._writer = RecordWriter(self._file)
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def log(self, phase: str, round: int, values: Mapping[str, Any]) -> None:
        """One round: scalars ``PHASE/KEY``."""
        self._step = self._steps.get(phase, 0) + round
        numbers = {**values, "round": round}
        found = [
            self._summary.Summary.Value(tag=f"{phase}/{key}", simple_value=float(value))
            for key, value in numbers.items()
            if isinstance(value, int | float)
        ]
        self._add(found)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """One table, as text in Markdown."""
        lines = [list(columns), ["---"] * len(columns), *rows]
        cells = [["-" if cell is None else _told(cell) for cell in line] for line in lines]
        self._text(f"table/{name}", "\n".join(f"| {' | '.join(line)} |" for line in cells))

    def model(self, model: Model) -> None:
        """Weights by their path in the run folder."""
        path = model.path.relative_to(self._folder).as_posix()
        told = "\n".join(f"* {key}: {_told(value)}" for key, value in model.about.items())
        self._text(f"model/{model.name}", f"`{path}`\n\n{told}")

    def alert(self, title: str, text: str) -> None:
        """What somebody should look at."""
        self._text("alerts", f"**{title}**: {text}")

    def finish(self, status: str = "completed") -> None:
        """The end."""
        self._text("status", status)
        self._file.close()

    def _text(self, tag: str, text: str) -> None:
        kind = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        tensor = self._tensor.TensorProto(dtype=self._types.DT_STRING, string_val=[text.encode()])
        value = self._summary.Summary.Value(
            tag=tag, tensor=tensor, metadata=self._summary.SummaryMetadata(plugin_data=kind)
        )
        self._add([value])

    def _add(self, values: Sequence[Any]) -> None:
        summary = self._summary.Summary(value=values)
        self._write(self._event(wall_time=time.time(), step=self._step, summary=summary))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
