import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.archives.archive import Archive, content_hash, open_archive, read_case
from core.archives.caselist import read_rows
from core.archives.images.volume import write_image, write_mask
from core.data.geometry import Geometry
from core.errors import CaseError, Finding, UserError
from core.organs.vocabulary import vocabulary

GRID = Geometry((6, 10, 12), (3.0, 2.0, 1.5), (-9.0, 4.0, 100.0))
ORGANS = ("Brainstem", "Bone_Mandible", "Parotid_L", "Parotid_R")


def ct() -> np.ndarray:
    image = np.full(GRID.size, -1000, dtype=np.int16)
    image[:, 2:8, 2:10] = np.random.default_rng(0).integers(-50, 900, (6, 6, 8))
    return image


def box(at: int = 3) -> np.ndarray:
    mask = np.zeros(GRID.size, dtype=bool)
    mask[1:4, at : at + 3, 4:7] = True
    return mask


def write_case(folder: Path, structures: tuple[str, ...] = ("BrainStem", "Parotid_L")) -> Path:
    write_image(folder / "img.nrrd", ct(), GRID)
    for i, name in enumerate(structures):
        write_mask(folder / "structures" / f"{name}.nrrd", box(2 + i % 4), GRID)
    return folder


def codes(findings: tuple[Finding, ...], *, notes: bool = False) -> list[tuple[str, str, str]]:
    shown = [f for f in findings if notes or f.code != "W_STRUCTURE_UNKNOWN"]
    assert all(f.message and f.remedy and f.severity in ("error", "warning") for f in findings)
    assert all(f.severity == ("error" if f.code.startswith("E_") else "warning") for f in findings)
    return [(f.code, f.case, f.organ) for f in shown]


def only(root: Path) -> Archive:
    write_case(root / "c1")
    return open_archive(root)


def test_cases_at_any_depth_with_their_organs(tmp_path: Path) -> None:
    write_case(tmp_path / "b" / "deep" / "case2", ("Mandible", "PTV70", "Parotid_L_PRV"))
    write_case(tmp_path / "case1")
    archive = open_archive(tmp_path)
    assert archive.format == "pddca"
    assert [ref.case for ref in archive.cases] == ["case1", "case2"]
    first, second = archive.cases
    assert list(first.structures) == ["Brainstem", "Parotid_L"]
    assert first.structures["Brainstem"].name == "BrainStem.nrrd"
    assert first.files[0].name == "img.nrrd"
    assert (first.unmapped, second.unmapped) == (0, 2)
    assert (first.site, first.split) == (None, None)
    assert codes(archive.findings, notes=True) == [("W_STRUCTURE_UNKNOWN", "", "")] * 2
    assert "'PTV70'" in archive.findings[0].message or "'PTV70'" in archive.findings[1].message


def test_a_case_folder_is_an_archive_of_one(tmp_path: Path, monkeypatch) -> None:
    write_case(tmp_path / "case1")
    assert open_archive(tmp_path / "case1").cases[0].case == "case1"
    monkeypatch.chdir(tmp_path / "case1")
    assert open_archive(".").cases[0].case == "case1"


def test_reading_gives_voxels_masks_and_grid(tmp_path: Path) -> None:
    archive = only(tmp_path)
    volume, findings = read_case(archive, archive.cases[0], ORGANS)
    assert findings == ()
    assert volume.case == "c1"
    assert volume.image.dtype == np.int16
    assert np.array_equal(volume.image, ct())
    assert volume.geometry.close_to(GRID, 1e-6)
    assert volume.annotated == {"Brainstem", "Parotid_L"}
    assert np.array_equal(volume.masks["Parotid_L"], box(3))
    assert volume.masks["Parotid_L"].dtype == np.bool_
    assert read_case(archive, archive.cases[0], ["Parotid_L"])[0].annotated == {"Parotid_L"}


def test_hidden_folders_run_folders_and_hidden_files_are_no_cases(tmp_path: Path) -> None:
    write_case(tmp_path / "c1")
    write_case(tmp_path / ".trash" / "c2")
    write_case(tmp_path / "runs" / "demo" / "predictions" / "c3")
    (tmp_path / "runs" / "demo" / "journal.jsonl").write_text("{}\n")
    shutil.copy(
        tmp_path / "c1/structures/BrainStem.nrrd", tmp_path / "c1/structures/._BrainStem.nrrd"
    )
    (tmp_path / "c1" / "structures" / "notes.txt").write_text("x")
    archive = open_archive(tmp_path)
    assert [ref.case for ref in archive.cases] == ["c1"]
    assert archive.cases[0].unmapped == 0
    assert archive.findings == ()


def test_a_run_folder_is_no_archive(tmp_path: Path) -> None:
    write_mask(tmp_path / "predictions" / "c1" / "BrainStem.nrrd", box(), GRID)
    (tmp_path / "journal.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="no case below"):
        open_archive(tmp_path)


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    write_case(tmp_path / "a" / "c1")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [ref.case for ref in open_archive(tmp_path).cases] == ["c1"]


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write_case(tmp_path / "x" / "1")
    write_case(tmp_path / "y" / "1")
    archive = open_archive(tmp_path)
    assert [ref.case for ref in archive.cases] == ["x__1", "y__1"]
    assert codes(archive.findings) == [
        ("W_CASE_RENAMED", "x__1", ""),
        ("W_CASE_RENAMED", "y__1", ""),
    ]


def test_two_files_of_one_organ_leave_it_out(tmp_path: Path) -> None:
    write_case(tmp_path / "c1", ("Lt Parotid", "Parotid_L", "BrainStem"))
    archive = open_archive(tmp_path)
    assert codes(archive.findings) == [("E_LABEL_AMBIGUOUS", "c1", "Parotid_L")]
    assert list(archive.cases[0].structures) == ["Brainstem"]
    assert read_case(archive, archive.cases[0], ORGANS)[0].annotated == {"Brainstem"}


def test_the_plainer_of_two_names_is_taken_and_the_other_named(tmp_path: Path) -> None:
    write_case(tmp_path / "c1", ("Larynx", "Larynx_MD"))
    archive = open_archive(tmp_path)
    assert codes(archive.findings) == [("W_LABEL_SECOND", "c1", "Larynx")]
    assert archive.cases[0].structures["Larynx"].name == "Larynx.nrrd"


def test_a_name_without_its_side_is_asked_and_answered(tmp_path: Path) -> None:
    write_case(tmp_path / "c1", ("Parotis", "BrainStem", "GTV"))
    write_case(tmp_path / "c2", ("Parotis", "Mandible"))
    archive = open_archive(tmp_path)
    asked = [f for f in archive.findings if f.code == "W_STRUCTURE_ASKED"]
    assert len(asked) == 1
    assert "2 cases" in asked[0].message
    assert "Parotid_L or Parotid_R" in asked[0].message
    assert "`none`" in asked[0].remedy
    assert dict(archive.names) == {"BrainStem": 1, "GTV": 1, "Mandible": 1, "Parotis": 2}
    answered = open_archive(tmp_path, aliases={"Parotid_R": ["parotis"], "none": ["Mandible"]})
    assert [list(c.structures) for c in answered.cases] == [
        ["Brainstem", "Parotid_R"],
        ["Parotid_R"],
    ]
    assert {f.code for f in answered.findings} == {"W_STRUCTURE_UNKNOWN"}


def test_structures_without_an_image_are_a_finding(tmp_path: Path) -> None:
    write_case(tmp_path / "c1")
    write_case(tmp_path / "c2")
    (tmp_path / "c2" / "img.nrrd").unlink()
    archive = open_archive(tmp_path)
    assert [ref.case for ref in archive.cases] == ["c1"]
    assert codes(archive.findings) == [("E_IMAGE_MISSING", "c2", "")]


def test_aliases_of_the_site_and_organs_of_the_plan(tmp_path: Path) -> None:
    write_case(tmp_path / "c1", ("par_gl_X", "cochlea l"))
    aliases = {"Parotid_L": ["PAR GL x"], "Parotid_Left": ["x"]}
    archive = open_archive(tmp_path, vocab=vocabulary({"Cochlea_L": None}), aliases=aliases)
    assert list(archive.cases[0].structures) == ["Cochlea_L", "Parotid_L"]
    assert codes(archive.findings) == [("W_ALIAS_UNKNOWN", "", "")]
    assert archive.findings[0].remedy.startswith("did you mean Parotid_L? ")
    with pytest.raises(UserError, match="give a list"):
        open_archive(tmp_path, aliases={"Parotid_L": "PAR"})


@pytest.mark.parametrize("format", ["auto", "pddca", "openkbp"])
def test_no_case_and_no_folder(tmp_path: Path, format: str) -> None:
    with pytest.raises(UserError, match="no case below this folder"):
        open_archive(tmp_path, format=format)
    with pytest.raises(UserError, match="no such folder"):
        open_archive(tmp_path / "none", format=format)


def test_unknown_format_and_two_formats(tmp_path: Path) -> None:
    write_case(tmp_path / "c1")
    with pytest.raises(UserError, match="pddca"):
        open_archive(tmp_path, format="niftii")
    (tmp_path / "train-pats" / "pt_1").mkdir(parents=True)
    (tmp_path / "train-pats" / "pt_1" / "ct.csv").write_text(",data\n")
    with pytest.raises(UserError, match="pddca and openkbp"):
        open_archive(tmp_path)
    assert open_archive(tmp_path, format="pddca").cases[0].case == "c1"


def label_case(root: Path, array: np.ndarray, grid: Geometry = GRID) -> tuple[str, ...]:
    """Codes of the findings of a case whose brainstem is `array`; its parotid stays usable."""
    folder = write_case(root / "c1")
    write_image(folder / "structures" / "BrainStem.nrrd", array, grid)
    archive = open_archive(root)
    volume, findings = read_case(archive, archive.cases[0], ORGANS)
    codes(findings)
    assert "Parotid_L" in volume.annotated
    assert ("Brainstem" in volume.annotated) is (not findings)
    assert all((f.case, f.organ) == ("c1", "Brainstem") for f in findings)
    return tuple(f.code for f in findings)


@pytest.mark.parametrize(
    "change",
    [
        {"origin_mm": (-9.0, 4.0, 103.0)},
        {"spacing_mm": (3.0, 2.0, 1.6)},
        {"direction": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)},
    ],
)
def test_a_mask_off_the_grid_is_left_out(tmp_path: Path, change: dict[str, tuple[float]]) -> None:
    assert label_case(tmp_path, box().astype(np.uint8), replace(GRID, **change)) == (
        "E_LABEL_GRID",
    )


def test_a_mask_of_another_size_is_left_out(tmp_path: Path) -> None:
    cut = box()[:-1].astype(np.uint8)
    assert label_case(tmp_path, cut, replace(GRID, size=(5, 10, 12))) == ("E_LABEL_GRID",)


def test_rounding_of_the_grid_is_forgiven(tmp_path: Path) -> None:
    near = replace(GRID, origin_mm=(-9.0004, 4.0, 100.0), spacing_mm=(3.00001, 2.0, 1.5))
    assert label_case(tmp_path, box().astype(np.uint8), near) == ()


def test_an_empty_mask_is_not_annotated(tmp_path: Path) -> None:
    assert label_case(tmp_path, np.zeros(GRID.size, dtype=np.uint8)) == ("E_LABEL_EMPTY",)


@pytest.mark.parametrize(
    ("values", "good"),
    [((0, 1), True), ((0, 255), True), ((0, 1.0), True), ((0, 1, 2), False), ((-1, 1), False),
     ((1,), False), ((0, -1), False), ((0, 0.5, 1.0), False), ((0, np.nan), False)],
)  # fmt: skip
def test_values_of_a_mask(tmp_path: Path, values: tuple[float, ...], good: bool) -> None:
    whole = all(float(v).is_integer() for v in values)
    array = np.full(GRID.size, values[0], dtype=np.int16 if whole else np.float32)
    for i, value in enumerate(values[1:]):
        array[1 + i, 3:6, 4:7] = value
    found = label_case(tmp_path, array)
    assert found == (() if good else found)
    assert good or found[0] in ("E_LABEL_VALUES", "E_LABEL_UNREADABLE")


def test_an_unreadable_mask_is_left_out(tmp_path: Path) -> None:
    archive = only(tmp_path)
    path = archive.cases[0].structures["Brainstem"]
    path.write_bytes(path.read_bytes()[:-20])
    volume, findings = read_case(archive, archive.cases[0], ORGANS)
    assert codes(findings) == [("E_LABEL_UNREADABLE", "c1", "Brainstem")]
    assert volume.annotated == {"Parotid_L"}


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (ct() + 1000, "E_HU_OFFSET"),
        (ct() / np.float32(3000), "E_IMAGE_HU"),
        (np.zeros(GRID.size, dtype=np.int16), "E_IMAGE_HU"),
        (np.full(GRID.size, -1000, dtype=np.int16), "E_IMAGE_HU"),
        (ct().astype(np.float32) * 1e6, "E_IMAGE_HU"),
        (ct() - np.int16(1024), "E_HU_OFFSET"),
        (np.where(ct() > 800, np.nan, ct()).astype(np.float32), "E_IMAGE_VALUES"),
    ],
    ids=["no intercept", "scaled", "zeros", "air", "huge", "twice", "nan"],
)
def test_an_implausible_image_is_a_case_error(tmp_path: Path, image: np.ndarray, code: str) -> None:
    archive = only(tmp_path)
    write_image(tmp_path / "c1" / "img.nrrd", image, GRID)
    with pytest.raises(CaseError) as error:
        read_case(archive, archive.cases[0], ORGANS)
    assert error.value.code == code


def test_a_truncated_image_is_a_case_error(tmp_path: Path) -> None:
    archive = only(tmp_path)
    path = tmp_path / "c1" / "img.nrrd"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CaseError) as error:
        read_case(archive, archive.cases[0], ORGANS)
    assert error.value.code == "E_IMAGE_UNREADABLE"


def test_content_hash_follows_the_bytes_that_are_used(tmp_path: Path) -> None:
    ref = only(tmp_path / "a").cases[0]
    first = content_hash(ref, ORGANS)
    shutil.copytree(tmp_path / "a" / "c1", tmp_path / "b" / "other")
    moved = open_archive(tmp_path / "b").cases[0]
    assert content_hash(moved, tuple(reversed(ORGANS))) == first
    assert content_hash(ref, ["Brainstem"]) != first
    swapped = replace(ref, structures={"Brainstem": ref.structures["Parotid_L"],
                                       "Parotid_L": ref.structures["Brainstem"]})  # fmt: skip
    assert content_hash(swapped, ORGANS) != first
    write_mask(ref.structures["Brainstem"], box(5), GRID)
    assert content_hash(ref, ORGANS) != first
    assert content_hash(ref, ["Larynx"]) == content_hash(moved, ["Larynx"])
    write_image(ref.files[0], ct() + np.int16(1), GRID)
    assert content_hash(ref, ["Larynx"]) != content_hash(moved, ["Larynx"])
    ref.files[0].unlink()
    with pytest.raises(CaseError, match="put the file back"):
        content_hash(ref, ORGANS)


def listed(root: Path, text: str) -> Archive:
    for name in ("c1", "c2", "deep/c3"):
        if not (root / name).exists():
            write_case(root / name)
    (root / "cases.csv").write_text(text, encoding="utf-8")
    return open_archive(root)


def test_list_of_cases_gives_splits_and_sites(tmp_path: Path) -> None:
    text = "\ufeffcase,organs,Split,site\nc1,a;b,train,nyu\nc2,,Test,\nc3,,,miccai\n"
    archive = listed(tmp_path, text)
    assert [(r.case, r.split, r.site) for r in archive.cases] == [
        ("c1", "train", "nyu"),
        ("c2", "test", None),
        ("c3", None, "miccai"),
    ]
    assert archive.findings == ()


def test_list_with_paths_names_the_cases(tmp_path: Path) -> None:
    text = "case,split,path\np1,train,c1\np2,val,./deep/c3/\np3,test,c2/img.nrrd\n"
    archive = listed(tmp_path, text)
    assert [(r.case, r.files[0].parent.name) for r in archive.cases] == [
        ("p1", "c1"),
        ("p2", "c3"),
        ("p3", "c2"),
    ]
    assert archive.findings == ()


def test_rows_without_a_case_and_cases_without_a_row_are_counted(tmp_path: Path) -> None:
    archive = listed(tmp_path, "case,split,path\nc1,train,c1\nc9,test,c9\nc8,test,\n")
    assert [r.case for r in archive.cases] == ["c1", "c2", "c3"]
    assert codes(archive.findings) == [
        ("E_CASE_ABSENT", "c9", ""),
        ("E_CASE_ABSENT", "c8", ""),
        ("W_CASE_UNLISTED", "c2", ""),
        ("W_CASE_UNLISTED", "c3", ""),
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("case,split\nc1,train\nc1,test\n", "stand twice"),
        ("case,split,path\na,train,c1\nb,test,c1/\n", "stand twice"),
        ("case,site\nc1,nyu\n", "columns"),
        ("", "columns"),
        ("case,split\nc1,training\n", "train, val or test"),
        ("case,split\n../c1,train\n", "slashes"),
        ("case,split\n,train\n", "give an id"),
        ("case,split,path\nc1,train,../c1\n", "below"),
        ("case,split,path\nc1,train,/etc\n", "below"),
        ("case,split,path\nc1,train,C:\\data\n", "below"),
    ],
)
def test_an_unusable_list_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        listed(tmp_path, text)


def test_a_long_list_is_read_at_once(tmp_path: Path) -> None:
    """Each row was looked for among all: 21 s for 20,000 of them."""
    rows = "".join(f"case_{i},train,sub/case_{i}\n" for i in range(20_000))
    (tmp_path / "cases.csv").write_text(f"case,split,path\n{rows}")
    begun = time.process_time()
    assert len(read_rows(tmp_path / "cases.csv")) == 20_000
    assert time.process_time() - begun < 5.0


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "c1")
    (tmp_path / "cases.csv").write_bytes(b"case,split\n\xff\xfe\x00,train\n")
    with pytest.raises(UserError, match="UTF-8"):
        open_archive(tmp_path)


@given(data=st.binary(max_size=60))
def test_any_bytes_as_list_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    root = tmp_path_factory.mktemp("a")
    (root / "c1").mkdir()
    (root / "c1" / "img.nrrd").write_bytes(b"not opened")
    (root / "cases.csv").write_bytes(b"case,split,path\n" + data)
    try:
        archive = open_archive(root)
    except UserError:
        return
    assert len(archive.cases) == 1


def test_capital_letters_of_a_file_system_lose_no_case_and_no_organ(tmp_path: Path) -> None:
    write_case(tmp_path / "c1")
    case = tmp_path / "c1"
    (case / "structures" / "BrainStem.nrrd").rename(case / "structures" / "BRAINSTEM.NRRD")
    (case / "structures").rename(case / "STRUCTURES")
    (case / "img.nrrd").rename(case / "IMG.NRRD")
    archive = open_archive(tmp_path)
    volume, findings = read_case(archive, archive.cases[0], ["Brainstem", "Parotid_L"])
    assert sorted(volume.masks) == ["Brainstem", "Parotid_L"]
    np.testing.assert_array_equal(volume.image, ct())
    assert (archive.findings, findings) == ((), ())
