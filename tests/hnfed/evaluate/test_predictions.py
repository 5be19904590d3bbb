"""Contours of other tools: every layout that `predict` writes, and TotalSegmentator's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks.dicom_example import Series, Structures
from core.archives.archive import open_archive, read_case
from core.archives.images.volume import Volume, write_labelmap, write_mask
from core.data.geometry import Geometry
from core.errors import CaseError
from core.organs.vocabulary import vocabulary
from hnfed.evaluate.predictions import find_predictions, read_prediction
from hnfed.evaluate.reorient import reoriented
from hnfed.predict.contours import Contours, write_contours, write_label_table
from hnfed.predict.dicom_references import read_headers
from hnfed.predict.formats import CONTOUR_FORMATS

GRID = Geometry((8, 30, 24), (3.0, 1.0, 1.5), (-20.0, -10.0, 5.0))
ORGANS = ("Brainstem", "Parotid_L")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Volume, Any]:
    """A CT of DICOM files with two organs, and the headers of its slices."""
    folder = tmp_path_factory.mktemp("ct")
    image = np.full(GRID.size, -1000, dtype=np.int16)
    image[:, 2:-2, 2:-2] = 40
    Series(image, GRID).write(folder / "p")
    square = np.array([[-10.0, 0, 11], [-4, 0, 11], [-4, 8, 11], [-10, 8, 11]])
    rois = {
        "Brainstem": [square, square + np.array([0, 0, 3.0])],
        "Parotid_L": [square + np.array([8.0, 5, z]) for z in (0, 3, 6)],
    }
    Structures(rois).write(folder / "p" / "rs")
    archive = open_archive(folder)
    (ref,) = archive.cases
    volume, _ = read_case(archive, ref, ORGANS)
    return volume, read_headers(ref.files, volume.geometry)


def labels_of(volume: Volume) -> np.ndarray:
    labels = np.zeros(volume.geometry.size, dtype=np.uint8)
    for i, organ in enumerate(ORGANS, start=1):
        labels[volume.masks[organ]] = i
    return labels


def require_equal(folder: Path, volume: Volume) -> None:
    found = find_predictions(folder, ["p"], vocabulary())
    assert (set(found.organs), found.absent) == (set(ORGANS), ())
    masks = read_prediction(found, "p", volume.image, volume.geometry)
    for organ in ORGANS:
        np.testing.assert_array_equal(masks[organ], volume.masks[organ])


@pytest.mark.parametrize("format", CONTOUR_FORMATS)
def test_what_predict_writes_can_be_scored(case: Any, tmp_path: Path, format: str) -> None:
    volume, headers = case
    drawn = Contours("p", labels_of(volume), ORGANS, volume.geometry, headers=headers)
    write_contours(tmp_path, drawn, (format,))
    if format == "nifti":
        write_label_table(tmp_path, ORGANS)
    require_equal(tmp_path, volume)


@pytest.mark.parametrize("name", ["p.dcm", "p/anything", "p/RTSTRUCT_1.dcm"])
def test_a_structure_set_of_another_tool(case: Any, tmp_path: Path, name: str) -> None:
    volume, headers = case
    drawn = Contours("p", labels_of(volume), ORGANS, volume.geometry, headers=headers)
    write_contours(tmp_path, drawn, ("rtstruct",))
    content = (tmp_path / "p" / "RS.dcm").read_bytes()
    (tmp_path / "p" / "RS.dcm").unlink()
    (tmp_path / name).write_bytes(content)
    require_equal(tmp_path, volume)


NAMES = {"brainstem": "Brainstem", "parotid_gland_left": "Parotid_L"}


@pytest.mark.parametrize("place", ["p", "p/segmentations", "."])
def test_the_folder_of_totalsegmentator(case: Any, tmp_path: Path, place: str) -> None:
    volume, _ = case
    for name, organ in NAMES.items():
        write_mask(tmp_path / place / f"{name}.nii.gz", volume.masks[organ], volume.geometry)
    empty = np.zeros(volume.geometry.size, dtype=bool)
    write_mask(tmp_path / place / "esophagus.nii.gz", empty, volume.geometry)
    found = find_predictions(tmp_path, ["p"], vocabulary())
    masks = read_prediction(found, "p", volume.image, volume.geometry)
    assert set(masks) == set(ORGANS)
    for organ in ORGANS:
        np.testing.assert_array_equal(masks[organ], volume.masks[organ])


def test_a_label_map_that_names_its_labels_itself(case: Any, tmp_path: Path) -> None:
    """A NIfTI extension with a label table, as TotalSegmentator's --ml writes it."""
    volume, _ = case
    write_labelmap(tmp_path / "p.nii", labels_of(volume), volume.geometry)
    told = "".join(
        f'<Label Key="{i}" Red="1" Green="0" Blue="0" Alpha="1"><![CDATA[{name}]]></Label>'
        for i, name in enumerate(NAMES, start=1)
    )
    text = (
        "<?xml version='1.0'?><CaretExtension><VolumeInformation><LabelTable>"
        f"{told}</LabelTable></VolumeInformation></CaretExtension>"
    ).encode()
    size = -(-(len(text) + 8) // 16) * 16
    raw = bytearray((tmp_path / "p.nii").read_bytes())
    raw[108:112] = np.float32(352 + size).tobytes()
    block = np.array([size, 30], dtype="<i4").tobytes() + text.ljust(size - 8, b"\0")
    (tmp_path / "p.nii").write_bytes(bytes(raw[:348]) + b"\1\0\0\0" + block + bytes(raw[352:]))
    require_equal(tmp_path, volume)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PIR", "ASL"])
def test_another_order_of_axes_is_the_same_grid(case: Any, tmp_path: Path, axes: str) -> None:
    volume, _ = case
    write_label_table(tmp_path, ORGANS)
    write_labelmap(tmp_path / "p.nii.gz", labels_of(volume), volume.geometry)
    turned = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "p.nii.gz")), axes)
    sitk.WriteImage(turned, str(tmp_path / "p.nii.gz"))
    require_equal(tmp_path, volume)


def test_a_shifted_or_finer_grid_is_another_one() -> None:
    array = np.zeros(GRID.size)
    moved = Geometry(GRID.size, GRID.spacing_mm, (-20.0, -10.0, 6.5))
    assert reoriented(array, moved, GRID) is None
    finer = Geometry(GRID.size, (1.5, 1.0, 1.5), GRID.origin_mm)
    assert reoriented(array, finer, GRID) is None
    oblique = Geometry(
        GRID.size, GRID.spacing_mm, GRID.origin_mm, (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
    )
    assert reoriented(array, oblique, GRID) is None


def test_a_damaged_structure_set_costs_its_case_alone(case: Any, tmp_path: Path) -> None:
    volume, headers = case
    for name in ("p", "q"):
        drawn = Contours(name, labels_of(volume), ORGANS, volume.geometry, headers=headers)
        write_contours(tmp_path, drawn, ("rtstruct",))
    whole = (tmp_path / "q" / "RS.dcm").read_bytes()
    (tmp_path / "q" / "RS.dcm").write_bytes(whole[: len(whole) // 2])
    found = find_predictions(tmp_path, ["p", "q"], vocabulary())
    masks = read_prediction(found, "p", volume.image, volume.geometry)
    assert set(masks) == set(ORGANS)
    with pytest.raises(CaseError, match="cut short") as caught:
        read_prediction(found, "q", volume.image, volume.geometry)
    assert caught.value.code == "E_PREDICTION_UNREADABLE"
