from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from core.archives.roi import Roi, body_mask, find_roi
from core.errors import CaseError
from core.plan.schema import Preprocess

SPACING = (4.0, 3.0, 3.0)
TOP_MM, HEAD_Y_MM, HEAD_X_MM = 340.0, 130.0, 150.0


def patient(
    *,
    shoulders: bool = True,
    couch: bool = False,
    top_mm: float = TOP_MM + 24,
    shift_mm: tuple[float, float] = (0.0, 0.0),
    spacing: tuple[float, float, float] = SPACING,
) -> npt.NDArray[np.int16]:
    """Head, neck and shoulders; the vertex at `TOP_MM`, the CT up to `top_mm`."""
    size = [round(top_mm / spacing[0]), round(300 / spacing[1]), round(300 / spacing[2])]
    z, y, x = (np.arange(n) * s for n, s in zip(size, spacing, strict=True))
    z, y, x = z[:, None, None], y[None, :, None] - shift_mm[0], x[None, None, :] - shift_mm[1]
    across = ((y - HEAD_Y_MM) / 95) ** 2 + ((x - HEAD_X_MM) / 75) ** 2
    body = across + ((z - TOP_MM + 110) / 110) ** 2 <= 1
    body = body | (((y - HEAD_Y_MM - 15) ** 2 + (x - HEAD_X_MM) ** 2 <= 55**2) & (z < TOP_MM - 110))
    if shoulders:
        wide = ((y - HEAD_Y_MM - 20) / 80) ** 2 + ((x - HEAD_X_MM) / 145) ** 2 <= 1
        body = body | (wide & (z < 90))
    image = np.where(body, 40, -1000)
    if couch:
        row = round(250 / spacing[1])
        image[:, row : row + 2] = 100
        image[:, row - 8 : row, ::20] = 100
        image[5:9, 2:6, 2:6] = 2000
    return image.astype(np.int16)


def close(a: Roi, b: Roi, tolerance_mm: float) -> bool:
    pairs = ((a.top_mm, b.top_mm), (a.centre_y_mm, b.centre_y_mm), (a.centre_x_mm, b.centre_x_mm))
    return all(abs(p - q) <= tolerance_mm for p, q in pairs)


def test_the_anchor_is_where_it_is_documented() -> None:
    roi = find_roi(patient(), SPACING)
    # An ellipsoid's cross-section is 85 % of its largest at 110 (1 - sqrt(0.15)) mm below its top.
    assert roi.top_mm == pytest.approx(TOP_MM - 110 * (1 - 0.15**0.5) + 8, abs=4.0)
    assert roi.centre_x_mm == pytest.approx(HEAD_X_MM, abs=3.0)
    assert roi.centre_y_mm == pytest.approx(HEAD_Y_MM - 36, abs=3.0)


def test_shoulders_couch_and_fragments_do_not_move_it() -> None:
    expected = find_roi(patient(), SPACING)
    for image in (
        patient(shoulders=False),
        patient(couch=True),
        patient(couch=True, shoulders=False),
    ):
        assert close(find_roi(image, SPACING), expected, 4.5)


def test_it_follows_the_patient_and_not_the_grid() -> None:
    expected = find_roi(patient(), SPACING)
    moved = find_roi(patient(shift_mm=(-12.0, 9.0)), SPACING)
    assert close(moved, replace(expected, centre_y_mm=expected.centre_y_mm - 12,
                                centre_x_mm=expected.centre_x_mm + 9), 2.0)  # fmt: skip
    fine = (2.0, 1.5, 1.5)
    assert close(find_roi(patient(spacing=fine), fine), expected, 4.5)


@pytest.mark.parametrize("top_mm", [TOP_MM - 20, TOP_MM - 40])
def test_a_cut_vertex_does_not_move_it(top_mm: float) -> None:
    expected = find_roi(patient(), SPACING)
    assert close(find_roi(patient(top_mm=top_mm), SPACING), expected, 4.5)


@pytest.mark.parametrize("below_mm", [120, 160, 200])
def test_a_low_start_is_anchored_to_the_first_slice(below_mm: float) -> None:
    image = patient(top_mm=TOP_MM - below_mm)
    roi = find_roi(image, SPACING)
    last_mm = (image.shape[0] - 1) * SPACING[0]
    assert last_mm <= roi.top_mm <= last_mm + 4.0
    assert roi.centre_x_mm == pytest.approx(HEAD_X_MM, abs=3.0)


def test_the_largest_piece_is_the_body_and_thin_sheets_are_cut_off() -> None:
    image = patient(couch=True)
    mask = body_mask(image)
    assert not mask[5:9, 2:6, 2:6].any()
    row = round(250 / SPACING[1])
    assert not mask[60, row : row + 2].any()
    assert mask[60, round(HEAD_Y_MM / 3), round(HEAD_X_MM / 3)]


def test_no_body_is_an_error_of_the_case() -> None:
    with pytest.raises(CaseError) as error:
        find_roi(np.full((10, 10, 10), -1000, dtype=np.int16), SPACING)
    assert error.value.code == "E_NO_BODY"
    assert find_roi(np.zeros((1, 1, 1), dtype=np.int16), SPACING).top_mm >= 0


@pytest.mark.real_data
@pytest.mark.parametrize(
    "settings", [Preprocess(), Preprocess([3.0, 4.5, 4.5], [96, 48, 56])], ids=["full", "coarse"]
)
def test_organs_of_real_patients_lie_inside(real_data: Path, settings: Preprocess) -> None:
    from benchmarks.roi import ORGANS, recall

    root = real_data / "openkbp"
    if not root.is_dir():
        pytest.skip("no openkbp folder in the real data")
    figures = recall(root, settings)
    assert figures["all"] >= 0.99
    for organ in ORGANS:
        # 288 mm cannot hold what some clinics contour of the oesophagus; the others must be inside.
        assert figures[organ] >= (0.85 if organ == "Esophagus" else 0.999), organ
