from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.dicom_example import Series, Structures
from core.archives.archive import open_archive, read_case, read_image_of
from core.archives.dicom.rtstruct import draw, read_structure_set
from core.data.geometry import Geometry
from core.errors import CaseError, UserError

GRID = Geometry((8, 24, 20), (2.5, 2.0, 1.5), (-15.0, 7.25, 100.0))
TURNED, _ = np.linalg.qr(np.array([[1.0, 0.12, 0.0], [-0.12, 1.0, 0.07], [0.0, -0.07, 1.0]]))
OBLIQUE = Geometry((8, 24, 20), (2.5, 2.0, 1.5), (-15.0, 7.25, 100.0), tuple(TURNED.ravel()))


@pytest.fixture
def image() -> np.ndarray:
    values = np.random.default_rng(0).integers(-1000, 1400, GRID.size).astype(np.int16)
    values[:, :3] = -1000
    return values


def box(geometry: Geometry, low: float = 4.5, high: float = 12.5, levels: Any = range(2, 6)) -> Any:
    """Square contours in mm around pixels low to high of `levels`."""
    spacing = np.array(geometry.spacing_mm[::-1])
    matrix = np.array(geometry.direction).reshape(3, 3) * spacing
    corners = [(low, low), (high, low), (high, high), (low, high)]
    return [
        np.array([(x, y, z) for x, y in corners]) @ matrix.T + np.array(geometry.origin_mm)
        for z in levels
    ]


def only_case(root: Path, **options: Any) -> Any:
    archive = open_archive(root, **options)
    assert archive.format == "dicom"
    assert len(archive.cases) == 1
    return archive, archive.cases[0]


def codes(archive: Any) -> list[str]:
    return sorted(f.code for f in archive.findings)


@pytest.mark.parametrize("geometry", [GRID, OBLIQUE])
@pytest.mark.parametrize("implicit", [False, True])
def test_voxels_grid_and_mask_come_back(
    tmp_path: Path, image: np.ndarray, geometry: Geometry, implicit: bool
) -> None:
    names = np.random.default_rng(1).permutation(8)
    Series(image, geometry, implicit=implicit, name=lambda z: f"I{names[z]:07d}").write(
        tmp_path / "p"
    )
    Structures({"Hirnstamm": box(geometry)}, implicit=implicit).write(tmp_path / "p" / "I9")
    archive, ref = only_case(tmp_path)
    volume, findings = read_case(archive, ref, ["Brainstem", "Parotid_L"])
    assert (ref.case, findings, archive.findings) == ("p", (), ())
    np.testing.assert_array_equal(volume.image, image)
    assert volume.image.dtype == np.int16
    assert geometry.close_to(volume.geometry, 1e-4)
    expected = np.zeros(GRID.size, dtype=bool)
    expected[2:6, 5:13, 5:13] = True
    assert volume.annotated == {"Brainstem"}
    np.testing.assert_array_equal(volume.masks["Brainstem"], expected)


def test_a_stack_written_from_the_top_is_the_same_volume(tmp_path: Path, image: np.ndarray) -> None:
    down = Geometry(
        GRID.size, GRID.spacing_mm, (-15.0, 7.25, 117.5), (1, 0, 0, 0, 1, 0, 0, 0, -1.0)
    )
    Series(image[::-1].copy(), down).write(tmp_path / "p")
    archive, ref = only_case(tmp_path)
    read, geometry = read_image_of(archive, ref)
    np.testing.assert_array_equal(read, image)
    assert GRID.close_to(geometry, 1e-4)


def test_every_slice_has_its_own_rescale(tmp_path: Path, image: np.ndarray) -> None:
    Series(image, GRID, rescale=lambda z: (1.0, -1024.0 - z) if z % 2 else (0.5, 0.0)).write(
        tmp_path / "p"
    )
    archive, ref = only_case(tmp_path)
    read, _ = read_image_of(archive, ref)
    np.testing.assert_array_equal(read, image)
    assert read.dtype == np.int16


@pytest.mark.parametrize(
    ("lost", "code", "word"),
    [([3], "E_SLICES_MISSING", r"1 slices are missing, after 105.00 mm"), ([0], "", ""),
     ([2, 3, 5], "E_SLICES_MISSING", "3 slices")],
)  # fmt: skip
def test_missing_slices(
    tmp_path: Path, image: np.ndarray, lost: list[int], code: str, word: str
) -> None:
    Series(image, GRID).write(tmp_path / "p")
    for level in lost:
        (tmp_path / "p" / f"CT{level:02d}.dcm").unlink()
    archive, ref = only_case(tmp_path)
    if not code:
        assert read_image_of(archive, ref)[0].shape[0] == 7
        return
    with pytest.raises(CaseError, match=word) as error:
        read_image_of(archive, ref)
    assert error.value.code == code


def moved(level: int, by: Any) -> Any:
    def change(z: int, data: Any) -> None:
        if z == level:
            data.ImagePositionPatient = [v + b for v, b in zip(
                map(float, data.ImagePositionPatient), by, strict=True)]  # fmt: skip

    return change


def tilted(level: int, data: Any) -> None:
    data.ImagePositionPatient = [-15.0, 7.25 + level * 0.5, 100 + 2.5 * level]


def other_size(level: int, data: Any) -> None:
    if level == 2:
        data.Rows, data.PixelData = 12, data.PixelData[: 12 * 20 * 2]


def other_spacing(level: int, data: Any) -> None:
    if level == 2:
        data.PixelSpacing = [2.0, 1.6]


def nowhere(level: int, data: Any) -> None:
    if level == 2:
        del data.ImagePositionPatient


def frames(level: int, data: Any) -> None:
    data.NumberOfFrames = 2
    data.PixelData = data.PixelData * 2
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (moved(4, (0, 0, -2.5)), "E_SLICES_DOUBLED", "1 slices lie .* at 107.50 mm"),
        (moved(4, (0, 0, 1.0)), "E_IMAGE_GEOMETRY", "1.5 to 3.5 mm apart, uneven after 107.50"),
        (tilted, "E_IMAGE_GEOMETRY", "gantry tilt of 11.3 degrees"),
        (other_size, "E_IMAGE_GEOMETRY", "1 of 8 slices have another size, at 105.00 mm"),
        (other_spacing, "E_IMAGE_GEOMETRY", "another pixel spacing"),
        (nowhere, "E_IMAGE_GEOMETRY", "0020,0032"),
        (frames, "E_IMAGE_SHAPE", "no CT slice"),
    ],
)
def test_series_that_are_no_volume_are_refused(
    tmp_path: Path, image: np.ndarray, change: Any, code: str, word: str
) -> None:
    Series(image, GRID, change=change).write(tmp_path / "p")
    archive, ref = only_case(tmp_path)
    with pytest.raises(CaseError, match=word) as error:
        read_image_of(archive, ref)
    assert error.value.code == code
    assert str(tmp_path) not in str(error.value)


def test_a_truncated_slice_is_told_and_missing(tmp_path: Path, image: np.ndarray) -> None:
    Series(image, GRID).write(tmp_path / "p")
    path = tmp_path / "p" / "CT03.dcm"
    path.write_bytes(path.read_bytes()[:-300])
    archive, ref = only_case(tmp_path)
    assert codes(archive) == ["W_DICOM_UNREADABLE"]
    with pytest.raises(CaseError, match=r"after 105\.00 mm") as error:
        read_image_of(archive, ref)
    assert error.value.code == "E_SLICES_MISSING"


def test_files_without_preamble_or_suffix_and_in_several_folders(
    tmp_path: Path, image: np.ndarray
) -> None:
    Series(image, GRID, implicit=True, name=lambda z: f"{z % 2}_{z}").write(tmp_path / "p")
    for z in range(8):
        source = tmp_path / "p" / f"{z % 2}_{z}"
        target = tmp_path / "p" / f"part{z % 2}" / str(z)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes()[132:])
        source.unlink()
    (tmp_path / "p" / "VERSION.TXT").write_text("not DICOM")
    (tmp_path / "p" / "letter.dcm").write_text("not DICOM either")
    archive, ref = only_case(tmp_path)
    assert ref.case == "p"
    np.testing.assert_array_equal(read_image_of(archive, ref)[0], image)


def test_of_two_series_the_one_with_structures_is_read(tmp_path: Path, image: np.ndarray) -> None:
    Series(image[:4], Geometry((4, 24, 20), *_rest(GRID))).write(tmp_path / "p")
    Series(image, GRID, series="other", number=2, name=lambda z: f"other{z}.dcm").write(
        tmp_path / "p"
    )
    Structures({"Brainstem": box(GRID, levels=[1, 2])}).write(tmp_path / "p" / "rs")
    archive, ref = only_case(tmp_path)
    assert len(ref.files) == 4
    assert codes(archive) == ["W_SERIES_SECOND"]
    (tmp_path / "p" / "rs").unlink()
    archive, ref = only_case(tmp_path)
    assert len(ref.files) == 8, "without structures, the longest"


def _rest(geometry: Geometry) -> Any:
    return geometry.spacing_mm, geometry.origin_mm, geometry.direction


def test_a_structure_set_without_series_is_matched_by_its_frame(
    tmp_path: Path, image: np.ndarray
) -> None:
    Series(image, GRID).write(tmp_path / "a")
    Series(image, GRID, patient="X2").write(tmp_path / "b")
    Structures({"Brainstem": box(GRID)}, patient="X2", series="").write(tmp_path / "b.dcm")
    archive = open_archive(tmp_path)
    assert [set(ref.structures) for ref in archive.cases] == [set(), {"Brainstem"}]


def test_localizers_and_copies_are_counted(tmp_path: Path, image: np.ndarray) -> None:
    def localizer(level: int, data: Any) -> None:
        if level == 7:
            data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    Series(image, GRID, change=localizer).write(tmp_path / "p")
    shutil.copy(tmp_path / "p" / "CT03.dcm", tmp_path / "p" / "again.dcm")
    archive, ref = only_case(tmp_path)
    assert len(ref.files) == 7
    assert codes(archive) == ["W_LOCALIZER", "W_SLICE_COPIES"]


@pytest.mark.parametrize(
    ("first", "second", "wanted", "taken"),
    [
        ({"drawn_at": "20210101"}, {"drawn_at": "20200101"}, "", "A"),
        ({"drawn_at": "20190101"}, {"drawn_at": "20200101"}, "", "B"),
        ({"drawn_at": "20210101"}, {"drawn_at": "20200101", "approved": True}, "", "B"),
        ({"drawn_at": "20210101"}, {"drawn_at": "20200101", "approved": True}, "a", "A"),
    ],
)
def test_the_choice_of_several_structure_sets(
    tmp_path: Path, image: np.ndarray, first: Any, second: Any, wanted: str, taken: str
) -> None:
    Series(image, GRID).write(tmp_path / "p")
    Structures({"Brainstem": box(GRID)}, label="A", **first).write(tmp_path / "p" / "1")
    Structures({"Brainstem": box(GRID)}, label="B", **second).write(tmp_path / "p" / "2")
    archive, ref = only_case(tmp_path, structure_set=wanted)
    assert read_structure_set(ref.structures["Brainstem"]).label == taken
    (finding,) = archive.findings
    assert finding.code == "W_STRUCTURE_SET_SECOND"
    assert f"'{taken}' is read" in finding.message


def test_named_but_undrawn_is_not_annotated(tmp_path: Path, image: np.ndarray) -> None:
    Series(image, GRID).write(tmp_path / "p")
    rois = [("Parotid_L", []), ("Parotid Lt", box(GRID)), ("Larynx", [])]
    Structures(rois).write(tmp_path / "p" / "rs")
    archive, ref = only_case(tmp_path)
    assert dict(ref.names) == {"Parotid_L": "Parotid Lt"}
    assert codes(archive) == ["W_LABEL_ABSENT"]


def test_two_drawn_structures_of_one_name_are_ambiguous(tmp_path: Path, image: np.ndarray) -> None:
    Series(image, GRID).write(tmp_path / "p")
    rois = [("Larynx", box(GRID)), ("Larynx", box(GRID, 5.5))]
    Structures(rois).write(tmp_path / "p" / "rs")
    archive, ref = only_case(tmp_path)
    assert not ref.structures
    assert codes(archive) == ["E_LABEL_AMBIGUOUS"]
    with pytest.raises(CaseError, match="2 structures of this name"):
        draw(tmp_path / "p" / "rs", "Larynx", GRID)


def test_points_and_strays_are_counted_in_a_finding(tmp_path: Path, image: np.ndarray) -> None:
    Series(image, GRID).write(tmp_path / "p")
    contours = box(GRID)
    strays = [contours[0][:1], contours[0][:2], contours[0] + np.array([0, 0, 500.0])]
    Structures({"Brainstem": [*contours, *strays]}).write(tmp_path / "p" / "rs")
    archive, ref = only_case(tmp_path)
    volume, (finding,) = read_case(archive, ref, ["Brainstem"])
    assert volume.masks["Brainstem"].sum() == 4 * 64
    assert finding.code == "W_LABEL_CUT"
    assert "2 contours of one or two points" in finding.message
    assert "1 contours (0.5 mL) lie above or below" in finding.message


def test_a_structure_drawn_in_another_frame_is_left_out(tmp_path: Path, image: np.ndarray) -> None:
    def elsewhere(data: Any) -> None:
        data.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"

    Series(image, GRID).write(tmp_path / "p")
    rois = {"Brainstem": box(GRID), "Larynx": box(GRID)}
    Structures(rois, change=elsewhere).write(tmp_path / "p" / "rs")
    archive, ref = only_case(tmp_path)
    assert set(ref.structures) == {"Larynx"}
    assert codes(archive) == ["W_LABEL_ELSEWHERE"]


@pytest.mark.parametrize("text", [["1", "2"], ["1", "2", "x"], ["1", "2", "nan"]])
def test_coordinates_that_are_none(tmp_path: Path, image: np.ndarray, text: list[str]) -> None:
    def damage(data: Any) -> None:
        contour = data.ROIContourSequence[0].ContourSequence[0]
        contour.add_new(0x30060050, "LO", text)
        contour["ContourData"].VR = "LO"

    Series(image, GRID).write(tmp_path / "p")
    rois = {"Brainstem": box(GRID)}
    Structures(rois, change=damage).write(tmp_path / "p" / "rs")
    archive, ref = only_case(tmp_path)
    _, findings = read_case(archive, ref, ["Brainstem"])
    assert [f.code for f in findings] == ["E_LABEL_UNREADABLE"]


def test_lost_structure_sets_and_unreadable_files_are_told(
    tmp_path: Path, image: np.ndarray
) -> None:
    Series(image, GRID).write(tmp_path / "p")
    Structures({"Brainstem": box(GRID)}, patient="gone").write(tmp_path / "q" / "rs")
    (tmp_path / "p" / "x.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x10\x00\x20" * 9)
    archive, _ = only_case(tmp_path)
    assert "W_STRUCTURE_SET_ALONE" in codes(archive)
    assert "W_DICOM_UNREADABLE" in codes(archive)


def test_cases_of_one_patient_stay_together(tmp_path: Path, image: np.ndarray) -> None:
    for n in range(2):
        Series(image, GRID, series=f"s{n}").write(tmp_path / f"scan{n}")
        rois = {"Brainstem": box(GRID)}
        Structures(rois, series=f"s{n}", label=f"l{n}").write(tmp_path / f"scan{n}" / "rs")
    Series(image, GRID, patient="X2").write(tmp_path / "other")
    archive = open_archive(tmp_path)
    patients = {ref.case: ref.patient for ref in archive.cases}
    assert patients["scan0"] == patients["scan1"] != patients["other"]
    assert "X1" not in str(patients)


def test_the_remedy_names_dicom_where_nothing_is_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="RTSTRUCT"):
        open_archive(tmp_path)


def test_patients_in_one_folder_with_one_series_number(tmp_path: Path, image: np.ndarray) -> None:
    for patient in "AB":
        name = f"{patient}{{}}.dcm"
        Series(image, GRID, patient=patient, number=2, name=name.format).write(tmp_path / "flat")
        rois = {"Brainstem": box(GRID)}
        Structures(rois, patient=patient).write(tmp_path / "flat" / f"RS{patient}.dcm")
    archive = open_archive(tmp_path)
    assert len({ref.case for ref in archive.cases}) == 2
    assert len({ref.patient for ref in archive.cases}) == 2
    assert all("/" not in ref.case for ref in archive.cases)


def test_structures_of_another_patient_are_not_drawn(tmp_path: Path, image: np.ndarray) -> None:
    """An anonymiser may give everybody one frame of reference."""

    def shared(data: Any) -> None:
        data.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.2.3.4"

    def frame(level: int, data: Any) -> None:
        data.FrameOfReferenceUID = "1.2.3.4"

    Series(image, GRID, patient="A", change=frame).write(tmp_path / "A")
    rois = {"Brainstem": box(GRID)}
    Structures(rois, patient="B", change=shared).write(tmp_path / "B" / "RS.dcm")
    archive, ref = only_case(tmp_path)
    assert not ref.structures
    assert codes(archive) == ["W_STRUCTURE_SET_ALONE"]


def test_slices_shifted_sideways_are_refused(tmp_path: Path, image: np.ndarray) -> None:
    Series(image, GRID, change=moved(3, (5.0, 0, 0))).write(tmp_path / "p")
    archive, ref = only_case(tmp_path)
    with pytest.raises(CaseError, match=r"shifted sideways by up to 5\.0 mm, at 107\.50"):
        read_image_of(archive, ref)


def test_our_own_contours_and_empty_sets_are_not_preferred(
    tmp_path: Path, image: np.ndarray
) -> None:
    def ours(data: Any) -> None:
        data.Manufacturer = "hnfed"

    Series(image, GRID).write(tmp_path / "p")
    folder, rois = tmp_path / "p", {"Brainstem": box(GRID)}
    Structures(rois, label="clinical", drawn_at="20190101").write(folder / "1")
    Structures(rois, label="net", drawn_at="20260101", change=ours).write(folder / "2")
    Structures({"poi": []}, label="poi", approved=True, drawn_at="20250101").write(folder / "3")
    archive, ref = only_case(tmp_path, structure_set="nobody's")
    assert read_structure_set(ref.structures["Brainstem"]).label == "clinical"
    assert "W_STRUCTURE_SET_WANTED" in codes(archive)


def test_what_may_follow_the_pixels(tmp_path: Path, image: np.ndarray) -> None:
    Series(image, GRID).write(tmp_path / "p")
    for level, behind in ((2, b"\0" * 10), (3, b"\xfa\xff\xfa\xffSQ\0\0\0\0\0\0")):
        path = tmp_path / "p" / f"CT{level:02d}.dcm"
        path.write_bytes(path.read_bytes() + behind)
    archive, ref = only_case(tmp_path)
    assert len(ref.files) == 8
    np.testing.assert_array_equal(read_image_of(archive, ref)[0], image)


def test_empty_files_and_reused_ids_are_told(tmp_path: Path, image: np.ndarray) -> None:
    def same(level: int, data: Any) -> None:
        if level > 4:
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"

    Series(image, GRID, change=same).write(tmp_path / "p")
    (tmp_path / "p" / "CT07.dcm").write_bytes(b"")
    archive, ref = only_case(tmp_path)
    assert len(ref.files) == 7, "one id, but other places: no copies"
    assert codes(archive) == ["W_DICOM_UNREADABLE"]


def test_one_id_for_all_is_no_patient(tmp_path: Path, image: np.ndarray) -> None:
    for i in range(3):

        def study(level: int, data: Any, i: int = i) -> None:
            data.StudyInstanceUID = f"1.2.{i}"

        folder = tmp_path / f"c{i}"
        Series(image, GRID, patient="ANONYMOUS", series=f"s{i}", change=study).write(folder)
    archive = open_archive(tmp_path)
    assert {ref.patient for ref in archive.cases} == {None}
    assert codes(archive) == ["W_PATIENT_ID"] * 3
