"""Trained networks at work: from checkpoints to the label map of one CT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from core.archives.preprocess import prepare_image
from core.data.dataset import scale_image
from core.data.geometry import Geometry
from core.data.resample import largest_class, restore
from core.errors import UserError
from core.models.build import build
from core.models.stages import load_unique
from core.organs.vocabulary import one_sided
from core.plan.schema import Preprocess, Train
from core.training.memory import kept_heap, to_device
from core.training.optimisation import memory_advice, resolve_device
from core.training.probabilities import probabilities_of
from core.wire.checkpoint import load, require_described
from core.wire.described import input_of

DOUBTFUL = 0.6


@dataclass(frozen=True)
class Doubt:
    """A slice in which the models are not sure of an organ: z in patient mm, mean probability."""

    organ: str
    z_mm: float
    probability: float


def load_models(
    paths: Sequence[Path], device: str | torch.device
) -> tuple[list[nn.Module], list[dict[str, Any]]]:
    """Loads checkpoints for `predict_volume`: networks ready on the device, and their JSON.

    Raises:
        UserError: a checkpoint cannot be read or does not fit its own description, or the models
            cannot be averaged.
    """
    target = resolve_device(device)
    loaded = [load(path) for path in paths]
    for path, (_, meta) in zip(paths, loaded, strict=True):
        require_described(meta, path)
    metas = [meta for _, meta in loaded]
    common_preprocess(metas)
    models = [
        _network(path, state, meta, target)
        for path, (state, meta) in zip(paths, loaded, strict=True)
    ]
    return models, metas


def _network(
    path: Path, state: dict[str, Tensor], meta: Mapping[str, Any], device: torch.device
) -> nn.Module:
    try:
        organs, preprocess, settings = input_of(meta, str(path))
        model = build(settings, len(organs), preprocess.crop)
        load_unique(model, state)
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            "model",
            path,
            "use it with the hnfed version that wrote it",
            problem=f"weights and description do not fit: {str(error).splitlines()[0]}",
        ) from error
    return to_device(model, device, settings.channels_last).eval()


def predict_volume(
    models: Sequence[nn.Module],
    metas: Sequence[Mapping[str, Any]],
    image: npt.NDArray[Any],
    geometry: Geometry,
    device: str | torch.device,
) -> npt.NDArray[np.uint8]:
    """Segments one CT; of several models the probabilities are averaged.

    Args:
        models: networks, already on the device and in evaluation mode
            (`load_models`).
        metas: the JSON of their checkpoints; all must share organs and preprocessing.
        image: (Z, Y, X) in HU.
        geometry: grid of `image`.
        device: ``auto | cpu | cuda:N``.

    Returns:
        Label map (Z, Y, X) on the CT's grid: 0 background, i + 1 the organ at place i of the
        models.
    """
    return predict_doubted(models, metas, image, geometry, device)[0]


def predict_doubted(
    models: Sequence[nn.Module],
    metas: Sequence[Mapping[str, Any]],
    image: npt.NDArray[Any],
    geometry: Geometry,
    device: str | torch.device,
) -> tuple[npt.NDArray[np.uint8], list[Doubt]]:
    """`predict_volume`, and the slices of the crop in which the models are not sure.

    Args:
        models: as for `predict_volume`.
        metas: as for `predict_volume`.
        image: (Z, Y, X) in HU.
        geometry: grid of `image`.
        device: ``auto | cpu | cuda:N``.

    Returns:
        The label map, and the doubtful slices, by organ from inferior to superior.
    """
    target = resolve_device(device)
    settings = common_preprocess(metas)
    crop, crop_geometry = prepare_image(image, geometry, settings)
    with memory_advice(), kept_heap(target):
        scaled = scale_image(crop, settings.window_hu)
        sides = _averaged(metas[0])
        probabilities = probabilities_of(
            models, scaled, target, average_mirrored=sides, settings=_precision(metas)
        )
    doubts = doubtful_slices(probabilities, crop_geometry, metas[0]["organs"])
    return restore(probabilities, crop_geometry, geometry), doubts


def doubtful_slices(
    probabilities: Tensor, crop_geometry: Geometry, organs: Sequence[str]
) -> list[Doubt]:
    """Slices in which an organ's own voxels have a mean probability below `DOUBTFUL`.

    Args:
        probabilities: (1 + C, Z, Y, X), background first.
        crop_geometry: grid of the crop, along the patient's axes.
        organs: the C organs.
    """
    labels = largest_class(probabilities)
    found = []
    for i, organ in enumerate(organs, start=1):
        inside = labels == i
        count = inside.sum(dim=(1, 2))
        total = (probabilities[i] * inside).sum(dim=(1, 2))
        for level in torch.nonzero(count).flatten().tolist():
            mean = float(total[level] / count[level])
            if mean < DOUBTFUL:
                z = crop_geometry.origin_mm[2] + level * crop_geometry.spacing_mm[0]
                found.append(Doubt(organ, z, mean))
    return found


def select_labels(
    labels: npt.NDArray[np.uint8], organs: Sequence[str], chosen: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """Renumbers a label map of `organs` to 1, 2, ... of `chosen`; the others become background."""
    table = np.zeros(len(organs) + 1, dtype=np.uint8)
    for value, organ in enumerate(chosen, start=1):
        table[organs.index(organ) + 1] = value
    selected: npt.NDArray[np.uint8] = table[labels]
    return selected


def common_preprocess(metas: Sequence[Mapping[str, Any]]) -> Preprocess:
    """The preprocessing that all models share.

    Raises:
        UserError: models differ in it, in their organs or in averaging with the mirrored CT, or a
            description is not complete.
    """
    first = metas[0]
    averaged = _averaged(first)
    for other in metas[1:]:
        for key in ("organs", "preprocess"):
            if other[key] != first[key]:
                raise _not_together(key, first[key], other[key])
        if _averaged(other) != averaged:
            raise _not_together("average_mirrored", bool(averaged), not averaged)
    return input_of(first, "--model")[1]


def _averaged(meta: Mapping[str, Any]) -> Sequence[str]:
    """The organs of a model that averages with the mirrored CT; () of one that does not."""
    if not meta.get("average_mirrored"):
        return ()
    organs: list[str] = meta["organs"]
    if alone := one_sided(organs):
        raise UserError(
            "--model",
            f"average_mirrored of {', '.join(alone)}",
            "use the JSON that hnfed wrote with the weights",
            problem="the model knows one side only",
        )
    return organs


def _precision(metas: Sequence[Mapping[str, Any]]) -> Train:
    """The `amp` that all models were validated with; float32 where they differ or do not say."""
    named = {meta.get("amp", "off") for meta in metas}
    return Train(amp=named.pop()) if len(named) == 1 else Train()


def _not_together(key: str, one: object, other: object) -> UserError:
    return UserError(
        "--model",
        f"{key} {one} and {other}",
        "average only models of the same organs (in one order), preprocessing and "
        "phases.average_mirrored",
    )
