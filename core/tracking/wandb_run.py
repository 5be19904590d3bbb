"""Weights & Biases: offline by default, no trace of the machine.

Everything that wandb writes stays in `RUN/wandb`. A failure of wandb costs the tracking of a run,
never the run: it is told once through `on_note`, and the tracker falls silent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import netrc
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.plan.schema import Plan, Tracking
from core.processes import leave_if_told, within
from core.tracking.numbers import Model, first_steps
from core.tracking.reach import answers

REACH_TIMEOUT_S = 6.0
INIT_TIMEOUT_S = 10.0
# How long one call of wandb may take: as it starts, then offline and online. wandb itself waits for
# its helper process for ever.
START_LIMIT_S = 45.0
ABANDON_LIMIT_S = 5.0
CALL_LIMIT_S = {"offline": 15.0, "online": 120.0}
DEFAULT_SERVER = "https://api.wandb.ai"
PRIVATE_SETTINGS: dict[str, Any] = {
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "host": "redacted",
    "program": "hnfed",
    "x_save_requirements": False,
    "x_log_level": logging.CRITICAL,
    "symlink": False,
    "silent": True,
    "quiet": True,
}
UNTRACKED = "the run goes on without tracking"
KEPT_VARIABLES = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE")
# What an agent of a sweep gives to the command that it starts: which of its runs this is.
SWEEP = "WANDB_SWEEP_ID"
OF_A_SWEEP = (SWEEP, "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


class WandbRun:
    """One open W&B run, or none (`mode: disabled`, or after a failure); made by `open_tracker`.

    Attributes:
        mode: what it really is: `offline`, `online` or `disabled`.
        notes: what did not go as asked, one sentence each.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        phases: Sequence[Mapping[str, Any]],
        on_note: Callable[[str], None] | None,
    ) -> None:
        self.mode = "disabled"
        self.notes: list[str] = []
        self._folder = folder
        self._run_id = run_id
        self._run: Any = None
        self._on_note = on_note
        self._first_step = first_steps(phases)
        self._step: int | None = None  # of the round that was logged last

    def log(self, phase: str, round: int, values: Mapping[str, float | int | str | None]) -> None:
        """Logs one round as `PHASE/KEY`, with `PHASE/round` as the x axis of its charts.

        The step is a function of phase and round, so that a resumed run goes on where it stopped.

        Args:
            phase: name of the phase.
            round: counted from 1 within the phase.
            values: flat; None (a suppressed score) is left out.
        """
        row = {f"{phase}/{key}": value for key, value in values.items() if value is not None}
        row |= {"round": round, f"{phase}/round": round}
        first = self._first_step.get(phase)
        self._step = step = None if first is None else first + round
        self._attempt("log", lambda run: run.log(row, step=step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table, for instance scores per site and organ (suppressed cells as None).

        It belongs to the last round: W&B would give it a step of its own, and leave out each round
        whose step that has passed.
        """

        def send(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            run.log({f"table/{name}": table}, step=self._step)

        self._attempt("table", send)

    def model(self, model: Model) -> None:
        """Logs the weights of a phase by reference: nothing is copied until they are uploaded.

        The artifact that the phase began from is recorded as used, which W&B can do online alone;
        offline `began_from` of the metadata names it.

        Args:
            model: its file does not change any more, and lies inside the run folder. Characters of
                its name that W&B refuses become `-`.

        Raises:
            ValueError: the file lies outside the run folder, or in its `sites/`: what is personal
                stays at its site.
        """
        inside = Path(os.path.relpath(model.path.resolve(), self._folder.resolve()))
        if inside.parts[0] in ("..", "sites"):
            raise ValueError(f"{inside} may not become an artifact: not a shared file of the run")

        def send(run: Any) -> None:
            import wandb

            safe = _fit(model.name)
            artifact = wandb.Artifact(safe, type="model", metadata=scrubbed(model.about))
            artifact.add_file(str(model.path.resolve()), policy="immutable", skip_cache=True)
            if model.uses and self.mode == "online":
                with contextlib.suppress(Exception):  # not there yet: the metadata names it
                    run.use_artifact(f"{_fit(model.uses)}:latest")
            run.log_artifact(artifact)

        self._attempt("artifact", send)

    def alert(self, title: str, text: str) -> None:
        """Has W&B tell its users, by mail or Slack as they chose there."""
        self._attempt("alert", lambda run: run.alert(title, text, level="WARN", wait_duration=0))

    def finish(self, status: str = "completed") -> None:
        """Closes the run and stops wandb's helper process; may be called twice."""

        def send(run: Any) -> None:
            import wandb

            run.finish(exit_code=0 if status == "completed" else 1)
            wandb.teardown()

        self._attempt("finish", send)
        self._run = None
        _tidy(self._folder)

    def note(self, text: str) -> None:
        """Records, and passes on, what did not go as asked."""
        self.notes.append(text)
        if self._on_note is not None:
            self._on_note(text)

    def _attempt(self, action: str, call: Callable[[Any], None]) -> None:
        """Runs one call of wandb with its own environment; the first failure ends the tracking."""
        if self._run is None:
            return
        run = self._run
        try:
            with _environment(self._folder, self.mode):
                within(CALL_LIMIT_S[self.mode], lambda: call(run))
        except Exception as error:
            leave_if_told()
            self._run = None
            self.mode = "disabled"
            _abandon()
            self.note(f"W&B: {action} failed ({type(error).__name__}); {UNTRACKED}")


def open_tracker(
    settings: Tracking,
    *,
    run_id: str,
    folder: Path,
    config: Mapping[str, Any] | Plan,
    on_note: Callable[[str], None] | None = None,
) -> WandbRun:
    """Opens the one W&B run of a federated run.

    Args:
        settings: mode (`offline` or `wandb`, `online`, `disabled`), project, entity, tags.
        run_id: hnfed's own run id: name, id and group of the W&B run, the same after a resume.
        folder: the run folder; wandb writes to its `wandb/`.
        config: the resolved plan; `simulation`, `tracking` and absolute paths are not logged.
        on_note: called with each sentence about what did not go as asked.

    Returns:
        A tracker. Where `online` is not possible (no key, no answer within about 20 s) an offline
        one with a note.

    Raises:
        UserError: unknown mode.
    """
    if settings.mode not in ("offline", "wandb", "online", "disabled"):
        raise UserError("tracking.mode", settings.mode, "Use offline, online or disabled.")
    if not isinstance(config, Mapping):
        config = dataclasses.asdict(config)
    tracker = WandbRun(folder, run_id, config.get("phases") or [], on_note)
    if settings.mode == "disabled":
        return tracker
    reasons = []
    if settings.mode == "online":
        reasons.append(_why_not_online() or _init(tracker, settings, "online", config))
    if reasons != [""]:
        reasons.append(_init(tracker, settings, "offline", config))
        if reasons[-1]:
            tracker.note(f"W&B: {'; '.join(reasons)}; {UNTRACKED}")
        elif reasons[0]:
            tracker.note(f"W&B: {reasons[0]}; the run is tracked offline (later: `wandb sync`)")
    return tracker


def scrubbed(value: Any) -> Any:
    """The value with every string that is an absolute path (Unix, Windows, `~`) replaced."""
    if isinstance(value, Mapping):
        return {str(key): scrubbed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed(item) for item in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and re.match(r"[/\\~]|[A-Za-z]:[/\\]|file:", value):
        return "[path]"
    return value


def _init(tracker: WandbRun, settings: Tracking, mode: str, config: Mapping[str, Any]) -> str:
    """Starts the run; returns why not, or "" where it runs."""
    folder = tracker._folder
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    before = set((folder / "wandb").iterdir())
    logged = {key: item for key, item in config.items() if key not in ("simulation", "tracking")}
    try:
        with _environment(folder, mode):
            run = within(START_LIMIT_S, lambda: _start(tracker, settings, mode, scrubbed(logged)))
    except Exception as error:
        leave_if_told()
        _abandon()
        for left in set((folder / "wandb").iterdir()) - before:
            shutil.rmtree(left, ignore_errors=True)
        return f"could not start {mode} ({type(error).__name__})"
    if mode == "offline":
        _record_relative_paths(run, folder.resolve())
    tracker._run = run
    tracker.mode = mode
    _tidy(folder)
    return ""


def _start(tracker: WandbRun, settings: Tracking, mode: str, logged: Any) -> Any:
    import wandb

    run = wandb.init(
        settings=wandb.Settings(
            **PRIVATE_SETTINGS,
            mode="online" if mode == "online" else "offline",
            root_dir=str(tracker._folder.resolve()),
            init_timeout=INIT_TIMEOUT_S,
            run_id=os.environ.get("WANDB_RUN_ID") or _fit(tracker._run_id),  # of a sweep alone
            run_name=tracker._run_id,
            run_group=tracker._run_id,
            run_job_type="server",
            run_tags=tuple(settings.tags) or None,
            project=settings.project,
            entity=settings.entity or None,
            resume="allow",
        ),
        config=logged,
    )
    run.define_metric("round")
    run.define_metric("*", step_metric="round")
    for phase in tracker._first_step:
        run.define_metric(f"{phase}/round", hidden=True)
        run.define_metric(f"{phase}/*", step_metric=f"{phase}/round")
        run.define_metric(f"{phase}/val/mean_dice", step_metric=f"{phase}/round", summary="max")
    return run


def _fit(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def _abandon() -> None:
    """Gives wandb up: nobody waits for its helper process at exit; one that hangs is killed."""
    import wandb

    helper = _helper()
    with contextlib.suppress(Exception):
        within(ABANDON_LIMIT_S, wandb.teardown)
    if helper is not None and helper.poll() is None:
        helper.kill()


def _helper() -> subprocess.Popen[bytes] | None:
    """The wandb-core that this process started, if it runs; by names that are wandb's own."""
    from wandb.sdk import wandb_setup

    found: Any = wandb_setup._singleton
    for name in ("_connection", "_proc", "_process"):
        found = getattr(found, name, None)
    return found if isinstance(found, subprocess.Popen) else None


def _record_relative_paths(run: Any, folder: Path) -> None:
    """Makes artifacts, tables included, name their files relative to the run folder.

    wandb records absolute paths, which tell the user's name and folders to whoever gets the run
    folder. Price: `wandb sync` must be started in the run folder.
    """
    original = run.log_artifact

    def log_artifact(artifact: Any, *args: Any, **kwargs: Any) -> Any:
        for entry in artifact.manifest.entries.values():
            if entry.local_path:
                entry.local_path = os.path.relpath(os.path.realpath(entry.local_path), folder)
        return original(artifact, *args, **kwargs)

    run.log_artifact = log_artifact


@contextlib.contextmanager
def _environment(folder: Path, mode: str) -> Iterator[None]:
    """Sets the variables of wandb for one call, all places inside the run folder; then restores."""
    base = folder.resolve() / "wandb"
    ours = {
        "WANDB_DIR": str(base.parent),
        "WANDB_DATA_DIR": str(base),
        "WANDB_CACHE_DIR": str(base / "cache"),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }
    if mode == "offline":
        ours["WANDB_CONFIG_DIR"] = str(base / "config")
    before = {key: value for key, value in os.environ.items() if key.startswith("WANDB_")}
    kept = KEPT_VARIABLES + (OF_A_SWEEP if SWEEP in before else ())
    for key in before:
        if key not in kept:
            del os.environ[key]
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in [key for key in os.environ if key.startswith("WANDB_")]:
            del os.environ[key]
        os.environ.update(before)


def _tidy(folder: Path) -> None:
    """Removes wandb's debug logs, which name absolute paths; an open log goes when it is closed."""
    base = folder / "wandb"
    logs = (*base.glob("*run-*/logs"), *base.glob("*run-*/tmp"))
    for path in (base / "cache", base / "config", *logs):
        shutil.rmtree(path, ignore_errors=True)


def _why_not_online() -> str:
    """Why W&B cannot be used online, or "": no key, or no answer in time. Follows proxies."""
    server = os.environ.get("WANDB_BASE_URL") or DEFAULT_SERVER
    named = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    if not named and not _in_netrc(server):
        return "no API key (set WANDB_API_KEY or use `wandb login`)"
    if answers(server, REACH_TIMEOUT_S):
        return ""
    return f"{server} did not answer within {REACH_TIMEOUT_S:g} s"


def _in_netrc(server: str) -> bool:
    """Whether the user's netrc file holds a key of that server."""
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    host = server.split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
