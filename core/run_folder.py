"""The folder of a run before it begins: its place, its id, its plan, the weights it starts from."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from core.checkpoint import load
from core.config import plan_json, to_yaml
from core.errors import UserError
from core.files import private_folder, replace_file
from core.identifiers import run_id as parsed_id
from core.identifiers import run_id_from
from core.phases import require_same_input
from core.plan import Config, Phase, Plan

CELL = "cell.json"  # what a grid of runs keeps of one of them, written before the run begins
BEFORE_THE_START = {CELL, "init", "plan.json"}


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
    return parsed_id(path.read_text(encoding="utf-8"), str(path))


def pinned(plan: Plan, phase: Phase, folder: Path) -> Phase:
    """A checkpoint that a phase starts from is copied into the run, named by its SHA-256 (D1)."""
    if not phase.init.endswith(".safetensors"):
        return phase
    source = Path(phase.init)
    if not source.is_file():
        raise UserError(
            f"phases.{phase.name}.init", phase.init, "give the path of an existing checkpoint"
        )
    _, meta = load(source)
    require_same_input(meta, plan, f"phases.{phase.name}.init", phase.init)
    named = by_content(phase)
    digest = named.init.removeprefix("sha256:")
    target = folder / "init"
    target.mkdir(exist_ok=True)
    shutil.copyfile(source, target / f"{digest}.safetensors")
    shutil.copyfile(source.with_suffix(".json"), target / f"{digest}.json")
    return named


def by_content(phase: Phase) -> Phase:
    """The phase with the file that it starts from named by its SHA-256, as the plan has it (D1)."""
    digest = hashlib.sha256(Path(phase.init).read_bytes()).hexdigest()
    return replace(phase, init=f"sha256:{digest}")


def keep_plan(config: Config, folder: Path, resume: bool) -> None:
    """Keeps the plan's canonical form beside the run; a resumed run must bring the same."""
    text = plan_json(config.plan)
    path = folder / "plan.json"
    if not resume:
        replace_file(path, text)
    elif not path.is_file() or path.read_text(encoding="ascii") != text:
        raise UserError(
            "--resume",
            folder,
            "give the same configuration and overrides as the run (its config.yaml), "
            "or start a new run",
            problem="the run was started with another plan",
        )


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
    if local:  # with the sites' own figures and pictures
        private_folder(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
    resolved = replace(resolved, phases=[pinned(resolved, p, folder) for p in resolved.phases])
    keep_plan(resolved, folder, resume)
    replace_file(folder / "config.yaml", to_yaml(asked))
    return {
        "plan": plan_json(resolved.plan),
        "run_id": run_id(folder, resume),
        "out": out,
        "resume": "1" if resume else "",
        "tracking": json.dumps(asdict(resolved.tracking)),
        "local": local,
    }
