from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from core.archives.preprocess import coarse_lps
from core.archives.roi import body_mask
from core.data.geometry import Geometry
from hnfed.predict.posture import doubts_of, posture_of
from simulations.phantom.cases import SIGNATURES
from simulations.phantom.scan import make_case

Turn = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module", params=["nyu", "miccai"])
def head(request: pytest.FixtureRequest) -> np.ndarray:
    case = make_case(SIGNATURES[request.param], np.random.default_rng(3), (4.0, 3.0, 3.0))
    depth, height, width = case.image.shape
    return coarse_lps(case.image, Geometry((depth, height, width), case.spacing_mm))[0]


def doubts(image: np.ndarray) -> list[str]:
    posture = posture_of(image, body_mask(image))
    assert posture is not None
    return doubts_of(posture)


def test_a_sound_head_is_not_doubted(head: np.ndarray) -> None:
    assert doubts(head) == []
    assert doubts(head[len(head) // 3 :]) == [], "cut off at the neck"


@pytest.mark.parametrize(
    ("turn", "word"),
    [
        (lambda im: im[:, ::-1], "backwards"),
        (lambda im: im[:, ::-1, ::-1], "backwards"),
        (lambda im: im[::-1], "upside down"),
        (lambda im: im[::-1, :, ::-1], "upside down"),
        (lambda im: im[::3, ::3, ::3], "across"),
    ],
    ids=["face down", "turned by 180", "head down", "turned over", "small"],
)
def test_what_lies_as_no_patient_does(head: np.ndarray, turn: Turn, word: str) -> None:
    assert any(word in text for text in doubts(turn(head))), doubts(turn(head))


def test_a_head_without_air_is_judged_by_its_jaw() -> None:
    """Soft tissue in the form of a head, a skull, a jaw in front, and no airway."""
    z, y, x = np.ogrid[:60, :70, :60]
    image = np.full((60, 70, 60), -1000.0, dtype=np.float32)
    skull = ((x - 30) / 18) ** 2 + ((y - 35) / 23) ** 2 + (np.maximum(z - 38, 0) / 18) ** 2
    image[(skull < 1) & (z > 18)] = 40
    neck = np.broadcast_to(((x - 30) / 14) ** 2 + ((y - 38) / 15) ** 2 < 1, image.shape)
    image[neck & (z <= 20)] = 40
    image[(skull < 1) & (skull > 0.8) & (z > 30)] = 900
    jaw = np.abs(((x - 30) / 13) ** 2 + ((y - 27) / 12) ** 2 - 1) < 0.2
    image[np.broadcast_to(jaw & (y < 25), image.shape) & (z > 20) & (z < 27)] = 1100
    assert posture_of(image, body_mask(image)).face is None
    assert doubts(image) == []
    assert any("backwards" in text for text in doubts(image[:, ::-1]))


def test_air_alone_has_no_posture() -> None:
    image = np.full((10, 10, 10), -1000.0, dtype=np.float32)
    assert posture_of(image, body_mask(image)) is None
