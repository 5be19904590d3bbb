import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from core.archives.images.volume import Volume, read_image, write_image, write_labelmap, write_mask
from core.data.geometry import Geometry
from core.errors import CaseError, UserError

ROTATED = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
GRID = Geometry((4, 5, 6), (3.0, 1.5, 1.25), (-10.0, 20.5, 7.25), ROTATED)


def voxels(dtype: type = np.int16) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 100, GRID.size).astype(dtype)


def test_geometry_agrees_with_simpleitk() -> None:
    image = GRID.to_sitk(voxels())
    assert image.GetSize() == (6, 5, 4)
    assert image.GetSpacing() == (1.25, 1.5, 3.0)
    assert image.GetOrigin() == GRID.origin_mm
    assert image.GetDirection() == ROTATED
    assert Geometry.of_sitk(image) == GRID
    assert image[5, 2, 1] == voxels()[1, 2, 5]


def test_measures() -> None:
    assert GRID.diagonal_mm() == pytest.approx(math.sqrt(12**2 + 7.5**2 + 7.5**2))
    assert GRID.voxel_ml() == pytest.approx(3.0 * 1.5 * 1.25 / 1000)


def test_corners_are_where_simpleitk_puts_them() -> None:
    image = GRID.to_sitk(voxels())
    far = image.TransformIndexToPhysicalPoint((5, 4, 3))
    assert GRID._corners_mm()[:, -1] == pytest.approx(far)


def test_json_round_trip_is_exact() -> None:
    odd = replace(GRID, spacing_mm=(1 / 3, 0.1, 3.906000000000000139))
    assert Geometry.of_json(json.loads(json.dumps(odd.as_json()))) == odd


@pytest.mark.parametrize(
    ("change", "close"),
    [
        ({}, True),
        ({"origin_mm": (-10.001, 20.5, 7.25)}, True),
        ({"origin_mm": (-10.1, 20.5, 7.25)}, False),
        ({"spacing_mm": (3.0001, 1.5, 1.25)}, True),
        ({"spacing_mm": (3.01, 1.5, 1.25)}, False),
        ({"size": (4, 5, 7)}, False),
        ({"direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)}, False),
        ({"direction": (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)}, False),
    ],
)
def test_close_to(change: dict[str, tuple[float, ...]], close: bool) -> None:
    assert GRID.close_to(replace(GRID, **change)) is close
    assert GRID.close_to(replace(GRID, **change), tol=50.0) is ("size" not in change)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nii.gz", "a.mha", "deep/er/a.b.nrrd"])
def test_image_round_trip(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name, voxels() - np.int16(1000), GRID)
    array, grid = read_image(tmp_path / name)
    assert array.dtype == np.int16
    assert np.array_equal(array, voxels() - 1000)
    assert grid.close_to(GRID, 1e-4)
    assert [p.name for p in (tmp_path / name).parent.iterdir()] == [Path(name).name]


@given(
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    origin=st.tuples(*[st.floats(-1e3, 1e3)] * 3),
    size=st.tuples(*[st.integers(2, 5)] * 3),
)
def test_any_geometry_survives_nrrd(
    tmp_path_factory: pytest.TempPathFactory,
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    size: tuple[int, int, int],
) -> None:
    grid = Geometry(size, spacing, origin, ROTATED)
    path = tmp_path_factory.mktemp("g") / "a.nrrd"
    write_mask(path, np.zeros(size, dtype=bool), grid)
    assert read_image(path)[1].close_to(grid, 1e-6)


def test_mask_and_label_map_types(tmp_path: Path) -> None:
    write_mask(tmp_path / "m.nrrd", voxels() > 50, GRID)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "m.nrrd"))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, voxels() > 50)
    for top, dtype in ((255, np.uint8), (256, np.uint16)):
        labels = np.zeros(GRID.size, dtype=np.int64)
        labels[1, 1, 1] = top
        write_labelmap(tmp_path / "l.nii.gz", labels, GRID)
        read = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "l.nii.gz"))
        assert read.dtype == dtype
        assert np.array_equal(read, labels)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_mask(tmp_path / "a.nothing", voxels() > 50, GRID)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dtype", "values", "becomes"),
    [
        (np.int16, (-1000, 3000), np.int16),
        (np.uint8, (0, 255), np.int16),
        (np.uint16, (0, 4095), np.int16),
        (np.uint16, (0, 65535), np.float32),
        (np.int32, (-1000, 30710), np.int16),
        (np.int32, (-100000, 5), np.float32),
        (np.float32, (-1000.5, 7), np.float32),
        (np.float64, (-1000.5, 7), np.float32),
    ],
)
def test_number_types(
    tmp_path: Path, dtype: type, values: tuple[float, float], becomes: type
) -> None:
    array = np.zeros(GRID.size, dtype=dtype)
    array[0, 0, 0], array[1, 2, 3] = values
    write_image(tmp_path / "a.nrrd", array, GRID)
    read, _ = read_image(tmp_path / "a.nrrd")
    assert read.dtype == becomes
    assert np.array_equal(read, array.astype(np.float32))


def code_of(path: Path) -> str:
    with pytest.raises(CaseError) as error:
        read_image(path)
    assert isinstance(error.value, UserError)
    assert path.name in str(error.value)
    return error.value.code


def test_missing_file(tmp_path: Path) -> None:
    assert code_of(tmp_path / "none.nrrd") == "E_IMAGE_MISSING"


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nii.gz", "a.nii", "a.mha"])
def test_truncated_file(tmp_path: Path, name: str, compress: bool) -> None:
    noise = np.random.default_rng(1).integers(-1000, 1000, (20, 30, 40)).astype(np.int16)
    image = Geometry((20, 30, 40), (1.0, 1.0, 1.0)).to_sitk(noise)
    sitk.WriteImage(image, str(tmp_path / name), useCompression=compress)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    assert code_of(tmp_path / name) == "E_IMAGE_UNREADABLE"


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("missing", [1, 200])
def test_nifti_of_which_little_is_missing(tmp_path: Path, name: str, missing: int) -> None:
    """SimpleITK itself reads such a file without a word, the end filled with zeros."""
    write_image(tmp_path / name, voxels(), GRID)
    data = (tmp_path / name).read_bytes()
    data = gzip.decompress(data) if name.endswith("gz") else data
    short = data[:-missing]
    (tmp_path / name).write_bytes(gzip.compress(short) if name.endswith("gz") else short)
    sitk.ReadImage(tmp_path / name)
    assert code_of(tmp_path / name) == "E_IMAGE_UNREADABLE"


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_text("hello")
    assert code_of(tmp_path / "a.nrrd") == "E_IMAGE_UNREADABLE"
    (tmp_path / "b.nrrd").write_bytes(b"")
    assert code_of(tmp_path / "b.nrrd") == "E_IMAGE_UNREADABLE"


@pytest.mark.parametrize(
    "image",
    [
        sitk.Image(5, 6, sitk.sitkInt16),
        sitk.Image([5, 6, 1], sitk.sitkInt16),
        sitk.Image([5, 6, 4, 3], sitk.sitkInt16),
        sitk.Image([5, 6, 4], sitk.sitkVectorUInt8, 3),
    ],
    ids=["2-D", "one slice", "4-D", "colour"],
)
def test_not_a_volume(tmp_path: Path, image: sitk.Image) -> None:
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    assert code_of(tmp_path / "a.nrrd") == "E_IMAGE_SHAPE"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    array = voxels(np.float32)
    array[1, 1, 1] = bad
    write_image(tmp_path / "a.nrrd", array, GRID)
    assert code_of(tmp_path / "a.nrrd") == "E_IMAGE_VALUES"


@pytest.mark.parametrize("spacing", [(3.0, 0.001, 1.0), (100.0, 1.0, 1.0)])
def test_spacing_that_cannot_be(tmp_path: Path, spacing: tuple[float, float, float]) -> None:
    write_image(tmp_path / "a.nrrd", voxels(), replace(GRID, spacing_mm=spacing))
    assert code_of(tmp_path / "a.nrrd") == "E_IMAGE_GEOMETRY"


def test_direction_that_is_no_rotation(tmp_path: Path) -> None:
    sheared = (1.0, 0.5, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    write_image(tmp_path / "a.mha", voxels(), replace(GRID, direction=sheared))
    assert code_of(tmp_path / "a.mha") == "E_IMAGE_GEOMETRY"


def test_annotated_are_the_masks() -> None:
    volume = Volume("a", voxels(), GRID, {"Larynx": voxels() > 50})
    assert volume.annotated == {"Larynx"}
