"""What a site holds on to of each run: its plan, its split. A run's first order pins them.

Kept beside the runs' folders, where code that trains does not reach.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from core.errors import UserError
from core.files import replace_file
from hnfed.guard.policy import PolicyError

FOLDER = "runs"


@dataclass(frozen=True)
class Pin:
    """Of one run.

    Attributes:
        plan: hash of the plan.
        split: keyed hash of the split that was prepared for it; "" before the query.
        left_out: reason code -> how many cases were left out then.
        answered: an order of a phase was answered: the split stays as it is.
    """

    plan: str
    split: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    answered: bool = False


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
    path = guard / FOLDER / f"{run}.json"
    if not path.is_file():
        keep(guard, run, Pin(plan))
    try:
        pin = Pin(**json.loads(path.read_text(encoding="ascii")))
    except (ValueError, TypeError) as error:
        raise UserError("pin", path, "restore the file, or begin a new run") from error
    if pin.plan != plan:
        raise PolicyError(f"plan: run {run} began with plan {pin.plan[:16]}, not {plan[:16]}")
    return pin


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
