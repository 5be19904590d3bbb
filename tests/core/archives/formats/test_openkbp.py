from pathlib import Path

import numpy as np
import pytest

from core.archives.archive import Archive, content_hash, open_archive, read_case
from core.archives.formats.openkbp import SIDE
from core.errors import CaseError, Finding

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"
SPACING = (4.0, 3.5, 2.5)  # row, column, slice
ORGANS = ("Brainstem", "Parotid_L", "Parotid_R", "SpinalCord", "Larynx")

Voxels = dict[tuple[int, int, int], float]


def index(row: int, column: int, slice_: int) -> int:
    return (row * SIDE + column) * SIDE + slice_


def write_patient(folder: Path, ct: Voxels, **masks: list[tuple[int, int, int]]) -> Path:
    folder.mkdir(parents=True)
    lines = "".join(f"{index(*at)},{value}\n" for at, value in ct.items())
    (folder / "ct.csv").write_text(",data\n" + lines)
    (folder / "voxel_dimensions.csv").write_text("".join(f"{mm:.18e}\n" for mm in SPACING))
    for name, at in masks.items():
        rows = "".join(f"{index(*v)},\n" for v in at)
        (folder / f"{name}.csv").write_text(",data\n" + rows)
    return folder


CT: Voxels = {(10, 20, 30): 1040.0, (11, 20, 30): 5000.0, (12, 20, 30): -7.0, (10, 21, 31): 0.4}


def patient(root: Path, **masks: list[tuple[int, int, int]]) -> Archive:
    write_patient(root / "provided-data" / "train-pats" / "pt_7", CT, **masks)
    return open_archive(root)


def read(archive: Archive) -> tuple[object, tuple[Finding, ...]]:
    return read_case(archive, archive.cases[0], ORGANS)


def test_orientation_spacing_and_values(tmp_path: Path) -> None:
    archive = patient(tmp_path, LeftParotid=[(10, 20, 30), (11, 20, 30)])
    assert archive.format == "openkbp"
    assert [ref.case for ref in archive.cases] == ["pt_7"]
    volume, findings = read_case(archive, archive.cases[0], ORGANS)
    assert findings == ()
    assert volume.image.shape == (SIDE,) * 3
    assert volume.image.dtype == np.int16
    up = SIDE - 1 - 30  # slices count downwards, z upwards
    assert volume.image[up, 10, 20] == 40
    assert volume.image[up, 11, 20] == 3095  # clipped at 4095
    assert volume.image[up, 12, 20] == -1000
    assert int((volume.image > -1000).sum()) == 2
    assert volume.geometry.spacing_mm == (2.5, 4.0, 3.5)
    assert volume.geometry.origin_mm == (0.0, 0.0, 0.0)
    assert volume.geometry.direction == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    assert np.argwhere(volume.masks["Parotid_L"]).tolist() == [[up, 10, 20], [up, 11, 20]]


@pytest.mark.parametrize("below", ["", "provided-data", "provided-data/train-pats"])
def test_any_root_down_to_the_patients(tmp_path: Path, below: str) -> None:
    patient(tmp_path)
    write_patient(tmp_path / "provided-data" / "train-pats" / "pt_12", CT)
    archive = open_archive(tmp_path / below)
    assert [ref.case for ref in archive.cases] == ["pt_12", "pt_7"]


def test_targets_dose_and_dimensions_are_no_organs(tmp_path: Path) -> None:
    archive = patient(tmp_path, PTV70=[(10, 20, 30)], Brainstem=[(10, 20, 30)], dose=[(1, 1, 1)])
    ref = archive.cases[0]
    assert list(ref.structures) == ["Brainstem"]
    assert ref.unmapped == 1
    assert [f.code for f in archive.findings] == ["W_STRUCTURE_UNKNOWN"]
    assert "PTV70" in archive.findings[0].message


def test_labels_in_slices_without_ct_are_cut_and_said(tmp_path: Path) -> None:
    archive = patient(tmp_path, Brainstem=[(10, 20, 30), (10, 20, 99), (5, 5, 30)])
    volume, findings = read_case(archive, archive.cases[0], ORGANS)
    assert int(volume.masks["Brainstem"].sum()) == 2
    assert [(f.code, f.organ) for f in findings] == [("W_LABEL_CUT", "Brainstem")]
    assert "1 voxels" in findings[0].message


def test_an_empty_mask_is_not_annotated(tmp_path: Path) -> None:
    archive = patient(tmp_path, Brainstem=[], Larynx=[(10, 20, 99)])
    volume, findings = read_case(archive, archive.cases[0], ORGANS)
    assert volume.annotated == frozenset()
    assert [(f.code, f.organ) for f in findings] == [
        ("E_LABEL_EMPTY", "Brainstem"),
        ("E_LABEL_EMPTY", "Larynx"),
    ]


def test_a_spinal_cord_that_is_the_body_is_left_out(tmp_path: Path) -> None:
    body = [(r, c, 30) for r in range(45) for c in range(45)]  # 2025 voxels of 0.035 mL
    archive = patient(tmp_path, SpinalCord=body, Larynx=body)
    volume, findings = read_case(archive, archive.cases[0], ORGANS)
    assert volume.annotated == {"Larynx"}
    assert [(f.code, f.organ) for f in findings] == [("E_LABEL_VALUES", "SpinalCord")]


@pytest.mark.parametrize("row", ["x,", "-1,", f"{SIDE**3},", "1.5,", "nan,"])
def test_an_unreadable_mask_is_left_out(tmp_path: Path, row: str) -> None:
    archive = patient(tmp_path, Brainstem=[(10, 20, 30)], Larynx=[(10, 20, 30)])
    archive.cases[0].structures["Brainstem"].write_text(f",data\n{row}\n")
    volume, findings = read_case(archive, archive.cases[0], ORGANS)
    assert volume.annotated == {"Larynx"}
    assert [(f.code, f.organ) for f in findings] == [("E_LABEL_UNREADABLE", "Brainstem")]


@pytest.mark.parametrize(
    ("file", "text", "code"),
    [
        ("ct.csv", ",data\n5,1.0\n6\n", "E_IMAGE_UNREADABLE"),
        ("ct.csv", ",data\n5,abc\n", "E_IMAGE_UNREADABLE"),
        ("ct.csv", ",data\n5,nan\n", "E_IMAGE_UNREADABLE"),
        ("ct.csv", f",data\n{SIDE**3},1.0\n", "E_IMAGE_UNREADABLE"),
        ("ct.csv", ",data\n", "E_IMAGE_HU"),
        ("ct.csv", "", "E_IMAGE_HU"),
        ("voxel_dimensions.csv", "4.0\n3.5\n", "E_IMAGE_GEOMETRY"),
        ("voxel_dimensions.csv", "4.0\n3.5\n0.0\n", "E_IMAGE_GEOMETRY"),
        ("voxel_dimensions.csv", "4.0\n3.5\nnan\n", "E_IMAGE_GEOMETRY"),
        ("voxel_dimensions.csv", None, "E_IMAGE_MISSING"),
    ],
)
def test_an_unusable_image_is_a_case_error(
    tmp_path: Path, file: str, text: str | None, code: str
) -> None:
    archive = patient(tmp_path)
    path = archive.cases[0].files[0].with_name(file)
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(CaseError) as error:
        read(archive)
    assert error.value.code == code


def test_spacing_counts_in_the_content_hash(tmp_path: Path) -> None:
    archive = patient(tmp_path, Brainstem=[(10, 20, 30)])
    ref = archive.cases[0]
    first = content_hash(ref, ORGANS)
    ref.files[1].write_text("4.0\n3.5\n3.0\n")
    assert content_hash(ref, ORGANS) != first


@pytest.mark.parametrize(("source", "case"), [("pt_4", "okbp_004"), ("pt_13", "okbp_013")])
def test_real_patients_equal_the_converted_ones_voxel_for_voxel(source: str, case: str) -> None:
    for folder in ("openkbp_csv/provided-data", "openkbp"):
        if not (SHARED / folder).is_dir():
            pytest.skip(f"no ../shared/data/{folder} beside the repository")
    own = open_archive(SHARED / "openkbp_csv" / "provided-data")
    converted = open_archive(SHARED / "openkbp")
    organs = (*ORGANS, "Bone_Mandible", "Esophagus")
    volume, findings = read_case(own, next(r for r in own.cases if r.case == source), organs)
    wanted, _ = read_case(converted, next(r for r in converted.cases if r.case == case), organs)
    assert [f for f in findings if f.severity == "error"] == []
    assert volume.annotated == wanted.annotated == set(organs)
    assert volume.geometry.spacing_mm == pytest.approx(wanted.geometry.spacing_mm)
    start = np.rint(np.array(wanted.geometry.origin_mm[::-1]) / wanted.geometry.spacing_mm)
    crop = tuple(
        slice(int(a), int(a) + n) for a, n in zip(start, wanted.geometry.size, strict=True)
    )
    assert np.array_equal(volume.image[crop], wanted.image)
    for organ in organs:
        assert np.array_equal(volume.masks[organ][crop], wanted.masks[organ]), organ
        assert volume.masks[organ].sum() == wanted.masks[organ].sum(), organ
