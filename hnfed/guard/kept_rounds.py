"""How far a site has come in a phase whose weights stay: no order goes back behind that.

A server that means well repeats the last round, or goes on from the last one whose reply it has
got; a resumed one is a reply behind. It never sends an earlier round, nor one that builds on less
than it has counted on before: what the site has trained since would be written over.
"""

from __future__ import annotations

from pathlib import Path

from core.plan.schema import Phase
from core.wire.round_checkpoints import RoundStore
from hnfed.guard.order import Asked, OrderError
from hnfed.guard.pins import Pin


def stays(phase: Phase) -> bool:
    """Whether a phase leaves weights at the site."""
    return phase.best_at_site or phase.ditto is not None


def require_onward(state: Path, pin: Pin, asked: Asked) -> None:
    """Requires that an order to train takes back nothing that is kept here.

    Args:
        state: the site's state folder.
        pin: of the run.
        asked: an order of a phase.

    Raises:
        OrderError: an earlier round than the last one here, or one that builds on less.
    """
    phase, told = asked.phase, asked.order
    assert phase is not None
    if asked.kind != "train" or not stays(phase):
        return
    last, base = pin.trained.get(phase.name, (0, 0))
    last = max([last, *RoundStore(state / asked.run / phase.name / "rounds").rounds()])
    if told.round < last or told.base_round < base:
        raise OrderError(
            f"phase {phase.name}: round {told.round} upon round {told.base_round} would take back "
            f"what was trained here: it has come to round {last}, upon round {base} or a later "
            "one; resume the run where it was, or let the coordinator begin a new one"
        )


def with_trained(pin: Pin, asked: Asked) -> dict[str, tuple[int, int]]:
    """`Pin.trained` after an answer to an order of a phase: its round, and the one it built on."""
    assert asked.phase is not None
    made = dict(pin.trained)
    if asked.kind == "train" and stays(asked.phase):
        made[asked.phase.name] = asked.order.round, asked.order.base_round
    return made
