"""NIfTI is read by its own header: what SimpleITK hides is told, nothing unpacks to gigabytes."""

from __future__ import annotations

import gzip
import math
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from core.archives.archive import read_image_of
from core.archives.images.volume import read_image
from core.data.geometry import Geometry
from core.errors import CaseError
from hnfed.predict.contours import find_cts

SIZE = (6, 5, 4)  # z, y, x
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -3.0, 0, 40], [0, 0, 4.0, -50]])
GRID = Geometry(SIZE, (4.0, 3.0, 2.0), (-30.0, -40.0, -50.0))
KINDS = {"i2": 4, "u1": 2, "f4": 16, "f8": 64, "i4": 8}


def voxels(kind: str = "i2") -> np.ndarray:
    array = np.arange(math.prod(SIZE)).reshape(SIZE).astype(kind)
    array[0] = 0
    return array


def nifti(
    array: np.ndarray,
    *,
    sform: np.ndarray | None = AFFINE,
    quaternion: tuple[float, ...] | None = None,
    steps: tuple[float, float, float] = (2.0, 3.0, 4.0),
    sizes: tuple[int, ...] | None = None,
    scale: tuple[float, float] = (1.0, 0.0),
    order: str = "<",
    version: int = 1,
    unit: int = 2,
) -> bytes:
    """A NIfTI file, field by field."""
    kind = KINDS[array.dtype.str[1:]]
    bits = array.dtype.itemsize * 8
    dims = (3, *(array.shape[::-1] if sizes is None else sizes))
    dims = (*dims, *([1] * (8 - len(dims))))
    codes = (0 if quaternion is None else 1, 0 if sform is None else 2)
    rows = (np.zeros((3, 4)) if sform is None else sform).ravel()
    numbers = (*(quaternion or (0.0,) * 6), *rows)
    head = bytearray(352 if version == 1 else 544)
    if version == 1:
        struct.pack_into(order + "i", head, 0, 348)
        struct.pack_into(order + "8h", head, 40, *dims)
        struct.pack_into(order + "2h", head, 70, kind, bits)
        struct.pack_into(order + "8f", head, 76, 1.0, *steps, 0, 0, 0, 0)
        struct.pack_into(order + "3f", head, 108, 352, *scale)
        head[123] = unit
        struct.pack_into(order + "2h18f", head, 252, *codes, *numbers)
        head[344:348] = b"n+1\0"
    else:
        struct.pack_into(order + "i", head, 0, 540)
        head[4:12] = b"n+2\0\r\n\x1a\n"
        struct.pack_into(order + "2h", head, 12, kind, bits)
        struct.pack_into(order + "8q", head, 16, *dims)
        struct.pack_into(order + "8d", head, 104, 1.0, *steps, 0, 0, 0, 0)
        struct.pack_into(order + "q2d", head, 168, 544, *scale)
        struct.pack_into(order + "2i18d", head, 344, *codes, *numbers)
        struct.pack_into(order + "i", head, 500, unit)
    return bytes(head) + array.astype(array.dtype.newbyteorder(order)).tobytes()


def refused(path: Path) -> CaseError:
    with pytest.raises(CaseError) as error:
        read_image(path)
    return error.value


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_both_versions_and_byte_orders(tmp_path: Path, order: str, version: int, kind: str) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(voxels(kind), order=order, version=version))
    array, grid = read_image(path)
    np.testing.assert_array_equal(array, voxels(kind))
    assert grid.close_to(GRID, 1e-6)
    if version == 1:
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
        assert Geometry.of_sitk(image).close_to(grid, 1e-6)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "A.NII.GZ"])
@pytest.mark.parametrize("packed", [True, False])
def test_packed_or_not_whatever_the_name_says(tmp_path: Path, name: str, packed: bool) -> None:
    raw = nifti(voxels())
    (tmp_path / name).write_bytes(gzip.compress(raw) if packed else raw)
    np.testing.assert_array_equal(read_image(tmp_path / name)[0], voxels())
    archive = find_cts(tmp_path / name)
    assert archive.cases[0].case == name[:1]


def test_the_qform_counts_where_there_is_no_sform(tmp_path: Path) -> None:
    # A turn of 40 degrees about z, as a quaternion.
    half = math.radians(20)
    path = tmp_path / "a.nii"
    path.write_bytes(
        nifti(voxels(), sform=None, quaternion=(0.0, 0.0, math.sin(half), 3.0, 4.0, 5.0))
    )
    assert Geometry.of_sitk(sitk.ReadImage(str(path))).close_to(read_image(path)[1], 1e-5)


@pytest.mark.parametrize(("scale", "factor"), [((2.0, -1024.0), 2), ((0.0, 5.0), 0),
                                               ((math.nan, math.nan), 0)])  # fmt: skip
def test_scaling(tmp_path: Path, scale: tuple[float, float], factor: int) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(voxels(), scale=scale))
    array, _ = read_image(path)
    wanted = voxels() * 2.0 - 1024 if factor else voxels()
    np.testing.assert_array_equal(array, wanted)
    assert array.dtype == (np.float32 if factor else np.int16)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_is_no_number_is_found(tmp_path: Path, bad: float, kind: str, name: str) -> None:
    """SimpleITK reads 0 there: water, where a resampling tool meant "outside"."""
    array = voxels(kind)
    array[:, 0] = bad
    raw = nifti(array)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    found = refused(tmp_path / name)
    assert found.code == "E_IMAGE_VALUES"
    assert "24 voxels are NaN or infinite" in found.problem
    assert "-1000" in found.remedy


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sform": None}, "neither sform nor qform"),
        ({"sform": AFFINE + np.eye(3, 4, 1) * [[0.03], [0], [0]]}, "sform is sheared: axes 0.57"),
        ({"steps": (2.0, 3.0, 5.0)}, "voxels of 2 x 3 x 4, its pixdim of 2 x 3 x 5"),
        ({"quaternion": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)}, "sform and qform place voxels up to"),
        ({"sform": AFFINE * [[1], [1], [0]]}, "no length"),
        ({"sform": AFFINE * math.nan}, "no numbers"),
    ],
)
def test_an_orientation_that_is_none_is_named(tmp_path: Path, change: dict, word: str) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(voxels(), **change))
    found = refused(path)
    assert found.code == "E_IMAGE_GEOMETRY"
    assert word in found.problem


@pytest.mark.parametrize("shear", [1e-5, 1e-3, 4e-3])
def test_a_shear_of_rounding_is_made_a_rotation(tmp_path: Path, shear: float) -> None:
    """SimpleITK refuses each of these as "truncated, or no image"."""
    affine = AFFINE.copy()
    affine[0, 1] = 3.0 * shear
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(voxels(), sform=affine))
    grid = read_image(path)[1]
    matrix = np.array(grid.direction).reshape(3, 3)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert grid.close_to(GRID, 0.02)


def test_units(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(voxels(), sform=AFFINE / 1000, steps=(0.002, 0.003, 0.004), unit=1))
    assert read_image(path)[1].close_to(GRID, 1e-5)


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", "no NIfTI header"),
        (b"hello" * 200, "neither NIfTI-1 nor NIfTI-2"),
        (nifti(voxels()).replace(b"n+1\0", b"ni1\0"), "not of one file"),
        (nifti(voxels()).replace(b"n+1\0", b"\0\0\0\0"), "not of one file"),
        (nifti(voxels())[:-1], "bytes of voxels"),
        (nifti(voxels(), sizes=(30000, 30000, 30000)), "no CT is so large"),
        (nifti(voxels(), sizes=(4, -5, 6)), "sizes"),
    ],
)
def test_a_header_that_is_none(tmp_path: Path, raw: bytes, word: str) -> None:
    for name, content in (("a.nii", raw), ("b.nii.gz", gzip.compress(raw))):
        (tmp_path / name).write_bytes(content)
        found = refused(tmp_path / name)
        assert found.code == "E_IMAGE_UNREADABLE"
        assert word in found.problem


def test_a_megabyte_does_not_unpack_to_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    head = nifti(voxels(), sizes=(1200, 1200, 1000))[:352]
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(64):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    assert "no CT is so large" in refused(path).problem
    long = nifti(voxels()) + bytes(64 << 20)  # more than the header tells is not unpacked
    path.write_bytes(gzip.compress(long, 1))
    del long
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    np.testing.assert_array_equal(read_image(path)[0], voxels())
    assert tracemalloc.get_traced_memory()[1] - before < 8 << 20
    tracemalloc.stop()


def test_a_loose_ct_is_refused_alike(tmp_path: Path) -> None:
    path = tmp_path / "ct.nii"
    path.write_bytes(nifti(voxels(), sform=None))
    archive = find_cts(path)
    with pytest.raises(CaseError, match="neither sform nor qform"):
        read_image_of(archive, archive.cases[0])
