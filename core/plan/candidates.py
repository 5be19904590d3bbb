"""What a site may use after a shared phase, as plan data: one candidate becomes one phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.plan.schema import Phase

KINDS = ("global", "local", "fine-tuned", "frozen")


def expand(phases: Sequence[Phase]) -> list[tuple[int, Phase]]:
    """Replaces every phase that lists `candidates` by a phase for each of them.

    ``local`` becomes NAME-local (from scratch), ``fine-tuned`` NAME-fine-tuned (nothing frozen) and
    ``frozen`` NAME-frozen (the phase's own `freeze`, else the encoder). They take everything else
    from the phase and none opens a test case. ``global`` needs no training and becomes no phase.

    Args:
        phases: of a plan; those without candidates come back as they are.

    Returns:
        (index of the phase that it comes from, phase), in order. Expanding again changes nothing.
    """
    return [(i, made) for i, phase in enumerate(phases) for made in _of_phase(phase)]


def _of_phase(phase: Phase) -> list[Phase]:
    if not phase.candidates:
        return [phase]
    own = phase.freeze if phase.freeze not in ("none", []) else "encoder"
    alone = replace(phase, candidates=[], test=False)
    made = {
        "local": replace(alone, init="scratch", head_init="random", freeze="none", thaw={}),
        "fine-tuned": replace(alone, freeze="none", thaw={}),
        "frozen": replace(alone, freeze=own),
    }
    return [
        replace(made[kind], name=f"{phase.name}-{kind}")
        for kind in phase.candidates
        if kind in made
    ]
