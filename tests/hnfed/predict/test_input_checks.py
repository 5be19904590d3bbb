from __future__ import annotations

import numpy as np
import pytest

from core.archives.images.volume import Volume
from core.data.geometry import Geometry
from core.errors import CaseError
from core.plan.schema import Preprocess
from hnfed.predict.input_checks import doubts_by_organ, implausible, require_suitable

SETTINGS = Preprocess([3.0, 2.0, 2.0], [64, 64, 64])


def body(widths_mm: list[float], slice_mm: float = 20.0) -> tuple[np.ndarray, Geometry]:
    """Slabs of soft tissue from the feet up, 160 mm deep and so wide."""
    geometry = Geometry((len(widths_mm) * 5, 60, 130), (slice_mm / 5, 4.0, 4.0))
    image = np.full(geometry.size, -1000, dtype=np.int16)
    for i, width in enumerate(widths_mm):
        half = round(width / 8)
        image[5 * i : 5 * i + 5, 10:50, 65 - half : 65 + half] = 30
    return image, geometry


def test_a_head_on_shoulders_is_taken() -> None:
    require_suitable(*body([440, 440, 130, 130, 150, 150, 150]), SETTINGS)
    require_suitable(*body([440, 440, 440, 440, 130, 130]), SETTINGS)


@pytest.mark.parametrize("widths", [[440] * 7, [360, 360, 360, 360, 360, 360, 120]])
def test_a_chest_is_refused(widths: list[float]) -> None:
    with pytest.raises(CaseError, match="no head") as error:
        require_suitable(*body(widths), SETTINGS)
    assert error.value.code == "E_NOT_HEAD_NECK"


def test_coarse_voxels_are_refused_along_the_patients_axes() -> None:
    image, geometry = body([130] * 7)
    require_suitable(image, geometry, SETTINGS)
    turned = Geometry(
        (130, 35, 60), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0), (0, 0, 1.0, 1.0, 0, 0, 0, 1.0, 0)
    )
    require_suitable(image.transpose(2, 0, 1), turned, SETTINGS)
    coarse, grid = body([130] * 7, slice_mm=35.0)
    with pytest.raises(CaseError, match=r"7 x 4 x 4 mm .* 3 x 2 x 2 mm") as error:
        require_suitable(coarse, grid, SETTINGS)
    assert error.value.code == "E_SPACING"


def test_nothing_but_air_is_refused() -> None:
    with pytest.raises(CaseError) as error:
        require_suitable(*body([0] * 7), SETTINGS)
    assert error.value.code == "E_NO_BODY"


def test_what_is_forced_is_taken_with_its_doubts() -> None:
    (doubt,) = require_suitable(*body([440] * 7), SETTINGS, force=True)
    assert "no head" in doubt
    with pytest.raises(CaseError):
        require_suitable(*body([0] * 7), SETTINGS, force=True)


def boxes(**sides: tuple[int, int]) -> Volume:
    """Soft tissue of 4 mm voxels; by organ, first column and side of a cube in voxels."""
    geometry = Geometry((30, 30, 60), (4.0, 4.0, 4.0))
    masks = {}
    for organ, (first, side) in sides.items():
        mask = np.zeros(geometry.size, dtype=bool)
        mask[5 : 5 + side, 5 : 5 + side, first : first + side] = True
        masks[organ] = mask
    return Volume("p", np.full(geometry.size, 40, dtype=np.int16), geometry, masks)


def test_contours_of_impossible_sizes_are_told() -> None:
    small = boxes(Brainstem=(20, 20), Parotid_L=(45, 1))
    doubts = doubts_by_organ(small)
    assert "at most 45 mL are plausible" in doubts["Brainstem"]
    assert "mL are plausible" in doubts["Parotid_L"]
    assert "no organ of a plausible size" in implausible(doubts, list(small.masks))
    assert implausible({}, []), "nothing was found at all"


def test_one_organ_of_a_plausible_size_is_enough() -> None:
    volume = boxes(Brainstem=(28, 8), Parotid_L=(45, 1))
    doubts = doubts_by_organ(volume)
    assert set(doubts) == {"Parotid_L"}
    assert implausible(doubts, list(volume.masks)) == ""


def test_organs_on_the_wrong_side_are_told() -> None:
    volume = boxes(Parotid_L=(10, 7), Parotid_R=(40, 7))
    doubts = doubts_by_organ(volume)
    assert all("other side" in text for text in doubts.values())
    assert implausible(doubts, list(volume.masks))


def test_an_organ_of_unpublished_size_is_not_judged() -> None:
    volume = boxes(Tooth_12=(20, 20))
    assert implausible(doubts_by_organ(volume), list(volume.masks)) == ""
