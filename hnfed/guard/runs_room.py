"""How much what runs leave on the site's disk may come to: weights that stay, tests, pictures.

Nothing of it is removed here: it is what the site trained for itself. What would outgrow the limit
is refused before anything is trained, scored or prepared: each new run may leave a little.
"""

from __future__ import annotations

from pathlib import Path

from core.data.quota import GB, bytes_below
from hnfed.guard.kept_rounds import stays
from hnfed.guard.order import Asked
from hnfed.guard.policy import Policy, PolicyError, parameters_of

OTHERS = ("base", "guard")  # of the state folder: bounded by the site file, and the guard's own
# A number that stays is 4 bytes, of the weight, two moments and an average, in five rounds (the
# last two, the best, two that the order names) and, until the oldest goes, a sixth; the best
# weights stand once more.
NUMBER_BYTES = 4 * (4 * 6 + 1)


def require_room(state: Path, policy: Policy, asked: Asked) -> None:
    """Requires that what an order may come to leave here fits beside what is kept already.

    Args:
        state: the site's state folder.
        policy: of the site.
        asked: a query, or an order of a phase: one to train may leave weights.

    Raises:
        PolicyError: it does not; it stays in the site's log.
    """
    phase, need, own = asked.phase, 0, 0
    if phase is not None and asked.kind == "train":
        own = bytes_below(state / asked.run / phase.name)
        need = own
        if stays(phase):
            need = max(own, NUMBER_BYTES * parameters_of(asked.plan, phase))
    runs = [f for f in state.iterdir() if f.is_dir() and f.name not in OTHERS]
    used = sum(map(bytes_below, runs)) - own
    if used + need > policy.runs_gb * GB:
        raise PolicyError(
            f"runs_gb: {policy.runs_gb:g}, the runs in {state} hold {used / GB:.2f} GB, and "
            f"{f'phase {phase.name}' if phase else 'a query'} may come to keep {need / GB:.2f} GB "
            "more (delete folders of runs that are over, or write a larger number into policy.yaml)"
        )
