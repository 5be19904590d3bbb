"""How the weight of the loss terms moves while a phase trains (paper, section 4.1.1).

The paper starts from cross entropy, which finds every organ at once, and moves towards the focal
loss, which sharpens what is found. Here that is a pure function of the plan and the round, so every
site and every reader of the plan knows the weights without being told.
"""

from __future__ import annotations

from core.plan import Weighting


def term_factors(settings: Weighting, round_number: int, rounds: int) -> dict[str, float]:
    """Returns the factor on the plan's weight of each loss term in one round.

    ``static``: none. ``shift``: with t = (round - 1) / rounds and s = min(1, t / shift_end), cross
    entropy is scaled by 1 - s and the focal loss by s; the Dice terms keep their weight.

    Args:
        settings: the plan's `weighting`.
        round_number: the round within its phase, from 1.
        rounds: rounds of the phase.

    Returns:
        Term name -> factor >= 0; a term that is not named keeps its weight.
    """
    if settings.terms == "static":
        return {}
    progress = (round_number - 1) / rounds
    shifted = min(1.0, progress / settings.shift_end)
    return {"ce": 1.0 - shifted, "focal": shifted}
