"""How often each task of a plan's phase was answered here, over all runs.

An approval says which plan, not how often: begun anew under another name, or a round of it asked
for again, it would give as many views of the same cases as somebody cares to ask for. Counted in
the guard's folder before an answer leaves; nothing of it is sent.
"""

from __future__ import annotations

import json
from pathlib import Path

from core.errors import UserError
from core.files import replace_file
from hnfed.guard.kit_files import damage, kept_json
from hnfed.guard.order import Asked
from hnfed.guard.rules import Policy, PolicyError

FOLDER = "answers"
Counts = dict[str, dict[str, int]]  # phase -> task -> answers


def require_unanswered(guard: Path, policy: Policy, plan: str, asked: Asked) -> None:
    """Requires that a task was not answered more often than the policy allows its rounds to be.

    Args:
        guard: the guard's folder at this site.
        policy: of the site.
        plan: hash of the plan.
        asked: an order of a phase.

    Raises:
        PolicyError: it was; it stays in the site's log.
        UserError: a damaged file.
    """
    assert asked.phase is not None
    phase, task = asked.phase, asked.order.task
    most = policy.most_answers * (phase.rounds + 1)  # weights are scored before round 1, too
    found = _read(guard, plan).get(phase.name, {}).get(task, 0)
    if found >= most:
        raise PolicyError(
            f"most_answers: {task} of phase {phase.name} was answered {found} times under this "
            f"plan, {policy.most_answers} times for each of {phase.rounds} rounds and the start "
            "(write a larger number into policy.yaml to go on)"
        )


def note_answer(guard: Path, plan: str, asked: Asked) -> None:
    """Counts an answer that is about to leave."""
    assert asked.phase is not None
    counts = _read(guard, plan)
    tasks = counts.setdefault(asked.phase.name, {})
    tasks[asked.order.task] = tasks.get(asked.order.task, 0) + 1
    path = _path(guard, plan)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(path, json.dumps(counts))


def _path(guard: Path, plan: str) -> Path:
    return guard / FOLDER / f"{plan}.json"


def _read(guard: Path, plan: str) -> Counts:
    path = _path(guard, plan)
    try:
        told = kept_json(path)
        if told is None:
            return {}
        return {p: {t: int(n) for t, n in tasks.items()} for p, tasks in told.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError("answers", path, "restore the file", problem=damage(error)) from error
