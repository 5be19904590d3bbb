"""How much what runs leave on the site's disk may come to: weights that stay, tests, pictures.

Nothing of it is removed here: it is what the site trained for itself. What would outgrow the limit
is refused before anything is trained.
"""

from __future__ import annotations

from pathlib import Path

from core.data.quota import GB, bytes_below
from hnfed.guard.order import Asked
from hnfed.guard.policy import Policy, PolicyError, parameters_of

OTHERS = ("base", "guard")  # of the state folder: bounded by the site file, and the guard's own
# A number that stays is 4 bytes, of the weight, two moments and an average, in five rounds (the
# last two, the best, two that the order names); the best weights stand once more, and once while
# they are written.
NUMBER_BYTES = 4 * (4 * 5 + 2)


def require_room(state: Path, policy: Policy, asked: Asked) -> None:
    """Requires that what a phase may come to keep here fits beside what is kept already.

    Args:
        state: the site's state folder.
        policy: of the site.
        asked: an order to train.

    Raises:
        PolicyError: it does not; it stays in the site's log.
    """
    assert asked.phase is not None
    phase, need = asked.phase, 0
    if phase.share == "none" or phase.keep or phase.ditto is not None:
        need = NUMBER_BYTES * parameters_of(asked.plan, phase)
    runs = [f for f in state.iterdir() if f.is_dir() and f.name not in OTHERS]
    used = sum(map(bytes_below, runs)) - bytes_below(state / asked.run / phase.name)
    if used + need > policy.runs_gb * GB:
        raise PolicyError(
            f"runs_gb: {policy.runs_gb:g}, the runs in {state} hold {used / GB:.2f} GB, and phase "
            f"{phase.name} may come to keep {need / GB:.2f} GB more (delete folders of runs that "
            "are over, or write a larger number into policy.yaml)"
        )
