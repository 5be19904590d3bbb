from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest

from benchmarks.dicom_example import Series, uid_of
from core.archives.archive import open_archive, read_case
from core.data.geometry import Geometry
from core.errors import CaseError
from hnfed.predict.dicom_references import read_headers
from hnfed.predict.dicomseg_write import write_dicomseg
from hnfed.predict.rtstruct_write import Drawn, write_rtstruct

TURNED, _ = np.linalg.qr(np.array([[1.0, 0.12, 0.0], [-0.12, 1.0, 0.07], [0.0, -0.07, 1.0]]))
GRID = Geometry((7, 20, 16), (2.5, 1.3, 1.1), (-31.7, 12.3, 99.1), tuple(TURNED.ravel()))


@pytest.fixture
def source(tmp_path: Path) -> list[Any]:
    image = np.random.default_rng(0).integers(-1000, 1400, GRID.size).astype(np.int16)
    Series(image, GRID, name=lambda z: f"CT{9 - z}.dcm").write(tmp_path / "p")
    (ref,) = open_archive(tmp_path).cases
    return read_headers(ref.files, GRID)


def blobs() -> list[Drawn]:
    rng = np.random.default_rng(1)
    masks = [rng.random(GRID.size) < share for share in (0.3, 0.6)]
    masks[0][0] = masks[1][5:] = False
    return [
        Drawn("Parotid_L", masks[0], (0, 158, 115), "uncertain at z = 3.0 mm"),
        Drawn("Brainstem", masks[1], (230, 159, 0)),
        Drawn("Larynx", np.zeros(GRID.size, dtype=bool), (1, 2, 3)),
    ]


def test_masks_come_back_voxel_for_voxel(tmp_path: Path, source: list[Any]) -> None:
    write_rtstruct(tmp_path / "p" / "RS.dcm", blobs(), GRID, source, "phase pretrain")
    archive = open_archive(tmp_path)
    (ref,) = archive.cases
    volume, findings = read_case(archive, ref, ["Parotid_L", "Brainstem", "Larynx"])
    assert (findings, archive.findings) == ((), ())
    assert volume.annotated == {"Parotid_L", "Brainstem"}, "an organ not found is not written"
    for one in blobs()[:2]:
        np.testing.assert_array_equal(volume.masks[one.name], one.mask)


def test_what_a_planning_system_needs(tmp_path: Path, source: list[Any]) -> None:
    write_rtstruct(tmp_path / "RS.dcm", blobs(), GRID, source, "phase pretrain, round 3")
    data = pydicom.dcmread(tmp_path / "RS.dcm")
    assert (data.Modality, data.ApprovalStatus) == ("RTSTRUCT", "UNAPPROVED")
    assert (data.PatientID, data.StudyInstanceUID) == ("X1", uid_of("X1"))
    assert data.FrameOfReferenceUID == source[0].FrameOfReferenceUID
    assert data.SOPInstanceUID == data.file_meta.MediaStorageSOPInstanceUID
    assert "round 3" in data.StructureSetDescription
    assert data.Manufacturer == "hnfed"
    (frame,) = data.ReferencedFrameOfReferenceSequence
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == uid_of("X1", "s")
    assert [i.ReferencedSOPInstanceUID for i in series.ContourImageSequence] == [
        uid_of("X1", "s", str(z)) for z in range(7)
    ]
    assert [r.ROIName for r in data.StructureSetROISequence] == ["Parotid_L", "Brainstem"]
    assert "uncertain" in data.StructureSetROISequence[0].ROIDescription
    first = data.ROIContourSequence[0]
    assert list(first.ROIDisplayColor) == [0, 158, 115]
    contour = first.ContourSequence[0]
    (image,) = contour.ContourImageSequence
    assert image.ReferencedSOPInstanceUID == uid_of("X1", "s", "1"), "slice 0 has no voxel of it"
    assert contour.ContourGeometricType == "CLOSED_PLANAR"
    assert len(contour.ContourData) == 3 * contour.NumberOfContourPoints
    assert {o.RTROIInterpretedType for o in data.RTROIObservationsSequence} == {"ORGAN"}


def test_segmentation_holds_the_voxels(tmp_path: Path, source: list[Any]) -> None:
    unknown = Drawn("Tooth_12", blobs()[1].mask, (200, 200, 200))
    write_dicomseg(tmp_path / "SEG.dcm", [*blobs(), unknown], source, "phase pretrain")
    data = highdicom.seg.segread(tmp_path / "SEG.dcm")
    told = [data.get_segment_description(i) for i in data.segment_numbers]
    assert [d.segment_label for d in told] == ["Parotid_L", "Brainstem", "Tooth_12"]
    kind = told[0].SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("45289007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert told[2].segmented_property_type.scheme_designator == "99HNFED"
    assert data.PatientID == "X1"
    uids = [str(header.SOPInstanceUID) for header in source]
    pixels = data.get_pixels_by_source_instance(uids, combine_segments=False)
    for number, one in enumerate([*blobs()[:2], unknown]):
        np.testing.assert_array_equal(pixels[..., number].astype(bool), one.mask)


def test_a_segmentation_without_a_voxel_is_refused(tmp_path: Path, source: list[Any]) -> None:
    with pytest.raises(CaseError, match="without a voxel"):
        write_dicomseg(tmp_path / "SEG.dcm", blobs()[2:], source, "")
    assert not list(tmp_path.glob("*SEG*"))


def test_headers_that_cannot_be_referred_to(tmp_path: Path) -> None:
    def anonymous(level: int, data: Any) -> None:
        del data.SOPInstanceUID

    image = np.zeros(GRID.size, dtype=np.int16)
    Series(image, GRID, change=anonymous).write(tmp_path / "p")
    with pytest.raises(CaseError) as error:
        read_headers(sorted((tmp_path / "p").iterdir()), GRID)
    assert error.value.code == "E_IMAGE_UNREADABLE"
