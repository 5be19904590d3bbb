"""What may stand in a DICOM file: makers' elements behind the pixels, big endian; no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian

from benchmarks.dicom_example import Series
from core.archives.archive import open_archive, read_image_of
from core.archives.dicom.header import read_header
from core.data.geometry import Geometry

GRID = Geometry((4, 25, 21), (2.5, 2.0, 1.5), (-15.0, 7.25, 100.0))


@pytest.fixture
def image() -> np.ndarray:
    values = np.random.default_rng(0).integers(-1000, 1400, GRID.size).astype(np.int16)
    values[:, :3] = -1000
    return values


def private(level: int, data: Any) -> None:
    """A maker's group behind the pixels, as some scanners write."""
    data.add_new(0x7FE10010, "LO", "SIEMENS CSA NON-IMAGE")
    data.add_new(0x7FE11010, "OB", b"\1\2\3\4" * 8)
    data.add_new(0x7FE11020, "DS", ["1.5", "2.5"])


def read(root: Path) -> np.ndarray:
    archive = open_archive(root)
    (ref,) = archive.cases
    assert archive.findings == ()
    return read_image_of(archive, ref)[0]


@pytest.mark.parametrize("implicit", [True, False])
def test_private_groups_behind_the_pixels_are_read(
    tmp_path: Path, image: np.ndarray, implicit: bool
) -> None:
    Series(image, GRID, implicit=implicit, change=private).write(tmp_path / "p")
    np.testing.assert_array_equal(read(tmp_path), image)


def test_private_groups_and_padding(tmp_path: Path, image: np.ndarray) -> None:
    def padded(level: int, data: Any) -> None:
        private(level, data)
        data.add_new(0xFFFCFFFC, "OB", b"\0" * 20)

    Series(image, GRID, change=padded).write(tmp_path / "p")
    np.testing.assert_array_equal(read(tmp_path), image)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-5],
        lambda raw: raw + b"\xe1\x7f\x30\x10OB\0\0\xff\xff\xff\x7f",
        lambda raw: raw + b"\x10\x00\x10\x00LO\x04\x00abcd",
        lambda raw: raw + b"\xe1\x7f\x30\x10??\x04\x00abcd",
        lambda raw: raw + b"noise that is no element",
    ],
    ids=["cut short", "a length beyond the file", "an earlier group", "no type", "noise"],
)
def test_what_is_no_whole_element_is_still_refused(
    tmp_path: Path, image: np.ndarray, damage: Any
) -> None:
    Series(image, GRID, change=private).write(tmp_path / "p")
    path = tmp_path / "p" / "CT01.dcm"
    assert read_header(path) is not None
    path.write_bytes(damage(path.read_bytes()))
    assert read_header(path) is None


def test_big_endian_of_any_matrix(tmp_path: Path, image: np.ndarray) -> None:
    Series(image, GRID).write(tmp_path / "p")
    for path in (tmp_path / "p").iterdir():
        data = pydicom.dcmread(path)
        data.PixelData = data.pixel_array.astype(">i2").tobytes()
        data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(path, data, little_endian=False, implicit_vr=False)
    header = read_header(tmp_path / "p" / "CT00.dcm")
    assert header is not None
    assert (header["Rows"], header["Columns"]) == ("25", "21")
    np.testing.assert_array_equal(read(tmp_path), image)


def test_a_header_that_asks_for_too_much_is_refused(tmp_path: Path, image: np.ndarray) -> None:
    def huge(level: int, data: Any) -> None:
        data.NumberOfFrames = 600_000

    Series(image, GRID, change=huge).write(tmp_path / "p")
    assert read_header(tmp_path / "p" / "CT00.dcm") is None
