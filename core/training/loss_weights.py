"""How the weights of loss terms and of organs move while a phase trains (paper, section 4.1.1).

The paper starts from cross entropy, which finds every organ at once, and moves towards the focal
loss, which sharpens what is found; organs that validate badly gain weight. The first is a pure
function of the plan and the round, the second of the plan and the validation Dice so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.data.cached_case import Entry
from core.plan.schema import Loss, Weighting
from core.training.losses import class_weights


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


def organ_factors(
    settings: Weighting, organs: Sequence[str], dice: Mapping[str, float], before: Sequence[float]
) -> list[float]:
    """Returns the factor on each organ's static weight after one more validation.

    ``static``: 1. ``dice``: with e_o = 1 - Dice_o, raised where below max(e) / bound, and e scaled
    to mean 1, the new factors are smoothing * before + (1 - smoothing) * e. So the worse organ
    weighs more, the mean stays 1, and no organ weighs more than `bound` times another.

    Args:
        settings: the plan's `weighting`.
        organs: organs of the phase.
        dice: mean validation Dice in [0, 1] by organ; one that is absent counts as their mean.
        before: factors so far, in the order of `organs`; empty at the start (all 1).

    Returns:
        One factor > 0 an organ, in the order of `organs`.
    """
    last = list(before) or [1.0] * len(organs)
    known = [1.0 - dice[organ] for organ in organs if organ in dice]
    if settings.by == "static" or not known or max(known) <= 0:
        return last
    average = sum(known) / len(known)
    least = max(known) / settings.bound
    error = [max(least, 1.0 - dice[o] if o in dice else average) for o in organs]
    mean = sum(error) / len(error)
    keep = settings.smoothing
    return [keep * w + (1.0 - keep) * e / mean for w, e in zip(last, error, strict=True)]


def organ_weights(
    settings: Weighting, organs: Sequence[str], factors: Sequence[float]
) -> list[float]:
    """Returns the weight of each organ in the loss: the static one times its factor, if any."""
    moved = list(factors) or [1.0] * len(organs)
    return [settings.organs.get(o, 1.0) * f for o, f in zip(organs, moved, strict=True)]


def voxel_counts(
    entries: Sequence[Entry], organs: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Voxels of each organ, and of the crops of the cases that annotate it."""
    voxels = [float(sum(e.voxels.get(o, 0) for e in entries)) for o in organs]
    totals = [float(sum(e.crop_voxels for e in entries if o in e.annotated)) for o in organs]
    return voxels, totals


def frequency_weights(
    voxels: Sequence[float], totals: Sequence[float], settings: Loss
) -> list[float] | None:
    """Class weights, background first, from how often each organ occurs where it is annotated.

    Args:
        voxels: of each organ.
        totals: voxels among which they were counted.
        settings: the plan's `loss`.

    Returns:
        None where the loss counts no classes, or there are none.
    """
    if not settings.counts_classes or not voxels:
        return None
    shares = [v / t if t else 0.0 for v, t in zip(voxels, totals, strict=True)]
    counts = [max(1.0 - sum(shares), 0.0), *shares]
    return class_weights([c * 1e9 for c in counts], settings.class_weight)
