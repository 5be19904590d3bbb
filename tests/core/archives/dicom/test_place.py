"""Where slices lie: what the tags say, strictly, and never what a library makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.dicom_example import Series
from core.archives.archive import open_archive, read_image_of
from core.archives.dicom.place import place_of, turned
from core.data.geometry import Geometry
from core.errors import CaseError
from hnfed.check.archive_check import check_archive
from hnfed.predict.contours import find_cts

GRID = Geometry((8, 24, 20), (2.5, 2.0, 1.5), (-15.0, 7.25, 100.0))
TOLD: dict[str, str | None] = {
    "ImagePositionPatient": "-1.5\\+2\\.5e1 ",
    "ImageOrientationPatient": "1\\0\\0\\0\\1\\0 ",
    "PixelSpacing": "2\\1.5 ",
}


@pytest.fixture
def image() -> np.ndarray:
    values = np.random.default_rng(0).integers(-1000, 1400, GRID.size).astype(np.int16)
    values[:, :3] = -1000
    return values


def written(tag: str, text: str) -> Any:
    """Puts any text into a tag of every slice, as a file may hold it."""

    def change(level: int, data: Any) -> None:
        element = data[tag]
        if text:
            element._value = text.split("\\")
            element.validation_mode = 0
        else:
            data[tag].value = None

    return change


def test_a_place_is_read_as_it_stands() -> None:
    place = place_of(TOLD, (24, 20), "a.dcm")
    assert place.shape == (24, 20)
    assert place.spacing_mm == (2.0, 1.5)
    assert place.origin_mm.tolist() == [-1.5, 2.0, 5.0]
    np.testing.assert_array_equal(place.direction, np.eye(3))
    assert place.rounding == 0.0


@pytest.mark.parametrize(
    ("tag", "text", "word"),
    [
        ("PixelSpacing", None, r"\(0028,0030\) is missing"),
        ("PixelSpacing", "", r"\(0028,0030\) reads \[\]: it is empty"),
        ("PixelSpacing", " \\ ", "it is empty"),
        ("PixelSpacing", "3,2\\3,2 ", r"reads \[3,2.3,2 \]: a decimal comma"),
        ("PixelSpacing", "2\\1.5\\1", "not 2 numbers"),
        ("PixelSpacing", "2", "not 2 numbers"),
        ("PixelSpacing", "0\\1.5", "above 0"),
        ("PixelSpacing", "-2\\1.5", "above 0"),
        ("PixelSpacing", "2 mm\\1.5", "reads '2 mm"),
        ("PixelSpacing", "nan\\1.5", "not 2 numbers"),
        ("PixelSpacing", "1e999\\1.5", "not 2 numbers"),
        ("ImagePositionPatient", "1\\2", "not 3 numbers"),
        ("ImagePositionPatient", "-150,0\\-150,0\\3,5", "decimal comma"),
        ("ImageOrientationPatient", "", r"\(0020,0037\) reads \[\]: it is empty"),
        ("ImageOrientationPatient", "1\\0\\0\\0\\1", "not 6 numbers"),
        ("ImageOrientationPatient", "0\\0\\0\\0\\1\\0", "of length 0 and 1"),
        ("ImageOrientationPatient", "0.9\\0.4\\0\\-0.4\\0.9\\0", "of length 0.985"),
        ("ImageOrientationPatient", "0.71\\0.71\\0\\-0.70\\0.71\\0.01", "0.41 degrees from perp"),
        ("ImageOrientationPatient", "1\\0\\0\\1\\0\\0", "90.00 degrees from perpendicular"),
    ],
)
def test_what_is_no_place_is_refused_by_tag_and_value(
    tag: str, text: str | None, word: str
) -> None:
    with pytest.raises(CaseError, match=word) as error:
        place_of({**TOLD, tag: text}, (24, 20), "a.dcm")
    assert error.value.code == "E_IMAGE_GEOMETRY"
    assert tag in error.value.problem
    assert tag in error.value.remedy


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("PixelSpacing", ""),
        ("PixelSpacing", "3,2\\3,2"),
        ("ImageOrientationPatient", ""),
        ("ImageOrientationPatient", "0.71\\0.71\\0\\-0.70\\0.71\\0.01"),
        ("ImagePositionPatient", "-15,0\\7,2\\100,5"),
    ],
)
def test_check_and_predict_refuse_alike(
    tmp_path: Path, image: np.ndarray, tag: str, text: str
) -> None:
    """SimpleITK reads each of these as some grid, mostly the identity."""
    Series(image, GRID, change=written(tag, text)).write(tmp_path / "p")
    for archive in (open_archive(tmp_path), find_cts(tmp_path / "p")):
        with pytest.raises(CaseError, match=tag) as error:
            read_image_of(archive, archive.cases[0])
        assert error.value.code == "E_IMAGE_GEOMETRY"
    report = check_archive(open_archive(tmp_path), secret=b"x")
    assert [f.code for f in report.findings] == ["E_IMAGE_GEOMETRY"]
    assert tag in report.findings[0].message
    assert not text or f"[{text}" in report.findings[0].message


def head_turned(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    row, column = np.array([c, s * c, s * s]), np.array([-s, c * c, s * c])
    return np.column_stack([row, column, np.cross(row, column)])


@pytest.mark.parametrize("decimals", [2, 3, 4, 6])
@pytest.mark.parametrize("degrees", [3.0, 15.0, 40.0])
def test_rounded_directions_are_used_as_the_rotation_that_they_mean(
    tmp_path: Path, image: np.ndarray, decimals: int, degrees: float
) -> None:
    """GDCM lays such a plane flat. The stack's own direction says the normal exactly."""
    true = head_turned(degrees)
    grid = Geometry(GRID.size, GRID.spacing_mm, (-15.0, 7.25, 100.0), tuple(true.ravel()))

    def rounded(level: int, data: Any) -> None:
        cosines = [f"{v:.{decimals}f}" for v in (*true[:, 0], *true[:, 1])]
        data.ImageOrientationPatient = cosines
        data.ImagePositionPatient = [f"{float(v):.3f}" for v in data.ImagePositionPatient]

    Series(image, grid, change=rounded).write(tmp_path / "p")
    archive = open_archive(tmp_path)
    voxels, read = read_image_of(archive, archive.cases[0])
    np.testing.assert_array_equal(voxels, image)
    matrix = np.array(read.direction).reshape(3, 3)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-5)
    assert grid.close_to(read, 0.2 if decimals == 2 else 0.02)


def test_a_tilted_stack_is_still_refused_and_rounding_named(
    tmp_path: Path, image: np.ndarray
) -> None:
    def tilted(level: int, data: Any) -> None:
        data.ImagePositionPatient = [-15.0, 7.25 + 0.03 * level, 100 + 2.5 * level]

    Series(image, GRID, change=tilted).write(tmp_path / "p")
    archive = open_archive(tmp_path)
    with pytest.raises(CaseError, match=r"gantry tilt of 0.7 degrees.* is rounded"):
        read_image_of(archive, archive.cases[0])


def test_the_rotation_next_to_another_with_a_given_normal() -> None:
    normal = np.array([0.01, -0.02, 1.0])
    normal /= np.linalg.norm(normal)
    found = turned(np.eye(3), normal)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(found[:, 2], normal)
    assert found[0, 0] > 0.999


def test_tags_count_whatever_class_the_image_is_of(tmp_path: Path, image: np.ndarray) -> None:
    prone = (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)
    grid = Geometry(GRID.size, GRID.spacing_mm, (13.5, 53.25, 100.0), prone)

    kind = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture

    def other(level: int, data: Any) -> None:
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = kind

    Series(image, grid, change=other).write(tmp_path / "p")
    archive = open_archive(tmp_path)
    assert grid.close_to(read_image_of(archive, archive.cases[0])[1], 1e-6)
