"""One cell of a study: the plan it stands for, what its folder holds, and what came out."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import read_bounded, replace_file
from core.plan.load import plan_from_json, plan_json
from core.plan.schema import Config, SimulatedSite
from core.tracking.foreign_run import is_own_file, most_bytes, read_json, reason
from core.wire.partition import fingerprint
from server.run_folder import CELL, begun, by_content
from simulations.run import resolve
from simulations.site_map import archive_roots
from simulations.study import Cell

ROOT = Path(__file__).resolve().parent.parent
MOVE = "move this folder away, or choose another --out; nothing is deleted here"


@dataclass(frozen=True)
class Wanted:
    """What a cell's configuration resolves to now.

    Attributes:
        plan: canonical JSON, as in a run's ``plan.json``; without meaning while `waits`.
        simulation: baseline, sites with their patients, phantoms: what else decides the result.
        last: names of the phases that the last phase of the configuration becomes.
        phases: the phases in words.
        cpus: `simulation.cpus_per_site`.
        needs_at_most: CPUs and GPUs that the cell uses, with its sites side by side on Ray and one
            after the other inline.
        waits: a checkpoint that it starts from does not exist yet.
    """

    plan: str
    simulation: dict[str, Any]
    last: tuple[str, ...]
    phases: str
    cpus: int
    needs_at_most: tuple[int, float]
    waits: bool


def wanted(cell: Cell, config: str, out: Path) -> Wanted:
    """Resolves a cell's configuration.

    Args:
        cell: of the study.
        config: the study's base configuration.
        out: folder of the cells; paths below it are written relative to it, so that it may move.

    Raises:
        UserError: what cannot work, with the cell's name.
    """
    try:
        asked, resolved = resolve(config, cell.overrides)
        waits = False
        phases = []
        for phase in resolved.phases:
            if not phase.init.endswith(".safetensors"):
                phases.append(phase)
            elif Path(phase.init).is_file():
                phases.append(by_content(phase))
            elif cell.needs and Path(phase.init).is_relative_to(out):
                phases.append(phase)
                waits = True
            else:
                raise UserError(
                    f"phases.{phase.name}.init", phase.init, "give the path of a checkpoint"
                )
        simulation = _simulation(resolved, out)
    except UserError as error:
        raise UserError(
            f"cell {cell.name}: {error.field}", error.value, error.remedy, problem=error.problem
        ) from error
    final = asked.phases[-1]
    alone = resolved.simulation.baseline == "local-only"
    return Wanted(
        plan=plan_json(replace(resolved, phases=phases).plan),
        simulation=simulation,
        last=tuple(f"{final.name}-{s}" for s in final.sites) if alone else (final.name,),
        phases=", ".join(f"{p.name} {p.rounds} x {p.local_epochs}" for p in resolved.phases),
        cpus=resolved.simulation.cpus_per_site,
        needs_at_most=_needs(resolved),
        waits=waits,
    )


def _needs(config: Config) -> tuple[int, float]:
    simulation = config.simulation
    at_a_time = 1 if simulation.engine == "inline" else len(config.site_names)
    return at_a_time * simulation.cpus_per_site, at_a_time * simulation.gpus_per_site


def _simulation(config: Config, out: Path) -> dict[str, Any]:
    simulation = config.simulation
    used = simulation.sites if simulation.baseline else config.site_names
    sites = {}
    for name in sorted(used):
        site = simulation.sites[name]
        listed = site.root if isinstance(site.root, list) else [site.root]
        given = [Path(text) for text in listed if text]
        if any(root.is_relative_to(out) for root in given):  # views, made when cells run
            roots = [r.relative_to(out) if r.is_relative_to(out) else r for r in given]
        else:
            roots = [] if site.phantom else archive_roots(name, site, simulation)
        root = os.pathsep.join(map(str, roots))
        sites[name] = asdict(replace(site, root=root))
    return {
        "baseline": simulation.baseline,
        "phantom_spacing_mm": list(simulation.phantom_spacing_mm),
        "sites": sites,
    }


def state(cell: Cell, folder: Path, target: Wanted) -> str:
    """What a cell's folder holds: ``new``, ``unfinished`` or ``done``.

    Or ``waits``, while that cannot be said because a cell that it needs is not done.

    A key of the configuration that came later counts with its default, unless the run has still to
    be resumed: a resumed run brings the very same plan.

    Raises:
        UserError: the folder holds something else, or a run of another plan.
    """
    if not begun(folder):
        return "waits" if target.waits else "new"
    record = read_record(folder)
    if record is None:
        raise UserError(f"cell {cell.name}", folder, MOVE, problem=f"it has no {CELL}")
    if target.waits:
        return "waits"
    status = read_metrics(folder).get("status")
    done = status == "completed"
    path = folder / "plan.json"
    text = _plan_text(path) if path.is_file() else record["plan"]
    same_plan = text == target.plan or (done and _today(text) == target.plan)
    if not same_plan or _sites_today(record["simulation"]) != target.simulation:
        part = "other sites or patients" if same_plan else "another plan"
        raise UserError(f"cell {cell.name}", folder, MOVE, problem=f"it was made with {part}")
    return "done" if done else "unfinished"


def _plan_text(path: Path) -> str:
    try:
        return read_bounded(path, most_bytes(path)).decode("ascii")
    except (OSError, ValueError) as error:
        problem = f"it cannot be read ({reason(error)})"
        raise UserError(path.name, path, MOVE, problem=problem) from error


def _today(plan: str) -> str | None:
    """An older plan in the canonical form of today, None where a key is gone."""
    try:
        return plan_json(plan_from_json(plan))
    except UserError:
        return None


def _sites_today(simulation: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        sites = {n: asdict(SimulatedSite(**s)) for n, s in simulation["sites"].items()}
    except TypeError:
        return None
    return {**simulation, "sites": sites}


def read_record(folder: Path) -> dict[str, Any] | None:
    """The cell's ``cell.json``, or None where there is none."""
    path = folder / CELL
    return _values(path) if path.is_file() else None


def write_record(
    cell: Cell, folder: Path, target: Wanted, command: Sequence[str], status: str, seconds: float
) -> None:
    """Writes ``cell.json``: what was run, with which code, for how long.

    Args:
        cell: of the study.
        folder: its run folder, made where missing.
        target: what its configuration resolved to.
        command: what repeats it.
        status: ``running``, ``completed``, ``failed`` or ``interrupted``.
        seconds: of this start; those of earlier starts are added.
    """
    before = read_record(folder) if begun(folder) else None
    earlier = before or {"fingerprints": [], "seconds": 0.0}
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": 1,
        "cell": cell.name,
        "variant": cell.variant,
        "axes": dict(cell.values),
        "seed": cell.seed,
        "status": status,
        "seconds": round(float(earlier["seconds"]) + seconds, 1),
        "fingerprints": list(dict.fromkeys([*earlier["fingerprints"], fingerprint()])),
        "commit": commit(),
        "command": list(command),
        "plan": target.plan,
        "simulation": target.simulation,
    }
    replace_file(folder / CELL, json.dumps(record, indent=1, allow_nan=False))


def of_other_code(folder: Path) -> bool:
    """True where a cell was made, wholly or in part, by other code than this."""
    record = read_record(folder)
    return record is not None and record["fingerprints"] != [fingerprint()]


@functools.cache
def commit() -> str:
    """The source tree's git commit, with ``-dirty`` for uncommitted changes; "" outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty"]
    if not (ROOT / ".git").exists():
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def read_metrics(folder: Path) -> dict[str, Any]:
    """The run's ``metrics.json``; empty where there is none."""
    path = folder / "metrics.json"
    return _values(path) if path.is_file() else {}


def _values(path: Path) -> dict[str, Any]:
    """A JSON object of a cell, whose folder may come from anywhere."""
    problem = "it is a link out of the folder, or no JSON object"
    try:
        found = read_json(path) if is_own_file(path, path.parent) else None
    except (OSError, ValueError) as error:
        problem, found = f"it cannot be read ({reason(error)})", None
    if not isinstance(found, dict):
        raise UserError(path.name, path, MOVE, problem=problem)
    return found


def minutes(folder: Path) -> float:
    """Wall time of a cell over all its starts (of its phases, if that is all that is known)."""
    record = read_record(folder) or {"seconds": 0.0}
    phases = sum(float(p["seconds"]) for p in read_metrics(folder).get("phases", []))
    return max(float(record["seconds"]), phases) / 60


def mean_dice(blocks: Sequence[Mapping[str, Any]], split: str) -> float | None:
    """Mean over organs of the mean over cases (D18), over all sites of the phases given.

    Args:
        blocks: phases of ``metrics.json``; several for the sites of a local-only run, each of
            which is scored on its own patients.
        split: ``val`` or ``test``.

    Returns:
        None where no score is published.
    """
    sums: dict[str, tuple[float, int]] = {}
    for block in blocks:
        for splits in block["sites"].values():
            for organ, score in splits.get(split, {}).items():
                if score.get("n") and score.get("dice") is not None:
                    total, n = sums.get(organ, (0.0, 0))
                    sums[organ] = (total + score["n"] * score["dice"], n + score["n"])
    means = [total / n for total, n in sums.values()]
    return sum(means) / len(means) if means else None
