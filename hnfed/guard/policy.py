"""A site's policy: what may run here and what may leave, whatever a plan says."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from core.config import read_yaml
from core.errors import UserError
from core.plan import Plan
from core.ranges import number_of

SHARES = ("all", "trainable", "none")


@dataclass(frozen=True)
class Policy:
    """What a site allows.

    Attributes:
        organs: that may be trained here; () for any.
        share: of a phase, what may travel back.
        models: names of networks; () for any.
        fewest_local_epochs: a phase with fewer is refused.
        scores: control scores may go to the server.
        counts: exact numbers of cases may go to the server.
        min_cell: no score of fewer cases leaves in a personal phase.
        longest_s: seconds that one order may take here; what takes longer is ended.
        gpu_memory_share: of the device's memory, what a training step may take.
    """

    organs: tuple[str, ...] = ()
    share: tuple[str, ...] = SHARES
    models: tuple[str, ...] = ()
    fewest_local_epochs: int = 1
    scores: bool = True
    counts: bool = True
    min_cell: int = 11
    longest_s: int = 86_400
    gpu_memory_share: float = 1.0


class PolicyError(RuntimeError):
    """The plan asks for what the site does not allow; told to the server as a code only."""


def read_policy(path: Path) -> Policy:
    """Reads ``policy.yaml``.

    Raises:
        UserError: an unknown key or a value of another kind: nothing runs under a doubtful policy.
    """
    values = read_yaml(path)
    known = {f.name for f in fields(Policy)}
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"policy: {key}", value, f"use one of {', '.join(sorted(known))}")
        default = getattr(Policy(), key)
        if key in ("organs", "models") and value == "any":
            made[key] = ()
        elif isinstance(default, tuple):
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise UserError(f"policy: {key}", value, "give a list of names")
            if not value or (key == "share" and set(value) - set(SHARES)):
                raise UserError(f"policy: {key}", value, f"choose of {', '.join(SHARES)}")
            made[key] = tuple(value)
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise UserError(f"policy: {key}", value, "write true or false")
            made[key] = value
        else:
            whole = isinstance(default, int)
            made[key] = type(default)(number_of("policy", key, value, whole=whole))
    return Policy(**made)


def require_allowed(plan: Plan, site: str, policy: Policy) -> None:
    """Requires that every phase of this site is one that the policy allows.

    Raises:
        PolicyError: names the key; it stays in the site's log.
    """
    if policy.models and plan.model.name not in policy.models:
        raise PolicyError(f"models: {plan.model.name}")
    for phase in plan.phases:
        if site not in phase.sites:
            continue
        if phase.share not in policy.share:
            raise PolicyError(f"share: {phase.share} in phase {phase.name}")
        if phase.local_epochs < policy.fewest_local_epochs:
            raise PolicyError(f"fewest_local_epochs: {phase.local_epochs} in phase {phase.name}")
        wrong = [o for o in phase.organs if policy.organs and o not in policy.organs]
        if wrong:
            raise PolicyError(f"organs: {', '.join(wrong)} in phase {phase.name}")
        if phase.share == "none" and plan.federation.min_cell < policy.min_cell:
            raise PolicyError(
                f"min_cell: the plan publishes scores of {plan.federation.min_cell} cases or more, "
                f"policy.yaml asks for at least {policy.min_cell} (the coordinator: "
                f"federation.min_cell={policy.min_cell})"
            )
