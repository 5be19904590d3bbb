"""Models that come with hnfed: found by name, described for people, and made from a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.archives.duplicates import TRAINED_ON
from core.errors import UserError, suggestion
from core.plan.load import shipped_models
from core.wire.checkpoint import load, load_meta, save
from hnfed.predict.model_files import described


def path_of(model: str) -> str | Path:
    """The file of a model that ships; any other MODEL as it was given.

    Raises:
        UserError: the files are not those that were shipped, or MODEL is neither a name nor a path.
    """
    known = shipped_models()
    if model not in known:
        if Path(model).exists() or Path(model).name != model:
            return model
        remedy = suggestion(model, known)
        remedy += "give a run folder, a checkpoint, a model bundle, or a model that ships: "
        problem = "no such folder or file, and no model of this name comes with hnfed"
        raise UserError("--model", model, remedy + (", ".join(known) or "none"), problem=problem)
    try:
        load(known[model])
    except UserError as error:
        remedy = f"install hnfed again; models that ship: {', '.join(known)}"
        raise UserError("--model", model, remedy, problem=error.problem) from error
    return known[model]


def listed() -> list[dict[str, Any]]:
    """What is known of each model that ships, one mapping a model."""
    found = []
    for name, path in shipped_models().items():
        meta = load_meta(path)
        found.append(
            {
                "name": name,
                "organs": list(meta["organs"]),
                "bytes": path.stat().st_size,
                "sha256": str(meta["sha256"]),
                "spacing_mm": list(meta["preprocess"]["spacing_mm"]),
                "data": str(meta.get("data", "")),
                "licence": str(meta.get("licence", "")),
                "test": list(meta.get("test", [])),
                "card": str(path.with_suffix(".md")),
            }
        )
    return found


def make(
    source: Path, folder: Path, name: str, digests: Sequence[str], words: Mapping[str, Any]
) -> Path:
    """Writes a model that ships: weights of 16 bits and what `listed` shows.

    Args:
        source: checkpoint of a run.
        folder: where it goes, `core.plan.load.MODELS` of the configurations.
        name: under which it ships.
        digests: of the CTs that it was trained and chosen on.
        words: ``data``, ``licence``, ``made_by`` and ``test`` (rows of scores).

    Returns:
        The weights' file.

    Raises:
        UserError: the checkpoint cannot be read, or a number does not fit 16 bits.
    """
    state, meta = load(source)
    halves: dict[str, Tensor] = {n: t.half() for n, t in state.items()}
    if not all(bool(torch.isfinite(t).all()) for t in halves.values()):
        remedy = "train it anew with a smaller lr, or ship 32 bits"
        raise UserError("model", source, remedy, problem="a weight above 65,504 does not fit")
    told = described(meta) | dict(words)
    save(folder, name, halves, {**told, TRAINED_ON: sorted(set(digests))})
    return folder / f"{name}.safetensors"
