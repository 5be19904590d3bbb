"""What may leave a site: an allow-list of names, types and ranges.

Text is letters, digits and a few signs, never prose. What is not on the list stops the reply.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from core.metrics.scores import MEASURES
from core.plan.schema import LOSSES, Phase, Plan
from core.training.optimisation import NonFiniteError
from core.wire.messages import CODES, LARGEST, LEFT_OUT

TEXT = re.compile(r"[A-Za-z0-9_.+-]{0,128}")
NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")
HASH = re.compile(r"[0-9a-f]{16,64}")
HASHES = ("fingerprint", "split_hash", "receipt")
VERSION = re.compile(r"version\.[A-Za-z0-9_]{1,20}")
# The allow-list, with what each name means to the person who reads a receipt.
CONFIG = {
    "site": "this site's name in the federation",
    "run": "id of the run",
    "phase": "of the plan",
    "round": "of the phase; 0 before the first",
    "code": "how it went, a word of a fixed list",
    "stopped": "whether this site has ended its training",
    "best_round": "round of this site's own best weights",
    "fingerprint": "of the code that ran",
    "split_hash": "of the split, under a secret of this site",
    "receipt": "SHA-256 of this reply's receipt",
}
NUMBERS = {
    "cases": "trained on; before the first round for training, validation and test",
    "steps": "of the optimiser",
    "skipped": "steps left out for numbers that were none",
    "seconds": "of computing",
    "startup": "seconds that the process took to begin",
    "annotated": "by organ, how many training cases annotate it",
    "annotated_val": "by organ, how many validation cases annotate it; it never leaves the guard",
    "annotated_test": "by organ, how many test cases annotate it; it never leaves the guard",
    "loss": "mean over the steps: total, and each term",
    "voxels": "by organ, voxels of it in the training crops",
    "totals": "by organ, voxels of the crops that annotate it",
}
SUMS = {
    "n": "by organ, how many cases",
    "detected": "by organ, how many cases in which it was found",
    **{m.field: f"by organ, {m.words}" for m in MEASURES.values()},
}
NUMBERS |= {
    f"{split}.{name}": f"{text} ({words})"
    for split, words in (("val", "validation"), ("test", "test"))
    for name, text in SUMS.items()
}
PER_ORGAN = ("annotated", "voxels", "totals", "annotated_val", "annotated_test")  # of a query
# What the guard itself adds under secure aggregation, where all else is emptied.
MASKED = {
    "hello": "this site's key of the run, and which organs it has cases of, under its signature",
    "signed": "this site's signature under what it masked",
    "masked": "counts, losses, scores under masks: only their sum over the sites can be read",
}
LONGEST = 256


class OutboxError(RuntimeError):
    """Something was about to leave that is not on the list; the text stays in the site's log."""


def require_allowed(
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> None:
    """Requires that a reply holds nothing but what may leave.

    Args:
        config: text, whole numbers and truth values.
        metrics: numbers and lists of numbers.
        state: tensors.
        expected: the tensors that may leave in this phase: their shapes and types count.

    Raises:
        OutboxError: a name, type, length or range that is not on the list.
        NonFiniteError: a tensor holds NaN or infinity, or a loss is no number of a usual size.
    """
    for key, value in config.items():
        if key not in CONFIG and not VERSION.fullmatch(key):
            raise OutboxError(f"config: {key!r}")
        if key == "code" and not (isinstance(value, str) and value in CODES):
            raise OutboxError(f"code: {value!r}")
        allowed = HASH if key in HASHES else TEXT
        text = isinstance(value, str) and allowed.fullmatch(value)
        if not text and not (isinstance(value, bool | int) and abs(value) <= LARGEST):
            raise OutboxError(f"config: value of {key}")
    for key, value in metrics.items():
        if key not in NUMBERS and not LEFT_OUT.fullmatch(key):
            raise OutboxError(f"metrics: {key!r}")
        listed: list[object] = value if isinstance(value, list) else [value]
        if key == "loss" and any(isinstance(v, float) and not _is_number(v) for v in listed):
            raise NonFiniteError("loss", "not finite, or absurdly large", "lower train.lr")
        if len(listed) > LONGEST or not all(_is_number(v) for v in listed):
            raise OutboxError(f"metrics: value of {key}")
    for name, tensor in state.items():
        known = expected.get(name)
        if known is None or not NAME.fullmatch(name):
            raise OutboxError(f"tensor: {name!r}")
        if tensor.shape != known.shape or tensor.dtype != known.dtype:
            raise OutboxError(f"tensor: shape or type of {name}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError("weights", name, "lower train.lr")


def require_form(kind: str, plan: Plan, phase: Phase | None, metrics: Mapping[str, Any]) -> None:
    """Requires the numbers that a reply of this kind has, and as many as it has.

    What is on the list elsewhere, or longer than there are organs, would be room for other things.

    Args:
        kind: query, train or evaluate.
        plan: of the run.
        phase: of the order; None in a query.
        metrics: numbers and lists of numbers.

    Raises:
        OutboxError: another one, or another length.
    """
    if phase is None:
        lengths = {"cases": 3} | dict.fromkeys(PER_ORGAN, len(plan.organ_names))
        scalars: tuple[str, ...] = ()
    else:
        sums = [f"{split}.{name}" for split in ("val", "test") for name in SUMS]
        lengths = dict.fromkeys(("annotated", *sums), len(phase.organs))
        lengths["loss"] = len(LOSSES)
        scalars = ("cases", "steps", "skipped", "seconds", "startup")
    for key, value in metrics.items():
        if phase is None and LEFT_OUT.fullmatch(key):
            fits = not isinstance(value, list)
        elif key in lengths:
            fits = isinstance(value, list) and len(value) == lengths[key]
        else:
            fits = key in scalars and not isinstance(value, list)
        if not fits:
            raise OutboxError(f"metrics: {key!r} of a {kind}")


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and abs(value) <= LARGEST
