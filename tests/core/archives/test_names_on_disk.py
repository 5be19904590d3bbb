"""The operating system's no, and names that are no text: they cost a case, never the command."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.dicom_example import write_patient
from core.archives.archive import content_hash, open_archive, read_case, read_image_of
from core.archives.case_folders import unreadable
from core.archives.images.volume import read_image, write_image
from core.data.geometry import Geometry
from core.errors import CaseError, Finding, UserError, plain_text
from core.files import replace_csv, replace_file
from hnfed.check.archive_check import check_archive
from hnfed.cli.main import main
from hnfed.predict.contours import Contours, find_cts, write_contours

GRID = Geometry((8, 24, 20), (2.5, 2.0, 1.5))
LATIN = os.fsdecode(b"Sch\xe4del")


def ct(seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(-1000, 1400, GRID.size).astype(np.int16)
    values[:, :3] = -1000
    return values


def case(folder: Path, seed: int = 0, organ: str = "BrainStem") -> None:
    write_image(folder / "img.nrrd", ct(seed), GRID)
    mask = np.zeros(GRID.size, dtype=np.uint8)
    mask[2:6, 8:16, 6:14] = 1
    write_image(folder / "structures" / f"{organ}.nrrd", mask, GRID)


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes files and folders unreadable, for root too."""
    barred: set[str] = set()

    def refuse(path: Any) -> None:
        if not isinstance(path, int) and os.path.abspath(os.fspath(path)) in barred:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))

    for module, name in ((os, "scandir"), (os, "listdir"), (io, "open")):
        real = getattr(module, name)

        def checked(path: Any = ".", *args: Any, _real: Any = real, **options: Any) -> Any:
            refuse(path)
            return _real(path, *args, **options)

        monkeypatch.setattr(module, name, checked)
    return lambda path: barred.add(os.path.abspath(path))


def test_text_of_any_name() -> None:
    assert plain_text("Schädel 头部") == "Schädel 头部"
    assert plain_text(LATIN) == "Sch%E4del"
    assert plain_text("\ud83d") == "%uD83D"
    assert str(UserError("f", Path(LATIN), "r", problem=LATIN)).count("Sch%E4del") == 2
    assert Finding("E", "error", LATIN, "", LATIN, "").case == "Sch%E4del"


def test_files_with_any_text_are_utf8(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", LATIN + "\ud83d")
    replace_csv(tmp_path / "b", ("case",), [(LATIN,)])
    assert (tmp_path / "a").read_text(encoding="utf-8") == "Sch%E4del%uD83D"
    assert "Sch%E4del" in (tmp_path / "b").read_text(encoding="utf-8")


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_archive_with_such_names_is_checked(tmp_path: Path, jobs: int) -> None:
    """SimpleITK ends the process with SIGABRT where it is handed such a path."""
    root = tmp_path / LATIN
    case(root / "one", 1)
    case(root / LATIN, 2, organ="Larynx")
    shutil.copy(root / "one/structures/BrainStem.nrrd", root / f"one/structures/{LATIN}.nrrd")
    (root / LATIN / "img.nrrd").rename(root / LATIN / "other.nrrd")
    os.symlink(root / LATIN / "other.nrrd", root / LATIN / "img.nrrd")
    archive = open_archive(root)
    assert [ref.case for ref in archive.cases] == ["Sch%E4del", "one"]
    assert "Sch%E4del" in archive.names
    report = check_archive(archive, jobs=jobs, secret=None)
    assert (report.cases, report.usable) == (2, 2)
    json.dumps(report.as_json()).encode()
    hidden = json.dumps(check_archive(archive, secret=b"x").as_json())
    assert "E4del" not in hidden
    for ref in archive.cases:
        assert len(content_hash(ref, ["Larynx", "Brainstem"])) == 64


def test_dicom_with_such_names(tmp_path: Path) -> None:
    image = ct()
    write_patient(tmp_path / "p", image, (2, 5, 5, 12))
    folder = tmp_path / LATIN
    (tmp_path / "p").rename(folder)
    for path in list(folder.iterdir()):
        path.rename(folder / f"{LATIN}{path.stem}")
    archive = open_archive(tmp_path)
    (ref,) = archive.cases
    volume, findings = read_case(archive, ref, ["Brainstem"])
    np.testing.assert_array_equal(volume.image, image)
    assert (ref.case, findings, volume.annotated) == ("Sch%E4del", (), {"Brainstem"})


@pytest.mark.parametrize("name", ["a.nrrd", "a.nii.gz", "a.mha", "a.mhd", "a.nhdr"])
def test_images_are_read_from_and_written_to_any_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / LATIN
    write_image(folder / name, ct(), GRID) if not name.endswith("hd") else None
    if name.endswith(("mhd", "nhdr")):
        import SimpleITK as sitk

        (tmp_path / "plain").mkdir()
        sitk.WriteImage(GRID.to_sitk(ct()), str(tmp_path / "plain" / name))
        shutil.rmtree(folder, ignore_errors=True)
        (tmp_path / "plain").rename(folder)
    np.testing.assert_array_equal(read_image(folder / name)[0], ct())
    archive = find_cts(folder / name)
    np.testing.assert_array_equal(read_image_of(archive, archive.cases[0])[0], ct())
    if not name.endswith("hd") and not name.endswith("hdr"):
        (folder / name).rename(folder / (LATIN + name))
        np.testing.assert_array_equal(read_image(folder / (LATIN + name))[0], ct())
        assert find_cts(folder).cases[0].case == "Sch%E4dela"


def test_contours_are_written_below_any_folder(tmp_path: Path) -> None:
    labels = np.zeros(GRID.size, dtype=np.uint8)
    labels[2:4, 4:9, 4:9] = 1
    drawn = Contours("Sch%E4del", labels, ["Brainstem"], GRID)
    written = write_contours(tmp_path / LATIN, drawn, ["nrrd", "nifti", "segnrrd"])
    assert all(path.is_file() for path in written)
    np.testing.assert_array_equal(read_image(written[0])[0], labels)


def test_the_command_prints_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / LATIN
    case(root / LATIN)
    code = main(["check", str(root), "--show-paths", "--json", str(root / "f.json"), "--jobs", "1"])
    assert code in (0, 1)
    assert json.loads((root / "f.json").read_text(encoding="utf-8"))["cases"] == 1
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    shutil.copytree(root / LATIN, root / "头部")
    assert main(["check", str(root), "--show-paths", "--jobs", "1"]) == 1
    assert capsys.readouterr().err.count("unexpected") == 0


def test_a_folder_that_is_barred_costs_its_case(tmp_path: Path, bar: Any) -> None:
    for name in ("a", "b", "c"):
        case(tmp_path / name, ord(name))
    (tmp_path / "lost+found").mkdir()
    for name in ("b", "lost+found", "c/structures"):
        bar(tmp_path / name)
    archive = open_archive(tmp_path)
    assert [ref.case for ref in archive.cases] == ["a"]
    told = {(f.code, f.severity, f.case) for f in archive.findings}
    assert told == {("E_NOT_READABLE", "error", "b"), ("E_NOT_READABLE", "error", "c")}
    assert "Permission denied" in archive.findings[0].message
    assert "the right to read it" in archive.findings[0].remedy
    assert [path.name for path, _ in unreadable(tmp_path)] == ["b", "structures"]


def test_a_root_that_is_barred_and_one_that_is_packed(tmp_path: Path, bar: Any) -> None:
    (tmp_path / "r").mkdir()
    bar(tmp_path / "r")
    with pytest.raises(UserError, match="Permission denied"):
        open_archive(tmp_path / "r")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="a packed file") as error:
        open_archive(tmp_path / "a.zip")
    assert "unpack" in error.value.remedy
    with pytest.raises(UserError, match="a packed file"):
        find_cts(tmp_path / "a.zip")
    write_patient(tmp_path / "p", ct(), (2, 5, 5, 12))
    with pytest.raises(UserError, match="one DICOM file") as error:
        find_cts(tmp_path / "p" / "CT03.dcm")
    assert "folder" in error.value.remedy


def test_a_file_that_is_barred_costs_its_case_or_organ(tmp_path: Path, bar: Any) -> None:
    for name in ("a", "b", "c"):
        case(tmp_path / name, ord(name))
    bar(tmp_path / "b" / "img.nrrd")
    bar(tmp_path / "c" / "structures" / "BrainStem.nrrd")
    archive = open_archive(tmp_path)
    report = check_archive(archive, secret=None)
    assert (report.cases, report.usable) == (3, 1)
    told = {(f.code, f.case) for f in report.findings if f.severity == "error"}
    assert {("E_IMAGE_UNREADABLE", "b"), ("E_LABEL_UNREADABLE", "c")} <= told
    assert all("read it" in f.remedy for f in report.findings if "UNREADABLE" in f.code)
    refs = {ref.case: ref for ref in archive.cases}
    with pytest.raises(CaseError) as error:
        content_hash(refs["b"], ["Brainstem"])
    assert error.value.code == "E_IMAGE_UNREADABLE"
    assert content_hash(refs["c"], ["Brainstem"]) != content_hash(refs["c"], [])
    gone = replace(refs["a"], files=(tmp_path / "none.nrrd",))
    with pytest.raises(CaseError) as error:
        content_hash(gone, [])
    assert error.value.code == "E_IMAGE_MISSING"


def test_a_dicom_file_that_is_barred_is_named_with_the_reason(tmp_path: Path, bar: Any) -> None:
    write_patient(tmp_path / "p", ct(), (2, 5, 5, 12))
    bar(tmp_path / "p" / "CT03.dcm")
    archive = open_archive(tmp_path)
    (finding,) = archive.findings
    assert finding.code == "W_DICOM_UNREADABLE"
    assert "Permission denied" in finding.message
    with pytest.raises(CaseError, match="1 slices are missing"):
        read_image_of(archive, archive.cases[0])


def test_tables_that_are_barred(tmp_path: Path, bar: Any) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / name / "imagesTr" / "c_0000.nii.gz", ct(), GRID)
        labels = np.zeros(GRID.size, np.uint8)
        labels[3, 10, 10] = 1
        write_image(tmp_path / name / "labelsTr" / "c.nii.gz", labels, GRID)
        table = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Brainstem": 1}}
        (tmp_path / name / "dataset.json").write_text(json.dumps(table))
    bar(tmp_path / "b" / "dataset.json")
    archive = open_archive(tmp_path)
    assert [ref.case for ref in archive.cases] == ["c"]
    assert [f.code for f in archive.findings] == ["E_NOT_READABLE"]
    bar(tmp_path / "a" / "labelsTr")
    lost = open_archive(tmp_path, empty=True)
    assert (lost.cases, [f.code for f in lost.findings]) == ((), ["E_NOT_READABLE"] * 2)


def test_label_names_that_are_no_text(tmp_path: Path) -> None:
    write_image(tmp_path / "imagesTr" / "c_0000.nii.gz", ct(), GRID)
    labels = np.zeros(GRID.size, np.uint8)
    labels[3, 10, 10] = 1
    write_image(tmp_path / "labelsTr" / "c.nii.gz", labels, GRID)
    text = (
        '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "Brainstem": 1, "\\ud83d": 2}}'
    )
    (tmp_path / "dataset.json").write_text(text)
    report = check_archive(open_archive(tmp_path), secret=None)
    replace_file(tmp_path / "r.json", json.dumps(report.as_json(), ensure_ascii=False))


def test_a_pipe_and_a_broken_link_are_no_files(tmp_path: Path) -> None:
    write_patient(tmp_path / "p", ct(), (2, 5, 5, 12))
    os.mkfifo(tmp_path / "p" / "pipe")
    (tmp_path / "p" / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "p" / "loop").symlink_to(tmp_path / "p" / "loop")
    archive = open_archive(tmp_path)
    assert len(archive.cases) == 1
    assert archive.findings == ()


@pytest.mark.parametrize("name", ["b.zip", "b/000.dcm.gz", "b.tar.gz", "b/IMAGE.GZ"])
def test_cases_that_are_packed_beside_others_are_told(tmp_path: Path, name: str) -> None:
    case(tmp_path / "a")
    for other in (name, "ct.nii.gz", "ct.raw.gz", "table.csv.gz"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"x")
    archive = open_archive(tmp_path)
    assert [ref.case for ref in archive.cases] == ["a"]
    (finding,) = archive.findings
    assert (finding.code, finding.severity) == ("W_PACKED", "warning")
    assert finding.message == f"1 packed files are not opened ({Path(name).name!r} is one)"
    (tmp_path / "a" / "img.nrrd").unlink()
    with pytest.raises(UserError, match="1 packed files are not opened"):
        open_archive(tmp_path)
