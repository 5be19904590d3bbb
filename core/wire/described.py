"""What the JSON beside weights says, checked as a plan is: it may come from anywhere.

A checkpoint, a bundle or the weights of another site are files from elsewhere. Names, the network
and the preprocessing in them are parsed before a path is made, a network built or a screen written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from core.errors import UserError
from core.identifiers import (
    OrganName,
    digest,
    organ_names,
    phase_name,
    round_number,
    run_id,
    site_name,
    tensor_name,
    word,
)
from core.models.allowed import require_allowed
from core.plan.load import require_plain, typed
from core.plan.ranges import require_in_range
from core.plan.schema import Model, Preprocess
from core.plan.validate import CHOICES, MAX_ORGANS

REQUIRED = ("organs", "preprocess", "model")
MOST_TENSORS = 20_000


def require_sound(meta: Mapping[str, Any], field: str) -> None:
    """Requires that everything which the JSON names is a name, and every setting one of a plan.

    Args:
        meta: the JSON's content, whatever of it there is.
        field: which file, for the error.

    Raises:
        UserError: names the key.
    """
    require_plain(meta, field)
    parse: dict[str, Callable[[object, str], object]] = {
        "run": run_id,
        "phase": phase_name,
        "site": site_name,
        "round": round_number,
        "organs": organ_names,
        "plan_hash": digest,
        "sha256": digest,
        "average_mirrored": _truth,
        "amp": _amp,
        "trained_on": _digests,
        "splits": _words,
        "versions": _words,
        "preprocess": _preprocess,
        "model": _model,
    }
    for key, check in parse.items():
        if key in meta:
            check(meta[key], f"{field}: {key}")


def input_of(
    meta: Mapping[str, Any], field: str = "model"
) -> tuple[tuple[OrganName, ...], Preprocess, Model]:
    """How to build and feed the network: its organs, preprocessing and settings.

    Raises:
        UserError: one is missing, or is none of a plan.
    """
    missing = [key for key in REQUIRED if key not in meta]
    if missing:
        raise UserError(
            field,
            ", ".join(missing),
            "use a complete checkpoint such as checkpoints/PHASE/best.safetensors",
            problem=f"its JSON lacks {', '.join(missing)}",
        )
    organs = organ_names(meta["organs"], f"{field}: organs")
    if len(organs) > MAX_ORGANS:
        remedy = f"use a model of at most {MAX_ORGANS} organs"
        raise UserError(f"{field}: organs", len(organs), remedy)
    return (
        organs,
        _preprocess(meta["preprocess"], f"{field}: preprocess"),
        _model(meta["model"], f"{field}: model"),
    )


def require_tensors(names: Iterable[str], field: str) -> None:
    """Requires parameters' names.

    Raises:
        UserError: one that is none, or too many.
    """
    listed = [tensor_name(name, f"{field}: tensor") for name in names]
    if len(listed) > MOST_TENSORS:
        raise UserError(field, f"{len(listed)} tensors", f"use weights of at most {MOST_TENSORS}")


def _preprocess(value: object, field: str) -> Preprocess:
    given = value if isinstance(value, Mapping) else {}
    missing = [f.name for f in dataclasses.fields(Preprocess) if f.name not in given]
    if missing:
        remedy = "use a complete checkpoint"
        raise UserError(field, value, remedy, problem=f"lacks {', '.join(missing)}")
    settings = typed(Preprocess, value, field)
    require_in_range(settings, "preprocess", field)
    low, high = [*settings.window_hu, 0.0, 0.0][:2]
    lengths = len(settings.spacing_mm), len(settings.crop), len(settings.window_hu)
    if lengths != (3, 3, 2) or low >= high:
        remedy = "give spacing_mm and crop for z, y, x, and a window [low, high]"
        raise UserError(field, given, remedy)
    return settings


def _model(value: object, field: str) -> Model:
    settings = typed(Model, value, field)
    require_in_range(settings, "model", field)
    require_allowed(settings.name, settings.args)
    return settings


def _truth(value: object, field: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(field, value, "use the JSON that hnfed wrote with the weights")
    return value


def _amp(value: object, field: str) -> None:
    if value not in (known := CHOICES["train.amp"]):
        raise UserError(field, value, f"use one of {', '.join(known)}")


def _digests(value: object, field: str) -> None:
    if not isinstance(value, list):
        raise UserError(field, value, "use the JSON that hnfed wrote with the weights")
    for one in value:
        digest(one, field)


def _words(value: object, field: str) -> None:
    if not isinstance(value, Mapping):
        raise UserError(field, value, "use the JSON that hnfed wrote with the weights")
    for name, text in value.items():
        word(name, field)
        word(text, field)
