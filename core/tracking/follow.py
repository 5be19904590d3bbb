"""A run is tracked from beside it: a process that reads its journal as it grows.

The apps know nothing of it, so no tracker, reachable or not, can hold a round up or change a
number; what hospitals approve holds none of it. The command that starts a run starts the process
too, and waits for it at the end for a bounded time. What was tracked stands in
``RUN/tracking.json``: a resumed run goes on behind it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import replace_file
from core.journal import JOURNAL, read_events
from core.plan.schema import Tracking
from core.processes import end, with_parent
from core.text import shown
from core.tracking.foreign_run import read_json
from core.tracking.numbers import (
    Table,
    Tracker,
    alert_of,
    first_steps,
    model_of,
    round_values,
    tables_of,
)

FILE = "tracking.json"
WANDB = ("offline", "online", "wandb")  # `wandb` is offline, too
NONE = ("disabled", "none")
PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboard"}  # mode: what must be installed
MODES = (*WANDB, *PACKAGES, "jsonl", *NONE)
POLL_SECONDS = 1.0
# How long a run's command waits for what is still to be tracked; with the end of a process that
# does not end by itself (`core.processes.end`) less than 40 s.
FINISH_SECONDS = 25.0
Say = Callable[[str], None]


@dataclass
class Mark:
    """What of a run was tracked.

    Attributes:
        mode: the tracker's.
        events: lines of the journal.
        phases: whose tables and weights were.
    """

    mode: str
    events: int = 0
    phases: list[str] = field(default_factory=list)


@contextmanager
def tracked(folder: Path, settings: Tracking, say: Say = print) -> Iterator[None]:
    """While it lasts, a run is tracked; at its end what is left is, for `FINISH_SECONDS` at most.

    Args:
        folder: of the run; its journal may not be there yet.
        settings: of the plan's file; see `require_mode`.
        say: told in a sentence what did not go as asked.
    """
    if settings.mode in NONE:
        yield
        return
    child = subprocess.Popen(
        [sys.executable, "-I", "-m", "core.tracking.follow"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        errors="replace", start_new_session=True, preexec_fn=with_parent,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    listener = threading.Thread(target=_tell, args=(child.stdout, say), daemon=True)
    listener.start()
    try:
        _write(child, json.dumps({"folder": str(folder), "settings": asdict(settings)}) + "\n")
        yield
    finally:
        _write(child, None)
        _ended(child, say)
        listener.join(2.0)
        child.stdout.close()


def require_mode(settings: Tracking) -> None:
    """Requires a tracker that this installation has, before a run begins.

    Raises:
        UserError: unknown, or its package is not installed.
    """
    import importlib.util

    if settings.mode not in MODES:
        raise UserError("tracking.mode", settings.mode, f"use one of {', '.join(MODES)}")
    package = PACKAGES.get(settings.mode)
    if package is not None and importlib.util.find_spec(package) is None:
        remedy = f"pip install 'hnfed[{package}]', or write tracking.mode=jsonl"
        raise UserError("tracking.mode", settings.mode, remedy, problem="it is not installed")


def follow(folder: Path, settings: Tracking, over: threading.Event, say: Say) -> None:
    """Tracks a run's journal until it is over, and the rest of it then.

    Args:
        folder: of the run.
        settings: see `open_`.
        over: set when nothing more comes.
        say: see `tracked`.
    """
    follower: Follower | None = None
    size = -1
    while True:
        last = over.is_set()
        journal = folder / JOURNAL
        now = journal.stat().st_size if journal.is_file() else 0
        if now and (now != size or last):
            follower = follower or Follower(folder, settings, say)
            follower.catch_up()
            size = now
        if last:
            break
        over.wait(POLL_SECONDS)
    if follower is not None:
        follower.finish()


class Follower:
    """What of a run's folder goes to its tracker, once.

    Args:
        folder: of the run, which has begun.
        settings: of its plan's file.
        say: see `tracked`.
    """

    def __init__(self, folder: Path, settings: Tracking, say: Say) -> None:
        self._folder, self._say = folder, say
        self._plan = _read(folder / "plan.json")
        self._run = (folder / "run_id").read_text(encoding="utf-8").strip()
        self._mark = _mark(folder, settings.mode)
        self._status = "interrupted"
        self._tracker: Tracker | None = None
        try:
            self._tracker = open_(settings, self._run, folder, self._plan)
            self._heard(self._tracker)
        except Exception as error:
            self._failed("could not start", error)

    def catch_up(self) -> None:
        """Tracks what came since the last time; what was tracked is noted."""
        if self._tracker is None:
            return
        events = read_events(self._folder / JOURNAL)
        for event in events[self._mark.events :]:
            self._event(event)
        self._mark.events = len(events)
        for block in _read(self._folder / "metrics.json").get("phases", []):
            if block["name"] not in self._mark.phases:
                self._phase(block)
                self._mark.phases.append(block["name"])
        replace_file(self._folder / FILE, json.dumps({"schema": 1, **asdict(self._mark)}))

    def finish(self) -> None:
        """Closes the tracker."""
        self._attempt("finish", lambda tracker: tracker.finish(self._status))

    def _event(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "run-end":
            self._status = str(event.get("status"))
        if kind == "round":
            values = round_values(event)
            self._attempt(
                "round", lambda t: t.log(str(event["phase"]), int(event["round"]), values)
            )
        alert = alert_of(event)
        if alert is not None:
            self._attempt("alert", lambda tracker: tracker.alert(*alert))

    def _phase(self, block: Mapping[str, Any]) -> None:
        for table in tables_of(block):
            self._attempt("table", partial(_table, table))
        model = model_of(self._run, self._folder, block, self._plan.get("phases", []))
        if model is not None:
            self._attempt("model", lambda tracker: tracker.model(model))

    def _attempt(self, what: str, call: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        tracker = self._tracker
        try:
            call(tracker)
        except Exception as error:
            self._failed(f"{what} failed", error)
        self._heard(tracker)

    def _heard(self, tracker: Tracker) -> None:
        for note in tracker.notes:
            self._say(note)
        tracker.notes.clear()

    def _failed(self, what: str, error: Exception) -> None:
        """The first failure ends the tracking; the run goes on."""
        self._tracker = None
        self._say(f"tracking: {what} ({type(error).__name__}); the run goes on without")


def open_(settings: Tracking, run: str, folder: Path, plan: Mapping[str, Any]) -> Tracker:
    """The tracker that a plan's file asks for.

    Args:
        settings: mode (one of `MODES`, none of `NONE`), project, entity, tags.
        run: hnfed's own id.
        folder: of the run.
        plan: as JSON.

    Raises:
        ImportError: the package of that mode is not installed.
        UserError: no such mode.
    """
    steps = first_steps(plan.get("phases", []))
    if settings.mode in WANDB:
        from core.tracking.wandb_run import open_tracker

        return open_tracker(settings, run_id=run, folder=folder, config=plan)
    if settings.mode == "jsonl":
        from core.tracking.jsonl_file import JsonlFile

        return JsonlFile(folder, steps)
    if settings.mode == "tensorboard":
        from core.tracking.tensorboard_file import TensorboardFile

        return TensorboardFile(folder, steps)
    if settings.mode == "mlflow":
        from core.tracking.mlflow_run import MlflowRun

        return MlflowRun(folder, run, settings.project, steps, plan)
    raise UserError("tracking.mode", settings.mode, f"use one of {', '.join(MODES)}")


def main() -> int:
    """The process beside a run: settings by standard input, whose end is the run's."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    told = json.loads(sys.stdin.readline())
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    # What libraries print is not for the person who follows the run.
    voice = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    os.dup2(2, 1)

    def say(text: str) -> None:
        print(text, file=voice, flush=True)

    follow(Path(told["folder"]), Tracking(**told["settings"]), over, say)
    return 0


def _table(table: Table, tracker: Tracker) -> None:
    tracker.table(table.name, table.columns, table.rows)


def _mark(folder: Path, mode: str) -> Mark:
    """What was tracked before; of another tracker nothing was."""
    found = _read(folder / FILE)
    try:
        mark = Mark(str(found["mode"]), int(found["events"]), [str(p) for p in found["phases"]])
    except (KeyError, TypeError, ValueError):
        return Mark(mode)
    return mark if mark.mode == mode else Mark(mode)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(child: subprocess.Popen[str], text: str | None) -> None:
    """Writes to a process, or closes its input; one that is gone is no matter."""
    assert child.stdin is not None
    try:
        if text is None:
            child.stdin.close()
        else:
            child.stdin.write(text)
            child.stdin.flush()
    except OSError:
        pass


def _ended(child: subprocess.Popen[str], say: Say) -> None:
    limit = time.monotonic() + FINISH_SECONDS
    try:
        while child.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        if child.poll() is None:
            say(f"tracking: not through after {FINISH_SECONDS:g} s; the rest is left out")
    finally:
        if child.poll() is None:
            end(child)


def _tell(stream: Any, say: Say) -> None:
    lines: Sequence[str] = stream
    for line in lines:
        say(f"note: {shown(line.rstrip())}")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # no thread of a library keeps it
