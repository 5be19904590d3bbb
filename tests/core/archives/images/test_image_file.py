"""Headers that name their data: beside them only, never elsewhere; limits before unpacking."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from core.archives.archive import CaseRef, content_hash
from core.archives.images.header import beside, too_large
from core.archives.images.image_file import data_file
from core.archives.images.volume import read_image
from core.data.geometry import Geometry
from core.errors import CaseError
from hnfed.predict.contours import find_cts

SIZE = (4, 5, 6)
GRID = Geometry(SIZE, (3.0, 2.0, 1.5), (-30.0, -40.0, -50.0))
VOXELS = np.arange(120, dtype=np.int16).reshape(SIZE)
NHDR = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 6 5 4
space directions: (1.5,0,0) (0,2,0) (0,0,3)
kinds: domain domain domain
endian: little
encoding: {encoding}
space origin: (-30,-40,-50)
data file: {data}
"""
MHD = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = -30 -40 -50
ElementSpacing = 1.5 2 3
DimSize = 6 5 4
ElementType = MET_SHORT
ElementDataFile = {data}
"""


def nhdr(folder: Path, data: str, *, encoding: str = "raw") -> Path:
    (folder / "ct.nhdr").write_text(NHDR.format(data=data, encoding=encoding))
    return folder / "ct.nhdr"


def mhd(folder: Path, data: str) -> Path:
    (folder / "ct.mhd").write_text(MHD.format(data=data))
    return folder / "ct.mhd"


def refused(path: Path) -> CaseError:
    with pytest.raises(CaseError) as error:
        read_image(path)
    assert error.value.code == "E_IMAGE_UNREADABLE"
    return error.value


@pytest.mark.parametrize("write", [nhdr, mhd])
@pytest.mark.parametrize("data", ["ct.raw", "./ct.raw", "voxels/ct.raw"])
def test_data_beside_or_below_are_read(tmp_path: Path, write, data: str) -> None:
    (tmp_path / data).parent.mkdir(exist_ok=True)
    (tmp_path / data).write_bytes(VOXELS.tobytes())
    path = write(tmp_path, data)
    array, grid = read_image(path)
    np.testing.assert_array_equal(array, VOXELS)
    assert grid.close_to(GRID, 1e-9)
    archive = find_cts(path)
    assert [ref.case for ref in archive.cases] == ["ct"]


def test_packed_data_and_a_header_that_ends_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "ct.raw.gz").write_bytes(gzip.compress(VOXELS.tobytes()))
    path = nhdr(tmp_path, "ct.raw.gz", encoding="gzip")
    np.testing.assert_array_equal(read_image(path)[0], VOXELS)
    path.write_text(path.read_text() + "\n")
    np.testing.assert_array_equal(read_image(path)[0], VOXELS)


@pytest.mark.parametrize("write", [nhdr, mhd])
@pytest.mark.parametrize(
    ("data", "word"),
    [
        ("{outside}", "outside its own folder"),
        ("../secret.raw", "outside its own folder"),
        ("sub/../../secret.raw", "outside its own folder"),
        ("link.raw", "a link that leads outside"),
        ("folder/secret.raw", "a link that leads outside"),
        ("none.raw", "is missing"),
        ("LIST", "several files"),
        ("slice%03d.raw 1 4 1", "several files"),
        ("C:\\secret.raw", "outside its own folder"),
    ],
)
def test_data_elsewhere_are_not_opened(tmp_path: Path, write, data: str, word: str) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "secret.raw").write_bytes(VOXELS.tobytes())
    (own / "link.raw").symlink_to(tmp_path / "secret.raw")
    (own / "folder").symlink_to(tmp_path)
    (own / "sub").mkdir()
    path = write(own, data.format(outside=tmp_path / "secret.raw"))
    assert word in refused(path).problem
    assert data_file(path) is None


@pytest.mark.parametrize("name", ["ct.mhd", "CT.MHD", "ct.mha", "ct.NHDR", "ct.nrrd", "CT.NRRD"])
def test_no_suffix_slips_past_the_look_at_the_header(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(VOXELS.tobytes())
    (tmp_path / "own").mkdir()
    text = (NHDR if name.lower().endswith(("nhdr", "nrrd")) else MHD).format(
        data=tmp_path / "secret", encoding="raw"
    )
    (tmp_path / "own" / name).write_text(text)
    assert "outside its own folder" in refused(tmp_path / "own" / name).problem


@pytest.mark.parametrize("write", [nhdr, mhd])
def test_short_data_and_the_content_hash(tmp_path: Path, write) -> None:
    (tmp_path / "ct.raw").write_bytes(VOXELS.tobytes())
    ref = CaseRef("a", (write(tmp_path, "ct.raw"),), {}, 0, None, None)
    first = content_hash(ref, [])
    (tmp_path / "ct.raw").write_bytes((VOXELS + 1).tobytes())
    assert content_hash(ref, []) != first
    (tmp_path / "ct.raw").write_bytes(VOXELS.tobytes()[:-40])
    assert "ends early" in refused(ref.files[0]).problem


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("ElementSpacing = 1.5 2 3", "ElementSpacing = 1,5 2,0 3,0", "a decimal comma?"),
        ("ElementSpacing = 1.5 2 3\n", "", "ElementSpacing is missing"),
        ("ElementSpacing = 1.5 2 3", "ElementSpacing = 1.5 2", "not 3 numbers"),
        ("Offset = -30 -40 -50", "Offset = nan 0 0", "not 3 numbers"),
        ("DimSize = 6 5 4", "DimSize = 6 5", "in 3 dimensions"),
        ("DimSize = 6 5 4", "DimSize = 60000 50000 4", "no CT is so large"),
        ("ElementType = MET_SHORT", "ElementType = MET_OTHER", "ElementType"),
        ("NDims = 3", "NDims = 3\nNDims = 2", "stands twice"),
        ("ElementDataFile = ct.raw", "Comment = none", "ends with ElementDataFile"),
    ],
)
def test_a_metaimage_header_is_read_strictly(tmp_path: Path, old: str, new: str, word: str) -> None:
    (tmp_path / "ct.raw").write_bytes(VOXELS.tobytes())
    path = mhd(tmp_path, "ct.raw")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert word in refused(path).problem


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("space directions: (1.5,0,0) (0,2,0) (0,0,3)\n", "", "tells no spacing"),
        ("space directions: (1.5,0,0) (0,2,0) (0,0,3)", "spacings: nan 2 3", "tells no spacing"),
        ("sizes: 6 5 4", "sizes: 60000 50000 4", "no CT is so large"),
        ("(-30,-40,-50)", "(-30,0,-40,0,-50,0)", "differ in length"),
    ],
)
def test_a_nrrd_header_without_a_place(tmp_path: Path, old: str, new: str, word: str) -> None:
    (tmp_path / "ct.raw").write_bytes(VOXELS.tobytes())
    path = nhdr(tmp_path, "ct.raw")
    path.write_text(path.read_text().replace(old, new))
    assert word in refused(path).problem


def test_what_simpleitk_writes_passes(tmp_path: Path) -> None:
    for name in ("a.mha", "a.mhd", "a.nrrd", "a.nhdr"):
        for packed in (True, False):
            sitk.WriteImage(GRID.to_sitk(VOXELS), str(tmp_path / name), useCompression=packed)
            np.testing.assert_array_equal(read_image(tmp_path / name)[0], VOXELS)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_a_megabyte_does_not_unpack_to_gigabytes(tmp_path: Path, name: str) -> None:
    zeros = zlib.compress(bytes(1 << 20), 9)
    if name.endswith("mha"):
        head = MHD.format(data="LOCAL").replace("CompressedData = False", "CompressedData = True")
        head = head.replace("6 5 4", "1200 1200 1000")
    else:
        head = NHDR.format(data="", encoding="gzip").replace("data file: \n", "\n")
        head = head.replace("6 5 4", "1200 1200 1000")
    (tmp_path / name).write_bytes(head.encode() + zeros * 1400)
    assert "no CT is so large" in refused(tmp_path / name).problem


def test_other_files_are_not_read_as_images(tmp_path: Path) -> None:
    for name in ("a.png", "a.h5", "a.dcm", "a"):
        sitk.WriteImage(sitk.Image(6, 5, sitk.sitkUInt8), str(tmp_path / "x.png"))
        (tmp_path / "x.png").rename(tmp_path / name)
        assert "neither NRRD, NIfTI nor MetaImage" in refused(tmp_path / name).problem
    (tmp_path / "b.nrrd").write_bytes((tmp_path / "a.png").read_bytes())
    assert "no NRRD header" in refused(tmp_path / "b.nrrd").problem


def test_limits() -> None:
    assert too_large((512, 512, 1000), 2) == ""
    assert "2 GB" in too_large((1024, 1024, 512), 8)
    assert too_large((1200, 1200, 1000), 1)


def test_names_with_zero_bytes(tmp_path: Path) -> None:
    assert beside(tmp_path / "a.mhd", "a\0b")[0] is None
