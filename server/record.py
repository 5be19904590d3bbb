"""The run folder at the server: journal, metrics, checkpoints; published figures (D5)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from core.files import replace_file
from core.journal import JOURNAL, append_event, read_events
from core.metrics.advice import ADVICE, advise
from core.plan.schema import Plan
from core.processes import held
from core.text import shown_lines
from core.wire.checkpoint import save
from core.wire.round_checkpoints import RoundStore
from server.receipts import RECEIPTS, Receipts
from server.run_folder import LOCK


class Recorder:
    """Writes what the run does. `out` is the run folder.

    The private part (``state/``, mode 0700) holds the rounds' weights with the control scores; it
    is what ``--resume`` continues from.
    """

    def __init__(self, out: Path, run: str, plan: Plan) -> None:
        self.out = out
        self.run = run
        self.plan = plan
        self.phases: list[dict[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)
        (out / "state").mkdir(mode=0o700, exist_ok=True)
        self.receipts = Receipts(out / "state" / RECEIPTS)

    def say(self, event: Mapping[str, Any]) -> None:
        """Appends one event to the journal."""
        append_event(self.out / JOURNAL, dict(event))

    def note(self, text: str, phase: str = "") -> None:
        """Journals and prints one sentence for people."""
        self.say({"event": "note", "text": text, "phase": phase})
        tell(f"note: {text}")

    def told(self, phase: str, round_: int) -> bool:
        """Whether the journal has the event of a round."""
        rounds = (e for e in read_events(self.out / JOURNAL) if e["event"] == "round")
        return any((e["phase"], e["round"]) == (phase, round_) for e in rounds)

    def store(self, phase: str) -> RoundStore:
        """The private rounds of a phase."""
        return RoundStore(self.out / "state" / phase)

    def export(
        self, phase: str, stem: str, state: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> None:
        """Writes ``checkpoints/PHASE/STEM.safetensors`` and its JSON."""
        save(self.out / "checkpoints" / phase, stem, dict(state), dict(meta))

    def export_scores(self, phase: str, meta: Mapping[str, Any]) -> None:
        """Writes ``checkpoints/PHASE/best.json`` alone: a personal phase leaves no weights (D7)."""
        folder = self.out / "checkpoints" / phase
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "best.json", {"schema": 1, **meta})

    def finished(self, phase: str) -> dict[str, Any] | None:
        """The metrics of a phase that is through, else None."""
        path = self.out / "state" / f"{phase}.done.json"
        if not path.is_file():
            return None
        block: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return block

    def finish_phase(self, block: dict[str, Any]) -> None:
        """Commits a phase's metrics."""
        _write(self.out / "state" / f"{block['name']}.done.json", block)
        self.add_phase(block)

    def take_over(self, phases: Iterable[str]) -> None:
        """Takes the finished phases of an earlier start of this run into metrics.json."""
        for phase in phases:
            block = self.finished(phase)
            if block is not None:
                self.add_phase(block)

    def add_phase(self, block: dict[str, Any]) -> None:
        """Adds a phase to metrics.json."""
        self.phases.append(block)
        self.write_metrics("running")

    def write_metrics(self, status: str) -> None:
        """Writes metrics.json (schema 1)."""
        _write(
            self.out / "metrics.json",
            {"schema": 1, "run": self.run, "status": status, "phases": self.phases},
        )

    def advise(self) -> None:
        """Writes ``advice.json`` where the phases so far leave a site something to choose from."""
        planned = [dataclasses.asdict(p) for p in self.plan.phases]
        found = advise(planned, self.phases, read_events(self.out / JOURNAL))
        if found:
            _write(self.out / ADVICE, {"schema": 1, "run": self.run, "advice": found})


def end_untold(out: Path, run: str, plan: Plan, status: str) -> None:
    """Writes the end of a run whose server was ended from outside: into journal and metrics.json.

    Nothing where the server has told its end itself, or is still at work.

    Args:
        out: run folder.
        run: its id.
        plan: that it follows.
        status: ``interrupted`` or ``failed``.
    """
    if held(out / LOCK):
        return
    told = [e for e in read_events(out / JOURNAL) if e["event"] in ("run-start", "run-end")]
    if told and told[-1]["event"] == "run-end":
        early = (told[-1].get("status"), status) == ("incomplete", "interrupted")
        if not early:  # sites were ended a moment before the server: it missed them
            return
    recorder = Recorder(out, run, plan)
    recorder.take_over(p.name for p in plan.phases)
    recorder.write_metrics(status)
    starts = [e["time"] for e in told if e["event"] == "run-start"]
    begun = datetime.fromisoformat(starts[-1]) if starts else datetime.now(UTC)
    seconds = (datetime.now(UTC) - begun).total_seconds()
    recorder.say({"event": "run-end", "status": status, "seconds": round(seconds, 3)})


def tell(text: str) -> None:
    """One line, or a few, for whoever follows the run."""
    for line in shown_lines(text.rstrip("\n")):
        print(f"hnfed| {line}", flush=True)


def mean_of(values: Sequence[float]) -> float | None:
    """Unweighted mean, None of nothing."""
    return sum(values) / len(values) if values else None


def _write(path: Path, value: object) -> None:
    replace_file(path, json.dumps(value, indent=1, allow_nan=False))
