"""The folder of a run before it begins: its place, its id, its plan, the weights it starts from.

Whoever starts a run holds its folder first (`held_folder`), then checks, and writes last.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.errors import UserError
from core.files import private_folder, replace_file
from core.identifiers import run_id as parsed_id
from core.identifiers import run_id_from
from core.plan.load import plan_json, to_yaml
from core.plan.schema import Config, Phase, Plan
from core.processes import held
from core.wire.checkpoint import load
from core.wire.partition import require_same_input

START_LOCK = ".start.lock"  # held by the command that starts a run, to its end in a simulation
LOCK = Path("state", ".lock")  # held by the server that writes into a run's folder
CELL = "cell.json"  # what a grid of runs keeps of one of them, written before the run begins
BEFORE_THE_START = {CELL, "init", "plan.json", START_LOCK}
SHOWN_KEYS = 8


def run_folder(name: str, out: Path | None, resume: bool, root: Path = Path("runs")) -> Path:
    """The folder of a run: `out`, else the first of ROOT/NAME, ROOT/NAME-2 ... that is not there.

    Raises:
        UserError: nothing to resume there, something there that is another run, or a path that
            is no text in UTF-8, which no configuration could name.
    """
    try:
        str(out or root / name).encode()
    except UnicodeEncodeError:
        problem = "a name that is not UTF-8"
        raise UserError("--out", ascii(str(out or name)), "name it anew", problem=problem) from None
    if resume:
        folder = out or root / name
        if not (folder / "config.yaml").is_file():
            raise UserError("--resume", folder, "give the folder of an earlier run with --out")
        return folder.resolve()
    if out is not None:
        if begun(out):
            raise UserError(
                "--out",
                out,
                "choose a new folder, or add --resume to continue that run",
                problem="the folder is not empty",
            )
        folder = out
    else:
        candidates = (root / (name if i == 1 else f"{name}-{i}") for i in range(1, 10_000))
        folder = next(c for c in candidates if not c.exists())
    return folder.resolve()


@contextmanager
def held_folder(
    name: str, out: Path | None, resume: bool, root: Path = Path("runs"), *, local: bool = False
) -> Iterator[Path]:
    """`run_folder`, made and held: no other start writes into it as long as this lasts.

    A start that is refused before it writes leaves no folder that was not there before.

    Args:
        name: of the run, see `run_folder`.
        out: its folder, where given.
        resume: of an earlier run.
        root: where folders are made that are not given.
        local: of a simulation: made for this account alone, and a server at work there is one that
            a killed start has left. (In deployment a run at work can be followed again.)

    Raises:
        UserError: as for `run_folder`, or another start, or the server of a run, holds the folder.
    """
    while True:
        folder = run_folder(name, out, resume, root)
        fresh = not folder.exists()
        if local:
            private_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / START_LOCK, timeout=0, mode=0o600)
        try:
            lock.acquire()
            break
        except Timeout:
            if out is None and not resume:  # somebody began there this very moment
                continue
            raise _in_use(folder) from None
    try:
        if local and held(folder / LOCK):
            raise _in_use(folder)
        run_folder(name, folder, resume, root)  # looked at again, now that nobody else writes
        yield folder
    finally:
        if fresh and {p.name for p in folder.iterdir()} <= {START_LOCK}:
            (folder / START_LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        lock.release()


def _in_use(folder: Path) -> UserError:
    remedy = "wait for its end, or stop it, or choose another folder"
    return UserError("--out", folder, remedy, problem="a run is at work in this folder")


def begun(folder: Path) -> bool:
    """True where a folder holds more than what is written before a run begins."""
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    parts = {n[1:].removesuffix(".next") if n.endswith(".next") else n for n in names}
    return bool(parts - BEFORE_THE_START)


def run_id(folder: Path, resume: bool) -> str:
    """Hnfed's own id of a run (D3): made of the folder's name and what no other run has.

    Raises:
        UserError: the file of a run that is to be resumed holds no id.
    """
    path = folder / "run_id"
    if not resume or not path.is_file():
        replace_file(path, run_id_from(folder.name, secrets.token_hex(3)))
    return parsed_id(path.read_text(encoding="utf-8", errors="replace"), str(path))


def named(plan: Plan, phase: Phase) -> Phase:
    """The phase with the checkpoint file that it starts from named by its SHA-256 (D1).

    Raises:
        UserError: there is no such file, or its network takes another input.
    """
    if not phase.init.endswith(".safetensors"):
        return phase
    source = Path(phase.init)
    field = f"phases.{phase.name}.init"
    if not source.is_file():
        raise UserError(field, phase.init, "give the path of an existing checkpoint")
    _, meta = load(source)
    require_same_input(meta, plan, field, phase.init)
    return by_content(phase)


def pinned(plan: Plan, phase: Phase, folder: Path) -> Phase:
    """`named`; the checkpoint is copied into the run."""
    found = named(plan, phase)
    if found is not phase:
        digest, source = found.init.removeprefix("sha256:"), Path(phase.init)
        target = folder / "init"
        target.mkdir(exist_ok=True)
        shutil.copyfile(source, target / f"{digest}.safetensors")
        shutil.copyfile(source.with_suffix(".json"), target / f"{digest}.json")
    return found


def by_content(phase: Phase) -> Phase:
    """The phase with the file that it starts from named by its SHA-256, as the plan has it (D1)."""
    digest = hashlib.sha256(Path(phase.init).read_bytes()).hexdigest()
    return replace(phase, init=f"sha256:{digest}")


def require_resumable(config: Config, folder: Path) -> None:
    """A resumed run brings the plan that the folder holds.

    Args:
        config: as it runs; checkpoints that it starts from are named by their paths.
        folder: of the run.

    Raises:
        UserError: it does not; the keys that differ are named, with both values.
    """
    phases = [named(config, phase) for phase in config.phases]
    text = plan_json(replace(config, phases=phases).plan)
    path = folder / "plan.json"
    remedy = (
        "give the same configuration and overrides as the run (its config.yaml), "
        "or start a new run in another folder"
    )
    try:
        before = path.read_text(encoding="utf-8")
        if not isinstance(json.loads(before), dict):
            raise ValueError("no mapping")
        keys = [] if before == text else differing(json.loads(before), json.loads(text))
    except FileNotFoundError:
        raise UserError("--resume", folder, remedy, problem="it has no plan.json") from None
    except ValueError:
        raise UserError("--resume", path, remedy, problem="damaged: this is no plan") from None
    if before == text:
        return
    shown = keys[:SHOWN_KEYS] + [f"and {len(keys) - SHOWN_KEYS} more"] * (len(keys) > SHOWN_KEYS)
    problem = f"the run was started with another plan: {'; '.join(shown) or 'of another form'}"
    raise UserError("--resume", folder, remedy, problem=problem)


def differing(before: Any, now: Any, key: str = "") -> list[str]:
    """The keys in which two values of JSON differ, each with both values, in words.

    The items of a list are told by their ``name`` where they have one, as in overrides.
    """
    if isinstance(before, list) and isinstance(now, list):
        named = [_by_name(before), _by_name(now)]
        if None not in named and list(named[0] or ()) != list(named[1] or ()):
            return [f"{key} was {_short(list(named[0] or ()))}, is {_short(list(named[1] or ()))}"]
        before, now = named if None not in named else (before, now)
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [f"{key} was {_short(before)}, is {_short(now)}"]
    found = []
    for name in dict.fromkeys([*before, *now]):
        inner = f"{key}.{name}" if key else str(name)
        if name not in now or name not in before:
            there = _short(before[name]) if name in before else "not there"
            found.append(f"{inner} was {there}, is {_short(now[name]) if name in now else 'gone'}")
        else:
            found += differing(before[name], now[name], inner)
    return found


def _by_name(values: list[Any]) -> dict[str, Any] | None:
    if not values or not all(isinstance(v, dict) and "name" in v for v in values):
        return None
    return {str(v["name"]): v for v in values}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def completed(folder: Path) -> bool:
    """Whether the run of a folder has come to its end; False where that cannot be read."""
    try:
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(found, dict) and found.get("status") == "completed"


def begin(
    asked: Config, resolved: Config, folder: Path, *, out: str, resume: bool, local: str
) -> dict[str, str]:
    """Makes a run's folder, with its plan and configuration; returns what the apps are told (D1).

    Args:
        asked: the configuration as the user gave it.
        resolved: the same as it runs.
        folder: from `run_folder`.
        out: how the server finds the folder.
        resume: go on with the run that the folder holds.
        local: site map of a simulation as JSON; "" in deployment.

    Raises:
        UserError: another plan than the run's, or a checkpoint that cannot be started from.
    """
    if resume:
        require_resumable(resolved, folder)
    if local:  # with the sites' own figures and pictures
        private_folder(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
    resolved = replace(resolved, phases=[pinned(resolved, p, folder) for p in resolved.phases])
    run = run_id(folder, resume)
    if not resume:
        replace_file(folder / "plan.json", plan_json(resolved.plan))
    replace_file(folder / "config.yaml", to_yaml(asked))
    return {
        "plan": plan_json(resolved.plan),
        "run_id": run,
        "out": out,
        "resume": "1" if resume else "",
        "tracking": "",  # a run is tracked from beside it (core.tracking): no app needs to know
        "local": local,
    }
