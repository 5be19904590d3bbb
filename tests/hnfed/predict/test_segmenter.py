"""What a segmenter hands on: labels of the chosen organs, and doubts about those that it drew."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.data.geometry import Geometry
from core.plan.schema import Preprocess
from hnfed.predict.inference import Doubt
from hnfed.predict.segmenter import Segmenter

KNOWN = ("Brainstem", "Larynx", "Esophagus")


def test_what_was_not_drawn_is_not_doubtful() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1, 2, 3], labels[2, 2, 3] = 1, 2  # no voxel of the oesophagus on the CT's own grid
    doubts = [Doubt(organ, 3.0, 0.5) for organ in KNOWN]

    def draw(*_: Any) -> tuple[Any, list[Doubt]]:
        return labels, doubts

    segmenter = Segmenter(draw, KNOWN, ("Larynx", "Esophagus"), Preprocess(), "model")
    drawn, told = segmenter(np.zeros_like(labels), Geometry((4, 5, 6), (3.0, 2.0, 2.0)))
    assert (drawn == (labels == 2)).all()
    assert told == [doubts[1]]
