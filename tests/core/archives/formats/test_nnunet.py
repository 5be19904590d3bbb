from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.archives.archive import content_hash, open_archive, read_case
from core.archives.images.volume import read_image, write_image, write_labelmap
from core.data.geometry import Geometry
from core.errors import UserError

GRID = Geometry((6, 10, 12), (3.0, 2.0, 1.5), (-9.0, 4.0, 100.0))
LABELS = {"background": 0, "BrainStem": 1, "Lt Parotid": 2, "GTV": 3}
TABLE: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 2}


def ct() -> np.ndarray:
    image = np.full(GRID.size, -1000, dtype=np.int16)
    image[:, 2:8, 2:10] = np.random.default_rng(0).integers(-50, 900, (6, 6, 8))
    return image


def labels() -> np.ndarray:
    values = np.zeros(GRID.size, np.uint8)
    values[1:4, 3:6, 4:7] = 1
    values[2:5, 6:8, 3:6] = 2
    return values


def write(
    root: Path,
    cases: tuple[str, ...] = ("a_1", "b_2"),
    ending: str = ".nii.gz",
    table: dict[str, Any] | None = None,
    values: np.ndarray | None = None,
) -> Path:
    for case in cases:
        write_image(root / "imagesTr" / f"{case}_0000{ending}", ct(), GRID)
        label = root / "labelsTr" / f"{case}{ending}"
        write_labelmap(label, labels() if values is None else values, GRID)
    content = {**TABLE, "file_ending": ending} if table is None else table
    (root / "dataset.json").write_text(json.dumps(content))
    return root


ORGANS = ("Brainstem", "Parotid_L", "Parotid_R")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_every_format_of_file_gives_voxels_and_masks(tmp_path: Path, ending: str) -> None:
    archive = open_archive(write(tmp_path / "Dataset007_HN", ending=ending).parent)
    assert archive.format == "nnunet"
    assert [ref.case for ref in archive.cases] == ["a_1", "b_2"]
    ref = archive.cases[0]
    assert list(ref.structures) == ["Brainstem", "Parotid_L"]
    assert ref.unmapped == 1
    assert dict(archive.names) == {"BrainStem": 2, "GTV": 2, "Lt Parotid": 2}
    volume, findings = read_case(archive, ref, ORGANS)
    assert findings == ()
    assert volume.annotated == {"Brainstem", "Parotid_L"}
    assert np.array_equal(volume.image, ct())
    assert volume.geometry.close_to(GRID, 1e-4)
    assert np.array_equal(volume.masks["Brainstem"], labels() == 1)
    assert np.array_equal(volume.masks["Parotid_L"], labels() == 2)


def test_the_first_version_and_names_of_several_values(tmp_path: Path) -> None:
    first = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "BrainStem"}}
    values = np.where(labels() == 1, 1, 0).astype(np.uint8)
    archive = open_archive(write(tmp_path / "one", table=first, values=values))
    assert list(archive.cases[0].structures) == ["Brainstem"]
    regions = {**TABLE, "labels": {"background": 0, "BrainStem": [1, 2], "Parotid L": 2}}
    archive = open_archive(write(tmp_path / "two", table=regions))
    volume, _ = read_case(archive, archive.cases[0], ORGANS)
    assert np.array_equal(volume.masks["Brainstem"], labels() > 0)
    assert np.array_equal(volume.masks["Parotid_L"], labels() == 2)


def test_an_organ_without_a_voxel_is_not_annotated(tmp_path: Path) -> None:
    only_one = np.where(labels() == 1, 1, 0).astype(np.uint8)
    archive = open_archive(write(tmp_path, values=only_one))
    volume, findings = read_case(archive, archive.cases[0], ORGANS)
    assert volume.annotated == {"Brainstem"}
    assert [(f.code, f.severity, f.organ) for f in findings] == [
        ("W_LABEL_ABSENT", "warning", "Parotid_L")
    ]


def test_values_that_are_not_named_or_to_be_ignored_lose_the_case_its_organs(
    tmp_path: Path,
) -> None:
    strange = labels()
    strange[0, 0, 0] = 37
    archive = open_archive(write(tmp_path / "a", values=strange))
    volume, findings = read_case(archive, archive.cases[0], ORGANS)
    assert not volume.masks
    assert {f.code for f in findings} == {"E_LABEL_VALUES"}
    assert "37" in findings[0].message
    ignored = {**TABLE, "labels": {**LABELS, "ignore": 37}}
    archive = open_archive(write(tmp_path / "b", values=strange, table=ignored))
    assert "ignore" not in archive.names
    volume, findings = read_case(archive, archive.cases[0], ORGANS)
    assert not volume.masks
    assert "'ignore'" in findings[0].message


def test_a_label_map_on_another_grid_is_left_out(tmp_path: Path) -> None:
    archive = open_archive(write(tmp_path))
    other = Geometry(GRID.size, GRID.spacing_mm, (0.0, 0.0, 0.0))
    write_labelmap(tmp_path / "labelsTr" / "a_1.nii.gz", labels(), other)
    _, findings = read_case(archive, archive.cases[0], ORGANS)
    assert {f.code for f in findings} == {"E_LABEL_GRID"}
    volume, _ = read_case(archive, archive.cases[1], ORGANS)
    assert volume.annotated == {"Brainstem", "Parotid_L"}


def test_a_label_map_without_its_image_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "imagesTr" / "b_2_0000.nii.gz").unlink()
    archive = open_archive(tmp_path)
    assert [ref.case for ref in archive.cases] == ["a_1"]
    assert [(f.code, f.case) for f in archive.findings if f.severity == "error"] == [
        ("E_IMAGE_MISSING", "b_2")
    ]


def test_test_cases_are_read_where_they_have_labels_and_splits_come_from_cases_csv(
    tmp_path: Path,
) -> None:
    write(tmp_path)
    for case in ("c_3", "d_4"):
        write_image(tmp_path / "imagesTs" / f"{case}_0000.nii.gz", ct(), GRID)
    write_labelmap(tmp_path / "labelsTs" / "c_3.nii.gz", labels(), GRID)
    (tmp_path / "cases.csv").write_text("case,split\na_1,train\nb_2,val\nc_3,test\n")
    archive = open_archive(tmp_path)
    assert [(r.case, r.split) for r in archive.cases] == [
        ("a_1", "train"),
        ("b_2", "val"),
        ("c_3", "test"),
    ]


def test_the_ct_is_the_channel_that_is_called_so(tmp_path: Path) -> None:
    table = {**TABLE, "channel_names": {"0": "MR", "1": "CT"}}
    write(tmp_path, ("a",), table=table)
    (tmp_path / "imagesTr" / "a_0000.nii.gz").rename(tmp_path / "imagesTr" / "a_0001.nii.gz")
    write_image(tmp_path / "imagesTr" / "a_0000.nii.gz", ct() * 0, GRID)
    archive = open_archive(tmp_path)
    assert np.array_equal(read_case(archive, archive.cases[0], ORGANS)[0].image, ct())


def test_the_content_hash_knows_files_and_values(tmp_path: Path) -> None:
    def digest() -> str:
        return content_hash(open_archive(tmp_path).cases[0], ORGANS)

    write(tmp_path)
    before = digest()
    assert digest() == before
    swapped = {**LABELS, "BrainStem": 2, "Lt Parotid": 1}
    (tmp_path / "dataset.json").write_text(json.dumps({**TABLE, "labels": swapped}))
    assert digest() != before
    write(tmp_path, values=np.roll(labels(), 1, 0))
    assert digest() != before


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "not JSON"),
        ("[1]", "no JSON object"),
        ("{}", "labels"),
        ('{"labels": {"BrainStem": "x"}}', "labels"),
        ('{"labels": {"BrainStem": 1}, "file_ending": ".png"}', ".png"),
        ('{"labels": {"A": 1}, "channel_names": {"0": "T1", "1": "T2"}}', "which channel"),
        ('{"labels": {"A": 1}, "channel_names": 3}', "channel_names"),
    ],
)
def test_an_unusable_table_is_named_with_the_remedy(
    tmp_path: Path, content: str, fault: str
) -> None:
    write(tmp_path)
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match="remedy") as error:
        open_archive(tmp_path)
    assert fault in str(error.value)
    assert "dataset.json" in str(error.value)


def test_labels_that_are_nearly_whole_numbers(tmp_path: Path) -> None:
    """A resampling tool leaves 0.99999994 and 2.0000002 for 1 and 2."""
    write(tmp_path)
    path = tmp_path / "labelsTr" / "a_1.nii.gz"
    array, grid = read_image(path)
    near = np.nextafter(array.astype(np.float32), np.float32(-1))
    write_image(path, near, grid)
    archive = open_archive(tmp_path)
    (ref,) = [r for r in archive.cases if r.case == "a_1"]
    volume, findings = read_case(archive, ref, tuple(ref.structures))
    assert findings == ()
    np.testing.assert_array_equal(volume.masks["Brainstem"], labels() == 1)
    np.testing.assert_array_equal(volume.masks["Parotid_L"], labels() == 2)
    write_image(path, (array * 0.7).astype(np.float32), grid)
    _, findings = read_case(open_archive(tmp_path), ref, tuple(ref.structures))
    assert {f.code for f in findings} == {"E_LABEL_VALUES"}
