"""Flower ServerApp: roster, then the phases of the plan, one after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from core.errors import UserError
from core.os_refusals import in_words
from core.plan.load import plan_from_json, plan_hash
from core.plan.schema import SPLITS, Phase, Plan, crop_words
from core.provenance import versions
from core.wire.checkpoint import load, load_meta
from core.wire.messages import Description
from core.wire.partition import fingerprint, require_same_input
from server.dispatch import RunFailed, RunIncomplete, quorum_of
from server.enrolment import call_roster, require_same_split
from server.plainly import speak_plainly
from server.progress import State
from server.record import Recorder, tell
from server.round_record import told_mean
from server.rounds import Parties, PhaseRun, Start
from server.run_folder import LOCK, completed
from server.secure_start import secure_start

app = ServerApp()
ALONE = "flwr run by itself does not bring it"
HOW_TO_START = (
    "start it by hnfed: `hnfed simulate PLAN` on this machine, or "
    "`hnfed run PLAN --server KIT` where the federation's server is"
)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the plan that `run_config` holds (D1)."""
    speak_plainly()
    given, plan = _brought(context)
    out = run_folder_of(given["out"])
    (out / LOCK).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(out):
        if given["resume"] and completed(out):
            tell("completed before; nothing is left to do")
            return
        recorder = Recorder(out, given["run_id"], plan)
        recorder.receipts.signs_with(_kit())
        whole = bool(context.run_config.get("local"))  # in a simulation nobody is on the way
        _main(grid, plan, recorder, given, whole=whole)


def _brought(context: Context) -> tuple[dict[str, str], Plan]:
    """The settings that hnfed brings, and the plan among them.

    Raises:
        UserError: `flwr run` by itself brings none, or something that is no plan; told.
    """
    given = {k: str(context.run_config[k]) for k in ("plan", "run_id", "out", "resume")}
    try:
        absent = [key for key in ("plan", "run_id", "out") if not given[key]]
        if absent:
            raise UserError(absent[0], "(none)", HOW_TO_START, problem=ALONE)
        try:
            return given, plan_from_json(given["plan"])
        except UserError as error:
            if given["plan"].lstrip().startswith("{"):
                raise
            raise UserError("plan", error.value, HOW_TO_START, problem=error.problem) from None
    except UserError as error:
        tell(f"error: {error}")
        raise


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds the run's folder: two servers that write into it would mix their rounds.

    Raises:
        UserError: another one is at work there.
    """
    lock = FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        remedy = "wait for its end, or stop it, and resume the run then"
        problem = "another server is at work on this run"
        error = UserError("out", out.name, remedy, problem=problem)
        tell(f"error: {error}")
        raise error from None
    try:
        yield
    finally:
        lock.release()


def _main(
    grid: Grid, plan: Plan, recorder: Recorder, given: Mapping[str, str], *, whole: bool
) -> None:
    if given["resume"]:
        recorder.take_over(p.name for p in plan.phases)
    started = time.monotonic()
    status = "interrupted"
    try:
        _run(grid, plan, recorder, resume=bool(given["resume"]), whole=whole)
        status = "completed"
    except (RunFailed, UserError) as error:
        status = "incomplete" if isinstance(error, RunIncomplete) else "failed"
        recorder.say({"event": "note", "text": str(error)})
        tell(f"error: {error}")
        raise
    except OSError as error:  # the run can go on once there is room: not failed
        tell(f"error: {in_words(error) or error}")
        raise
    finally:
        _end(recorder, status, time.monotonic() - started)


def _end(recorder: Recorder, status: str, seconds: float) -> None:
    """Writes a run's end; where the disk takes none, what ended the run is what is told."""
    try:
        recorder.write_metrics(status)
        recorder.say({"event": "run-end", "status": status, "seconds": round(seconds, 3)})
    except OSError as error:
        tell(f"the end of the run could not be written: {error.strerror}")
        if status == "completed":
            raise


def _kit() -> Path | None:
    """The server's kit; none in a simulation."""
    root = os.environ.get("HNFED_RUNS", "")
    return Path(root).parent if root else None


def run_folder_of(out: str) -> Path:
    """The run's folder: a path in a simulation; in deployment a name below the kit's runs (D1).

    Raises:
        UserError: a path where only a name may be.
    """
    root = os.environ.get("HNFED_RUNS", "")
    if not root:
        return Path(out)
    if not out or out != Path(out).name or out in (".", ".."):
        raise UserError("out", out, "give the name of a folder, without a path")
    return Path(root) / out


def _run(grid: Grid, plan: Plan, recorder: Recorder, *, resume: bool, whole: bool) -> None:
    code = fingerprint()
    recorder.say(
        {
            "event": "run-start",
            "run": recorder.run,
            "plan_hash": plan_hash(plan),
            "resumed": resume,
            "versions": versions(),
            "fingerprint": code,
            "seed": plan.seed,
        }
    )
    nodes, described = call_roster(
        grid,
        plan,
        run=recorder.run,
        fingerprint=code,
        say=recorder.say,
        seen=recorder.receipts.seen,
    )
    for description in (described[s] for s in sorted(described)):
        _introduce(description, plan, recorder)
    _require_annotated(plan, described)
    secure = secure_start(grid, plan, nodes, described, code, recorder)
    parties = Parties(grid, plan, recorder, nodes, described, code, secure, whole)
    weights: dict[str, tuple[State, list[str]]] = {}
    splits: dict[str, dict[str, str]] = {}
    for phase in plan.phases:
        block = recorder.finished(phase.name) if resume else None
        if block is not None:
            meta = load_meta(recorder.out / "checkpoints" / phase.name / "best.json")
            require_same_split(meta, described, "--resume", recorder.run)
            splits[phase.name] = dict(meta["splits"])
            tell(f"{phase.name}: done before, taken over")
            if not phase.best_at_site:
                best = load(recorder.out / "checkpoints" / phase.name / "best.safetensors")
                weights[phase.name] = (best[0], list(phase.organs))
            continue
        missing = [s for s in phase.sites if s not in nodes]
        if missing and (
            whole
            or plan.federation.min_sites == 0
            or len(phase.sites) - len(missing) < quorum_of(plan, phase)
        ):
            raise RunFailed(
                f"phase {phase.name}: site{'s' if len(missing) > 1 else ''} {', '.join(missing)} "
                "did not come or could not take part; the reasons stand above and in the journal"
            )
        if missing:
            recorder.note(f"goes on without {', '.join(missing)}", phase.name)
        if phase.init not in splits:
            splits[phase.init] = _checked_splits(plan, phase, recorder, described)
        run = PhaseRun(
            parties,
            phase,
            Start(
                _previous(plan, phase, recorder, weights),
                _starts_at_site(plan, phase),
                splits[phase.init],
            ),
        )
        splits[phase.name] = dict(run.meta["splits"])
        best_state, block = run.run(resume)
        if not phase.best_at_site:
            weights[phase.name] = (best_state, list(phase.organs))
        recorder.finish_phase(block)
        recorder.advise()
        split = "test" if phase.test else "val"
        shown = told_mean(block, split)
        tell(f"{phase.name} done: {split} Dice {shown} (weights of round {block['best_round']})")


def _require_annotated(plan: Plan, described: Mapping[str, Description]) -> None:
    """An organ that no site annotates cannot be learnt; a personal phase is checked at the site."""
    for phase in plan.phases:
        sites = [described[s] for s in phase.sites if s in described]
        if phase.share == "none" or not sites or not all(d.annotated for d in sites):
            continue
        index = {o: plan.organ_names.index(o) for o in phase.organs}
        absent = [o for o, i in index.items() if not any(d.annotated[i] for d in sites)]
        if absent:
            raise UserError(
                f"phases.{phase.name}.organs",
                ", ".join(absent),
                "take them out of the phase, or add a site or aliases that annotate them; where "
                "they are drawn, correct preprocess.crop and preprocess.spacing_mm (millimetres)",
                problem=f"no training case of any site has a voxel of them in its crop: "
                f"{crop_words(plan)}",
            )


def _introduce(description: Description, plan: Plan, recorder: Recorder) -> None:
    """Journals what a site has; a count below `min_cell` is not told."""
    cell = plan.federation.min_cell
    shared = {o for p in plan.phases if p.share != "none" for o in p.organs}
    told = zip(plan.organ_names, description.annotated, strict=False)
    organs = {o: n for o, n in told if o in shared}
    cases = dict(zip(SPLITS, description.cases, strict=True))
    recorder.say(
        {
            "event": "site-described",
            "site": description.site,
            "organs": {k: n if n >= cell or n == 0 else None for k, n in organs.items()},
            "cases": {k: n if n >= cell or n == 0 else None for k, n in cases.items()},
            "left_out": {k: n if n >= cell else None for k, n in description.left_out.items()},
        }
    )
    counts = ", ".join(f"{_told(n, cell)} {k}" for k, n in cases.items())
    tell(f"{description.site} is ready: {counts} cases")


def _told(count: int, cell: int) -> str:
    """A number of cases as it may be shown."""
    if count < 0:
        return "an untold number of"
    return str(count) if count == 0 or count >= cell else f"fewer than {cell}"


def _previous(
    plan: Plan, phase: Phase, recorder: Recorder, weights: dict[str, tuple[State, list[str]]]
) -> tuple[State, list[str]] | None:
    if phase.init == "scratch" or _starts_at_site(plan, phase):
        return None
    if phase.init in weights:
        return weights[phase.init]
    name = phase.init.removeprefix("sha256:")
    state, meta = load(recorder.out / "init" / f"{name}.safetensors")
    return state, list(meta["organs"])


def _starts_at_site(plan: Plan, phase: Phase) -> bool:
    """True where the phase begins from personal weights, which only the site has."""
    return any(p.name == phase.init and p.best_at_site for p in plan.phases)


def _checked_splits(
    plan: Plan, phase: Phase, recorder: Recorder, described: Mapping[str, Description]
) -> dict[str, str]:
    """The splits behind a checkpoint; one of another split (D17) or plan is refused."""
    if not phase.init.startswith("sha256:"):
        return {}
    name = phase.init.removeprefix("sha256:")
    meta = load_meta(recorder.out / "init" / f"{name}.safetensors")
    field, value = f"phases.{phase.name}.init", phase.init[:20] + "..."
    require_same_input(meta, plan, field, value)
    require_same_split(meta, described, field, value)
    return dict(meta.get("splits", {}))  # a model that ships names no sites
