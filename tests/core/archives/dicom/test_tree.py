"""A series is patient, study and series UID; two patients never meet in one volume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from benchmarks.dicom_example import Series, Structures, uid_of
from core.archives.archive import open_archive, read_case, read_image_of
from core.data.geometry import Geometry
from core.errors import UserError
from hnfed.predict.contours import find_cts

GRID = Geometry((8, 24, 20), (2.5, 2.0, 1.5), (-15.0, 7.25, 100.0))


def picture(seed: int, slices: int = 8) -> np.ndarray:
    values = np.random.default_rng(seed).integers(-1000, 1400, (slices, 24, 20)).astype(np.int16)
    values[:, :3] = -1000
    return values


def numbered(patient: str, study: str | None = None, name: str = "") -> Any:
    """Series and images bear running numbers, the same for every patient."""

    def change(level: int, data: Any) -> None:
        data.PatientID, data.PatientName = patient, name
        data.StudyInstanceUID = uid_of(study or patient)
        data.SeriesInstanceUID = "1.2.3"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{level + 1}"

    return change


def square(level: range = range(2, 6)) -> Any:
    xs, ys = (-15.0 + 1.5 * 4.5, -15.0 + 1.5 * 12.5), (7.25 + 9.0, 7.25 + 25.0)
    corners = [(xs[0], ys[0]), (xs[1], ys[0]), (xs[1], ys[1]), (xs[0], ys[1])]
    return [np.array([(x, y, 100 + 2.5 * z) for x, y in corners]) for z in level]


def all_codes(root: Path) -> list[str]:
    return sorted(f.code for f in open_archive(root, empty=True).findings)


@pytest.mark.parametrize("study", [None, "one for all"])
def test_patients_that_share_uids_are_cases_of_their_own(tmp_path: Path, study: str | None) -> None:
    """The second scan is longer: its end would lie on top of the first patient's."""
    first, second = picture(1), picture(2, 10)
    longer = Geometry((10, 24, 20), GRID.spacing_mm, GRID.origin_mm)
    Series(first, GRID, change=numbered("A", study)).write(tmp_path / "A")
    Series(second, longer, change=numbered("B", study)).write(tmp_path / "B")
    archive = open_archive(tmp_path)
    read = {ref.case: read_image_of(archive, ref)[0] for ref in archive.cases}
    np.testing.assert_array_equal(read["A"], first)
    np.testing.assert_array_equal(read["B"], second)
    assert all_codes(tmp_path) == []


def test_contours_go_to_their_own_patient_where_uids_are_shared(tmp_path: Path) -> None:
    for patient, seed in (("A", 1), ("B", 2)):
        Series(picture(seed), GRID, change=numbered(patient)).write(tmp_path / patient)

    def of_b(data: Any) -> None:
        data.PatientID, data.StudyInstanceUID = "B", uid_of("B")
        listed = data.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        listed.RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"

    Structures({"Brainstem": square()}, change=of_b).write(tmp_path / "rs")
    archive = open_archive(tmp_path)
    assert {ref.case: sorted(ref.structures) for ref in archive.cases} == {
        "A": [],
        "B": ["Brainstem"],
    }

    def of_nobody(data: Any) -> None:
        of_b(data)
        data.PatientID, data.StudyInstanceUID = "", "9.9"

    Structures({"Brainstem": square()}, change=of_nobody).write(tmp_path / "rs")
    archive = open_archive(tmp_path)
    assert not any(ref.structures for ref in archive.cases)
    (finding,) = archive.findings
    assert finding.code == "W_STRUCTURE_SET_ALONE"
    assert "several patients" in finding.message


def test_series_without_a_uid_are_told_apart(tmp_path: Path) -> None:
    def without(level: int, data: Any) -> None:
        del data.SeriesInstanceUID

    pictures = {name: picture(seed) for seed, name in enumerate("AB")}
    for name, values in pictures.items():
        Series(values, GRID, patient=name, change=without).write(tmp_path / name)

    def nobody(level: int, data: Any) -> None:
        without(level, data)
        data.PatientID = data.PatientName = data.StudyInstanceUID = ""

    for name in "CD":
        pictures[name] = picture(ord(name))
        Series(pictures[name], GRID, change=nobody).write(tmp_path / name)
    archive = open_archive(tmp_path)
    assert len(archive.cases) == 4
    for ref in archive.cases:
        np.testing.assert_array_equal(read_image_of(archive, ref)[0], pictures[ref.case])


def test_a_scan_that_two_studies_tear_apart_is_told(tmp_path: Path) -> None:
    def half(level: int, data: Any) -> None:
        if level >= 4:
            data.StudyInstanceUID = uid_of("other study")

    Series(picture(1), GRID, change=half).write(tmp_path / "p")
    archive = open_archive(tmp_path)
    assert len(archive.cases) == 2
    assert [f.code for f in archive.findings] == ["W_SERIES_TORN"] * 2
    assert "(4 slices here) is that of 4 slices of another study" in archive.findings[0].message


def test_a_copy_has_equal_pixels_however_they_are_packed(tmp_path: Path) -> None:
    values = picture(1)
    Series(values, GRID).write(tmp_path / "p")
    shutil.copytree(tmp_path / "p", tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        data = pydicom.dcmread(path)
        data.compress(RLELossless, generate_instance_uid=False)
        data.save_as(path)
    archive = open_archive(tmp_path)
    (ref,) = archive.cases
    np.testing.assert_array_equal(read_image_of(archive, ref)[0], values)
    assert [f.code for f in archive.findings] == ["W_SLICE_COPIES"]


def other_pixels(path: Path) -> None:
    data = pydicom.dcmread(path)
    data.PixelData = data.PixelData[::-1]
    data.save_as(path)


def other_name(path: Path) -> None:
    data = pydicom.dcmread(path)
    data.PatientName, data.SOPInstanceUID = "Somebody^Else", data.SOPInstanceUID + ".7"
    data.save_as(path)


def other_birthday(path: Path) -> None:
    data = pydicom.dcmread(path)
    data.PatientBirthDate = "19700101"
    data.save_as(path)
    first = path.parent.parent / "p" / "CT00.dcm"
    data = pydicom.dcmread(first)
    data.PatientBirthDate = "19500101"
    data.save_as(first)


def other_place(path: Path) -> None:
    data = pydicom.dcmread(path)
    data.ImagePositionPatient[2] += 1.25
    data.save_as(path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (other_pixels, "one UID and place, and differ"),
        (other_name, "different values of PatientName"),
        (other_birthday, "different values of PatientBirthDate"),
        (other_place, "different folders bear one UID"),
    ],
)
def test_images_of_two_scans_are_no_series(tmp_path: Path, change: Any, word: str) -> None:
    Series(picture(1), GRID).write(tmp_path / "p")
    shutil.copytree(tmp_path / "p", tmp_path / "q")
    for path in (tmp_path / "q").iterdir():
        change(path)
    archive = open_archive(tmp_path, empty=True)
    assert archive.cases == ()
    (finding,) = archive.findings
    assert (finding.code, finding.severity) == ("E_SERIES_MIXED", "error")
    assert word in finding.message
    with pytest.raises(UserError, match=word):
        open_archive(tmp_path)
    with pytest.raises(UserError, match=word):
        find_cts(tmp_path)


@pytest.mark.parametrize("tag", ["StudyInstanceUID", "PatientID"])
def test_an_id_for_every_image_is_named(tmp_path: Path, tag: str) -> None:
    def scattered(level: int, data: Any) -> None:
        setattr(data, tag, f"1.2.{level}")

    Series(picture(1), GRID, change=scattered).write(tmp_path / "p")
    (finding,) = open_archive(tmp_path, empty=True).findings
    assert finding.code == "E_SERIES_MIXED"
    assert "8 images" in finding.message
    assert "another patient or study" in finding.message


@pytest.mark.parametrize("tag", ["StudyInstanceUID", "PatientID"])
def test_an_id_that_some_images_lost_does_not_cut_a_scan_in_two(tmp_path: Path, tag: str) -> None:
    def lost(level: int, data: Any) -> None:
        if level > 5:
            setattr(data, tag, "")

    Series(picture(1), GRID, change=lost).write(tmp_path / "p")
    (finding,) = open_archive(tmp_path, empty=True).findings
    assert finding.code == "E_SERIES_MIXED"
    assert "8 images" in finding.message
    assert "name no patient, or no study" in finding.message


def test_a_modality_in_small_letters(tmp_path: Path) -> None:
    def small(level: int, data: Any) -> None:
        data.Modality = "ct"

    Series(picture(1), GRID, change=small).write(tmp_path / "p")
    assert len(open_archive(tmp_path).cases) == 1


def test_a_sound_series_beside_a_mixed_one_is_read(tmp_path: Path) -> None:
    Series(picture(1), GRID).write(tmp_path / "p")
    shutil.copytree(tmp_path / "p", tmp_path / "q")
    other_pixels(tmp_path / "q" / "CT03.dcm")
    Series(picture(3), GRID, patient="X3").write(tmp_path / "r")
    archive = open_archive(tmp_path)
    assert [ref.case for ref in archive.cases] == ["r"]
    assert [f.code for f in archive.findings] == ["E_SERIES_MIXED"]


def mistaken(data: Any) -> None:
    data.PatientID = "X2"


def remapped(data: Any) -> None:
    item = data.ReferencedFrameOfReferenceSequence[0]
    item.FrameOfReferenceUID = "9.1"
    item.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID = "9.2"
    data.PatientID = "X1"


def unreferred(data: Any) -> None:
    del data.ReferencedFrameOfReferenceSequence
    for roi in data.StructureSetROISequence:
        del roi.ReferencedFrameOfReferenceUID


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (mistaken, "its PatientID is another than the CT's"),
        (remapped, "no CT here has the UIDs"),
        (unreferred, "refers to no series and to no frame of reference"),
    ],
)
def test_why_a_structure_set_belongs_to_no_ct_is_said_once(
    tmp_path: Path, change: Any, word: str
) -> None:
    from hnfed.check.archive_check import check_archive

    Series(picture(1), GRID).write(tmp_path / "p")
    Structures({"Brainstem": square()}, change=change).write(tmp_path / "p" / "rs")
    archive = open_archive(tmp_path)
    report = check_archive(archive, secret=None)
    errors = [f for f in report.findings if f.severity == "error"]
    assert [(f.code, f.case) for f in errors] == [("W_STRUCTURE_SET_ALONE", "p")]
    assert word in errors[0].message
    assert report.usable == 0


def test_images_that_are_no_ct_are_named_with_their_modality(tmp_path: Path) -> None:
    from hnfed.check.archive_check import check_archive

    def mr(level: int, data: Any) -> None:
        data.Modality = "MR"

    Series(picture(1), GRID, change=mr).write(tmp_path / "p")
    Structures({"Brainstem": square()}).write(tmp_path / "p" / "rs")
    archive = open_archive(tmp_path, empty=True)
    report = check_archive(archive)
    assert [f.code for f in report.findings] == ["E_NO_CT"]
    assert "8 of modality MR" in report.findings[0].message
    for opened in (open_archive, find_cts):
        with pytest.raises(UserError, match="8 of modality MR") as error:
            opened(tmp_path)
        assert "export the CT" in error.value.remedy


def test_contours_on_an_mr_beside_the_ct_are_no_error(tmp_path: Path) -> None:
    def mr(level: int, data: Any) -> None:
        data.Modality = "MR"

    Series(picture(1), GRID).write(tmp_path / "ct")
    Structures({"Brainstem": square()}).write(tmp_path / "ct" / "rs")
    Series(picture(2), GRID, series="m", frame="m", change=mr).write(tmp_path / "mr")
    Structures({"Brainstem": square()}, series="m", frame="m", label="on MR").write(
        tmp_path / "mr" / "rs"
    )
    archive = open_archive(tmp_path)
    (ref,) = archive.cases
    assert read_case(archive, ref, ["Brainstem"])[0].annotated == {"Brainstem"}
    (finding,) = archive.findings
    assert (finding.code, finding.severity) == ("W_STRUCTURE_SET_ALONE", "warning")
    assert "modality MR" in finding.message
