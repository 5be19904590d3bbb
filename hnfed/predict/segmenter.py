"""The models of a command line, loaded and ready for one CT after another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.archives.duplicates import trained_on
from core.data.geometry import Geometry
from core.errors import UserError, suggestion
from core.plan.load import shipped_models
from core.plan.schema import Preprocess
from core.text import shown
from hnfed.predict.inference import (
    Doubt,
    common_preprocess,
    load_models,
    predict_doubted,
    select_labels,
)
from hnfed.predict.model_files import resolve_model
from hnfed.predict.shipped import path_of


@dataclass(frozen=True)
class Segmenter:
    """The models of a command line at work.

    Attributes:
        draw: (image, geometry) -> labels of all organs of the models, and doubtful slices.
        known: organs of the models.
        organs: those chosen.
        settings: preprocessing of the models.
        model: which models, in words.
        trained_on: digests of the CTs that they were trained or chosen on, where they say.
    """

    draw: Callable[..., tuple[npt.NDArray[np.uint8], list[Doubt]]]
    known: tuple[str, ...]
    organs: tuple[str, ...]
    settings: Preprocess
    model: str
    trained_on: frozenset[str] = frozenset()

    def __call__(
        self, image: npt.NDArray[Any], geometry: Geometry
    ) -> tuple[npt.NDArray[np.uint8], list[Doubt]]:
        """Labels (Z, Y, X) of the chosen organs, 1, 2 ..., and where they are doubtful.

        The network's grid may hold a voxel of an organ that the CT's own grid misses: such an
        organ was not found, and nothing of it is doubtful.
        """
        labels, doubts = self.draw(image, geometry)
        labels = select_labels(labels, self.known, self.organs)
        doubted = {doubt.organ for doubt in doubts}
        found = {o for i, o in enumerate(self.organs, start=1) if o in doubted and i in labels}
        return labels, [doubt for doubt in doubts if doubt.organ in found]


@dataclass(frozen=True)
class Choice:
    """Which models draw which organs, and where.

    Attributes:
        models: run folders, checkpoints, model bundles or names of models that ship;
            probabilities of several are averaged.
        phase: of a run folder; None for the last one.
        site: whose own weights; None for the shared ones.
        organs: only these; None for all.
        device: auto | cpu | cuda:N.
    """

    models: Sequence[str]
    phase: str | None = None
    site: str | None = None
    organs: Sequence[str] | None = None
    device: str = "auto"


def load_segmenter(choice: Choice) -> Segmenter:
    """Loads the models that were chosen.

    Raises:
        UserError: a model cannot be loaded, or does not know an organ asked for.
    """
    paths = [resolve_model(path_of(m), choice.phase, choice.site) for m in choice.models]
    models, metas = load_models(paths, choice.device)
    for path, meta in zip(paths, metas, strict=True):
        print(
            f"model: {shown(path)} "
            f"(phase {meta.get('phase', '?')}, round {meta.get('round', '?')})",
            file=sys.stderr,
        )
    known = tuple(metas[0]["organs"])
    shipped = {path: f"{name} " for name, path in shipped_models().items()}
    described = [
        f"{shipped.get(path, '')}phase {meta.get('phase', '?')} round {meta.get('round', '?')} "
        f"weights {str(meta.get('sha256', ''))[:12]}"
        for path, meta in zip(paths, metas, strict=True)
    ]

    def draw(
        image: npt.NDArray[Any], geometry: Geometry
    ) -> tuple[npt.NDArray[np.uint8], list[Doubt]]:
        return predict_doubted(models, metas, image, geometry, choice.device)

    organs = chosen_organs(choice.organs, known)
    seen = frozenset().union(*(trained_on(meta) for meta in metas))
    return Segmenter(draw, known, organs, common_preprocess(metas), "; ".join(described), seen)


def organ_list(given: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of ``--organs``, whether apart or joined by commas; None where none was given."""
    if given is None:
        return None
    return tuple(dict.fromkeys(name for item in given for name in item.split(",") if name))


def chosen_organs(given: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The organs of ``--organs`` in the order of `known`; all where nothing was asked for."""
    asked = organ_list(given)
    for name in asked or ():
        if name not in known:
            remedy = f"{suggestion(name, known)}choose of {', '.join(known)}"
            raise UserError("--organs", name, remedy)
    return tuple(known) if asked is None else tuple(o for o in known if o in asked)
