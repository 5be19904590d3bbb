from __future__ import annotations

import numpy as np
import pytest

from core.data.volume import Geometry
from core.errors import CaseError
from core.plan import Preprocess
from core.suitable import implausible, require_suitable

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


def test_contours_of_impossible_sizes_are_told() -> None:
    assert not implausible({"Brainstem": 25.0, "Parotid_L": 0.0})
    assert not implausible({"Tooth_12": 0.0})
    assert not implausible({})
    for volumes in ({"Brainstem": 0.0}, {"Brainstem": 900.0, "Parotid_L": 0.2}):
        assert "no organ of a plausible size" in implausible(volumes)
