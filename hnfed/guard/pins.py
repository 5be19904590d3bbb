"""What a site holds on to of each run: its plan, its split. A run's first order pins them.

The plan itself lies under its hash, for the site's own report (`hnfed report KIT`).

Kept beside the runs' folders, where code that trains does not reach.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from core.errors import UserError
from core.files import replace_file
from core.plan.load import plan_from_json, plan_hash, plan_json
from core.plan.schema import Plan
from hnfed.guard.kit_files import damage, kept_json, needed_bytes
from hnfed.guard.policy import PolicyError

FOLDER, PLANS = "runs", "plans"


@dataclass(frozen=True)
class Pin:
    """Of one run.

    Attributes:
        plan: hash of the plan.
        split: keyed hash of the split that was prepared for it; "" before the query.
        left_out: reason code -> how many cases were left out then.
        answered: an order of a phase was answered: the split stays as it is.
        trained: of a phase whose weights stay the last round that was answered, and the one that
            it built on (`hnfed.guard.kept_rounds`).
    """

    plan: str
    split: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    answered: bool = False
    trained: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def pinned(guard: Path, run: str, plan: str) -> Pin:
    """The pin of a run; made where it has none.

    Args:
        guard: the guard's folder at this site.
        run: a checked name.
        plan: hash of the plan that came with this order.

    Raises:
        PolicyError: the run came with another plan before: what a site keeps of a run was agreed
            on under that one.
    """
    pin = read_pin(guard, run)
    if pin is None:
        pin = Pin(plan)
        keep(guard, run, pin)
    if pin.plan != plan:
        raise PolicyError(f"plan: run {run} began with plan {pin.plan[:16]}, not {plan[:16]}")
    return pin


def read_pin(guard: Path, run: str) -> Pin | None:
    """The pin of a run; None where it has none.

    Raises:
        UserError: a damaged file.
    """
    path = guard / FOLDER / f"{run}.json"
    try:
        values = kept_json(path)
        return None if values is None else Pin(**values)
    except (ValueError, TypeError) as error:
        remedy = "restore the file, or begin a new run"
        raise UserError("pin", path, remedy, problem=damage(error)) from error


def split_again(pin: Pin, split: str, left_out: Mapping[str, int]) -> Pin:
    """The pin with the split that a query has just prepared.

    Raises:
        PolicyError: another one than what earlier answers of this run came from: taken one from the
            other, they would tell of what was added to the archive, or taken away.
    """
    if pin.answered and pin.split != split:
        raise PolicyError(
            "split: the archive, or the list of its split, has changed since this run's first "
            "answer; restore it, or the coordinator begins a new run"
        )
    return replace(pin, split=split, left_out=dict(left_out))


def keep(guard: Path, run: str, pin: Pin) -> None:
    """Writes the pin of a run."""
    folder = guard / FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(folder / f"{run}.json", json.dumps(asdict(pin)))


def keep_plan(guard: Path, plan: Plan) -> None:
    """Writes a plan, as JSON, under its hash; once.

    Args:
        guard: the guard's folder at this site.
        plan: of a run.
    """
    path = _plan_path(guard, plan_hash(plan))
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(path, plan_json(plan))


def plan_of(guard: Path, pin: Pin) -> Plan | None:
    """The plan of a pinned run; None where it was not kept, or is of a version that differs."""
    try:
        return plan_from_json(needed_bytes(_plan_path(guard, pin.plan)).decode("ascii"))
    except (OSError, ValueError, UserError):
        return None


def _plan_path(guard: Path, digest: str) -> Path:
    return guard / PLANS / f"{digest}.json"
