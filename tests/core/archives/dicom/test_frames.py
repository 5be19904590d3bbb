"""Enhanced multi-frame CT, and DICOM SEG as contours: frame by frame, each where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from benchmarks.dicom_example import Series, Structures, uid_of
from core.archives.archive import open_archive, read_case, read_image_of
from core.data.geometry import Geometry
from core.errors import CaseError
from hnfed.predict.contours import Contours, find_cts, write_contours
from hnfed.predict.dicom_references import read_headers

TURNED, _ = np.linalg.qr(np.array([[1.0, 0.12, 0.0], [-0.12, 1.0, 0.07], [0.0, -0.07, 1.0]]))
ENHANCED, SEG = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.66.4"
GRIDS = [
    Geometry((8, 24, 20), (2.5, 2.0, 1.5), (-15.0, 7.25, 100.0)),
    Geometry((8, 24, 20), (2.5, 2.0, 1.5), (-15.0, 7.25, 100.0), tuple(TURNED.ravel())),
]
GRID = GRIDS[0]


def picture() -> np.ndarray:
    values = np.random.default_rng(0).integers(-1000, 1400, GRID.size).astype(np.int16)
    values[:, :3] = -1000
    return values


def item(**fields: Any) -> list[Any]:
    one = Dataset()
    for name, value in fields.items():
        setattr(one, name, value)
    return [one]


def place(geometry: Geometry, z: float, y: float = 0, x: float = 0) -> list[str]:
    matrix = np.array(geometry.direction).reshape(3, 3)
    step = np.array(geometry.spacing_mm[::-1]) * (x, y, z)
    return [f"{v:.9g}" for v in np.array(geometry.origin_mm) + matrix @ step]


def groups(data: Any, geometry: Geometry, **more: Any) -> None:
    matrix = np.array(geometry.direction).reshape(3, 3)
    shared = item(
        PlaneOrientationSequence=item(
            ImageOrientationPatient=[f"{v:.9f}" for v in (*matrix[:, 0], *matrix[:, 1])]
        ),
        PixelMeasuresSequence=item(PixelSpacing=list(geometry.spacing_mm[1:])),
        **more,
    )
    data.SharedFunctionalGroupsSequence = shared


def blank(kind: str, modality: str, series: str) -> Any:
    meta: Any = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, uid_of(series)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data: Any = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = kind, uid_of(series)
    data.Modality, data.PatientID = modality, "X1"
    data.StudyInstanceUID, data.SeriesInstanceUID = uid_of("X1"), uid_of("X1", series)
    data.FrameOfReferenceUID = uid_of("X1", "f")
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    return data


def enhanced(
    path: Path,
    image: np.ndarray,
    geometry: Geometry,
    *,
    order: Sequence[int] = tuple(range(8)),
    slope: float = 1.0,
    kind: str = ENHANCED,
    packed: bool = False,
    change: Any = lambda data: None,
) -> None:
    """A whole scan in one file, its frames in any order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = blank(kind, "CT", "s")
    rescale = item(RescaleIntercept=-1024, RescaleSlope=slope)
    groups(data, geometry, PixelValueTransformationSequence=rescale)
    data.NumberOfFrames, (_, data.Rows, data.Columns) = len(order), image.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    frames = []
    for level in order:
        where = item(ImagePositionPatient=place(geometry, level))
        frames += item(PlanePositionSequence=where)
    data.PerFrameFunctionalGroupsSequence = frames
    stored = np.rint((image[list(order)].astype(float) + 1024) / slope).astype("<i2")
    data.PixelData = stored.tobytes()
    data["PixelData"].VR = "OW"
    change(data)
    if packed:
        data.compress(RLELossless, generate_instance_uid=False)
    data.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("geometry", GRIDS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [ENHANCED, "1.2.840.10008.5.1.4.1.1.2.2"])
def test_an_enhanced_ct_is_the_same_volume(
    tmp_path: Path, geometry: Geometry, packed: bool, kind: str
) -> None:
    order = (3, 0, 1, 7, 2, 6, 5, 4)
    enhanced(tmp_path / "p" / "ct", picture(), geometry, order=order, kind=kind, packed=packed)
    for archive in (open_archive(tmp_path), find_cts(tmp_path / "p")):
        read, grid = read_image_of(archive, archive.cases[0])
        np.testing.assert_array_equal(read, picture())
        assert read.dtype == np.int16
        assert geometry.close_to(grid, 1e-4)
        assert archive.findings == ()


def test_contours_are_drawn_on_it(tmp_path: Path) -> None:
    enhanced(tmp_path / "p" / "ct", picture(), GRID)
    ring = [(-15.0 + 1.5 * x, 7.25 + 2.0 * y) for x, y in ((4.5, 4.5), (12.5, 4.5), (12.5, 12.5),
                                                           (4.5, 12.5))]  # fmt: skip
    contours = [np.array([(x, y, 100 + 2.5 * z) for x, y in ring]) for z in range(2, 6)]
    Structures({"Brainstem": contours}).write(tmp_path / "p" / "rs")
    archive = open_archive(tmp_path)
    volume, findings = read_case(archive, archive.cases[0], ["Brainstem"])
    expected = np.zeros(GRID.size, dtype=bool)
    expected[2:6, 5:13, 5:13] = True
    np.testing.assert_array_equal(volume.masks["Brainstem"], expected)
    assert findings == ()
    with pytest.raises(CaseError, match="multi-frame"):
        read_headers(archive.cases[0].files, volume.geometry)


def test_a_slope_that_is_no_whole_number(tmp_path: Path) -> None:
    enhanced(tmp_path / "p" / "ct", picture(), GRID, slope=0.37)
    archive = open_archive(tmp_path)
    read, _ = read_image_of(archive, archive.cases[0])
    assert read.dtype == np.float32
    assert np.abs(read - picture()).max() <= 0.19


def no_place(data: Any) -> None:
    del data.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence


def no_orientation(data: Any) -> None:
    shared = data.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = None


def too_few(data: Any) -> None:
    del data.PerFrameFunctionalGroupsSequence[3]


def twice(data: Any) -> None:
    frames = data.PerFrameFunctionalGroupsSequence
    frames[3] = frames[2]


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (no_place, "E_IMAGE_GEOMETRY", r"ImagePositionPatient \(0020,0032\) is missing"),
        (no_orientation, "E_IMAGE_GEOMETRY", "ImageOrientationPatient .* it is empty"),
        (too_few, "E_IMAGE_SHAPE", "places for 7"),
        (twice, "E_SLICES_DOUBLED", "1 slices lie"),
    ],
)
def test_frames_without_a_place_are_refused(
    tmp_path: Path, change: Any, code: str, word: str
) -> None:
    enhanced(tmp_path / "p" / "ct", picture(), GRID, change=change)
    archive = open_archive(tmp_path)
    with pytest.raises(CaseError, match=word) as error:
        read_image_of(archive, archive.cases[0])
    assert error.value.code == code


def segmentation(
    path: Path,
    masks: dict[str, np.ndarray],
    geometry: Geometry,
    *,
    kind: str = "BINARY",
    corner: tuple[int, int] = (0, 0),
    change: Any = lambda data: None,
) -> None:
    """A DICOM SEG: a frame for each slice of each segment; `corner`: where its frames begin."""
    data = blank(SEG, "SEG", "seg")
    groups(data, geometry)
    data.SegmentationType, data.ContentLabel = kind, "DRAWN"
    data.ReferencedSeriesSequence = item(SeriesInstanceUID=uid_of("X1", "s"))
    segments, frames, planes = [], [], []
    for number, (name, mask) in enumerate(masks.items(), start=1):
        segments += item(SegmentNumber=number, SegmentLabel=name)
        for level in np.flatnonzero(mask.any(axis=(1, 2))):
            which = item(ReferencedSegmentNumber=number)
            where = item(ImagePositionPatient=place(geometry, level, *corner))
            frames += item(PlanePositionSequence=where, SegmentIdentificationSequence=which)
            planes.append(mask[level, corner[0] :, corner[1] :])
    data.SegmentSequence, data.PerFrameFunctionalGroupsSequence = segments, frames
    pixels = np.stack(planes)
    data.NumberOfFrames, data.Rows, data.Columns = pixels.shape
    bits = 1 if kind == "BINARY" else 8
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit, data.PixelRepresentation = bits - 1, 0
    packed = np.packbits(pixels.ravel(), bitorder="little") if bits == 1 else pixels.astype("u1")
    raw = packed.tobytes()
    data.PixelData = raw + b"\0" * (len(raw) % 2)
    data["PixelData"].VR = "OB"
    change(data)
    data.save_as(path, enforce_file_format=True)


def masks() -> dict[str, np.ndarray]:
    found = {name: np.zeros(GRID.size, dtype=bool) for name in ("Brainstem", "Parotid_L")}
    found["Brainstem"][2:6, 8:14, 5:11] = True
    found["Parotid_L"][3:5, 10:18, 9:16] = True
    return found


@pytest.mark.parametrize("geometry", GRIDS)
@pytest.mark.parametrize("corner", [(0, 0), (7, 4)])
def test_a_segmentation_is_read_voxel_for_voxel(
    tmp_path: Path, geometry: Geometry, corner: tuple[int, int]
) -> None:
    Series(picture(), geometry).write(tmp_path / "p")
    segmentation(tmp_path / "p" / "seg", masks(), geometry, corner=corner)
    archive = open_archive(tmp_path)
    volume, findings = read_case(archive, archive.cases[0], ["Brainstem", "Parotid_L"])
    assert findings == archive.findings == ()
    for name, mask in masks().items():
        np.testing.assert_array_equal(volume.masks[name], mask)


def test_what_predict_writes_as_seg_is_read_back(tmp_path: Path) -> None:
    Series(picture(), GRID).write(tmp_path / "p")
    archive = open_archive(tmp_path)
    labels = masks()["Brainstem"].astype(np.uint8)
    headers = read_headers(archive.cases[0].files, GRID)
    drawn = Contours("p", labels, ["Brainstem"], GRID, headers=headers)
    write_contours(tmp_path, drawn, ["dicomseg"])
    archive = open_archive(tmp_path)
    volume, _ = read_case(archive, archive.cases[0], ["Brainstem"])
    np.testing.assert_array_equal(volume.masks["Brainstem"], masks()["Brainstem"])


def test_a_structure_set_comes_before_a_segmentation(tmp_path: Path) -> None:
    Series(picture(), GRID).write(tmp_path / "p")
    segmentation(tmp_path / "p" / "seg", masks(), GRID)
    ring = np.array([(0.0, 20, 105), (9, 20, 105), (9, 40, 105), (0, 40, 105)])
    Structures({"Brainstem": [ring]}).write(tmp_path / "p" / "rs")
    archive = open_archive(tmp_path)
    assert archive.cases[0].structures["Brainstem"].name == "rs"
    assert [f.code for f in archive.findings] == ["W_STRUCTURE_SET_SECOND"]


def between_slices(data: Any) -> None:
    for frame in data.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[2] += 1.0


def above(data: Any) -> None:
    for frame in data.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[2] += 25.0


def coarser(data: Any) -> None:
    measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = [2.2, 1.5]


def unplaced(data: Any) -> None:
    del data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


@pytest.mark.parametrize("change", [between_slices, above, coarser, unplaced])
def test_a_segmentation_off_the_grid_is_left_out(tmp_path: Path, change: Any) -> None:
    Series(picture(), GRID).write(tmp_path / "p")
    segmentation(tmp_path / "p" / "seg", masks(), GRID, change=change)
    archive = open_archive(tmp_path)
    volume, findings = read_case(archive, archive.cases[0], ["Brainstem", "Parotid_L"])
    assert "Brainstem" not in volume.masks
    assert findings[0].code == "E_LABEL_GRID"


def test_probabilities_are_no_mask(tmp_path: Path) -> None:
    Series(picture(), GRID).write(tmp_path / "p")
    segmentation(tmp_path / "p" / "seg", masks(), GRID, kind="FRACTIONAL")
    archive = open_archive(tmp_path)
    _, findings = read_case(archive, archive.cases[0], ["Brainstem"])
    assert [f.code for f in findings] == ["E_LABEL_VALUES"]


def test_a_damaged_segmentation_is_told(tmp_path: Path) -> None:
    def damaged(data: Any) -> None:
        data.PixelData = data.PixelData[:20]

    Series(picture(), GRID).write(tmp_path / "p")
    segmentation(tmp_path / "p" / "seg", masks(), GRID, change=damaged)
    archive = open_archive(tmp_path)
    _, findings = read_case(archive, archive.cases[0], ["Brainstem"])
    assert [f.code for f in findings] == ["E_LABEL_UNREADABLE"]
