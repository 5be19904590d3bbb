from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from core.archives.images.volume import write_image, write_mask
from core.data.geometry import Geometry
from hnfed.cli.main import main

PLAN = ("smoke", "preprocess={spacing_mm: [12.0, 12.0, 12.0], crop: [16, 16, 16]}")
IDENTIFIERS = ("DOE^JANE", "JANE", "MUSTERFRAU", "TESTPHI-0001", "ACC990001", "Faketown")
GRID = Geometry((40, 48, 48), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))


def write_case(folder: Path, seed: int) -> None:
    """A body with a brainstem and two parotids, in their places."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(GRID.size)
    body = np.hypot((y - 24) / 20.0, (x - 24) / 18.0) < 1
    image = np.where(body, 30.0, -1000.0) + rng.normal(0, 10, GRID.size)
    for name, at in (
        ("BrainStem", (28, 26, 24)),
        ("Parotid_L", (20, 22, 36)),
        ("Parotid_R", (20, 22, 12)),
    ):
        mask = sum((v - c) ** 2 for v, c in zip((z, y, x), at, strict=True)) < (3.6 + seed % 2) ** 2
        write_mask(folder / "structures" / f"{name}.nrrd", mask, GRID)
    image[18:22, 12:15, 18:30] = 900 + 10 * seed
    write_image(folder / "img.nrrd", image.astype(np.int16), GRID)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An archive whose folders and files hold identifiers, and its site file."""
    root = tmp_path / "JANE archive"
    for i in range(5):
        write_case(root / f"MUSTERFRAU_{i}", i)
    structures = root / "MUSTERFRAU_0" / "structures"
    shutil.copy(structures / "Parotid_L.nrrd", structures / "PTV of DOE^JANE.nrrd")
    (structures / "Parotid_L.nrrd").rename(structures / "Parotid_L ACC990001.nrrd")
    for name in ("Parotid_L", "Parotid_R"):
        (root / "MUSTERFRAU_1" / "structures" / f"{name}.nrrd").write_bytes(b"TESTPHI-0001")
    (root / "MUSTERFRAU_2" / "img.nrrd").write_bytes(b"Faketown")
    path = tmp_path / "site.yaml"
    path.write_text(
        f"name: nyu\nroot: {root}\ncache: {tmp_path / 'cache'}\nstate: {tmp_path / 'state'}\n"
        "aliases: {Parotid_L: ['Parotid_L ACC990001']}\n"
    )
    return path


def found_in(folder: Path) -> Iterator[str]:
    """Identifiers in names and contents below a folder."""
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for word in IDENTIFIERS:
            if word in str(path.relative_to(folder)) or word.encode() in content:
                yield f"{word} in {path}"


def test_check_says_what_is_wrong_without_a_name(site: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "findings.json"
    arguments = ["check", str(tmp_path / "JANE archive"), "--site", str(site), "--jobs", "1"]
    assert main([*arguments, "--json", str(target)]) == 1
    said = capsys.readouterr()
    codes = {f["code"] for f in json.loads(target.read_text())["findings"]}
    assert {"E_IMAGE_UNREADABLE", "E_LABEL_UNREADABLE", "W_STRUCTURE_UNKNOWN"} <= codes
    for word in IDENTIFIERS:
        assert word not in said.out + said.err + target.read_text(), word
    before = said.out
    assert main(arguments) == 1
    assert capsys.readouterr().out == before, "the site's secret keeps the hashes"
    assert main([*arguments, "--show-paths"]) == 1
    assert "MUSTERFRAU_2" in capsys.readouterr().out


def test_check_of_a_site_leaves_the_cases_of_others(site: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "JANE archive"
    rows = [f"MUSTERFRAU_{i},train,{'nyu' if i in (0, 3) else 'miccai'}" for i in range(5)]
    (root / "cases.csv").write_text("\n".join(["case,split,site", *rows, "gone,test,miccai", ""]))
    target = tmp_path / "findings.json"
    arguments = ["check", str(root), "--jobs", "1", "--json", str(target)]
    assert main([*arguments, "--site", str(site)]) == 0, "what is wrong is miccai's"
    said = capsys.readouterr().out
    assert "3 further cases belong to other sites by cases.csv: not checked" in said
    assert "2 cases (pddca), 2 usable" in said
    report = json.loads(target.read_text())
    assert report["cases"] == 2
    assert "E_CASE_ABSENT" not in {f["code"] for f in report["findings"]}
    assert main(arguments) == 1
    assert "5 cases (pddca)" in capsys.readouterr().out

    site.write_text(site.read_text() + "split: {file: splits.csv}\n")
    (site.parent / "splits.csv").write_text("case,split\nMUSTERFRAU_0,train\nMUSTERFRAU_9,val\n")
    assert main([*arguments, "--site", str(site)]) == 1
    said = capsys.readouterr().out
    assert "3 further cases belong to other sites" in said
    assert "W_CASE_UNASSIGNED x1" in said
    assert "W_CASE_SPLIT" not in said
    (site.parent / "splits.csv").write_text("case,split\nMUSTERFRAU_0,val\nMUSTERFRAU_3,train\n")
    main([*arguments, "--site", str(site)])
    assert "W_CASE_SPLIT x1" in capsys.readouterr().out, "as prepare will say"
    assert "1 cases (pddca), 1 usable" in said
    assert "E_ABSENT x1" in said


def test_check_prints_what_names_mean(site: Path, tmp_path: Path, capsys) -> None:
    data = str(tmp_path / "JANE archive")
    assert main(["check", data, "--site", str(site), "--names"]) == 0
    table = capsys.readouterr().out
    assert "PTV of DOE^JANE" in table
    assert "Parotid_L ACC990001" in table


def test_a_sound_archive_is_no_error(tmp_path: Path, capsys) -> None:
    for i in range(2):
        write_case(tmp_path / f"c{i}", i)
    assert main(["check", str(tmp_path), "--jobs", "1"]) == 0
    assert "2 usable" in capsys.readouterr().out


def test_prepare_builds_once_and_leaves_no_identifier(site: Path, tmp_path: Path, capsys) -> None:
    arguments = ["prepare", str(site), *PLAN, "--jobs", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "4 cases prepared" in said.out
    assert "4 new" in said.out
    assert "E_IMAGE_UNREADABLE x1" in said.out
    assert list(found_in(tmp_path / "cache" / "entries")) == []
    for word in IDENTIFIERS:
        assert word not in said.out + said.err, word
    assert main(arguments) == 0
    assert "; 0 new" in capsys.readouterr().out
    write_case(tmp_path / "JANE archive" / "MUSTERFRAU_2", 2)
    assert main(arguments) == 0
    assert "5 cases prepared" in (out := capsys.readouterr().out)
    assert "; 1 new" in out
    assert main([*arguments[:-2], "--cache", str(tmp_path / "other"), "--jobs", "2"]) == 0
    assert "; 5 new" in capsys.readouterr().out


def test_prepare_says_where_cases_csv_overrules_a_list(site: Path, tmp_path: Path, capsys) -> None:
    rows = [f"MUSTERFRAU_{i},train" for i in range(5)]
    csv = tmp_path / "JANE archive" / "cases.csv"
    csv.write_text("\n".join(["case,split", *rows, ""]))
    site.write_text(site.read_text() + "split: {file: splits.csv}\n")
    lists = "case,split\nMUSTERFRAU_0,train\nMUSTERFRAU_1,val\nMUSTERFRAU_3,test\n"
    (site.parent / "splits.csv").write_text(lists)
    found = tmp_path / "found.json"
    main(["prepare", str(site), *PLAN, "--jobs", "1", "--json", str(found)])
    said = capsys.readouterr()
    assert json.loads(found.read_text())["noted"]["W_CASE_SPLIT"] == 2
    assert "noted: W_CASE_SPLIT x2, a list gives a case another split" in said.out
    assert "findings.csv" in said.out
    for word in IDENTIFIERS:
        assert word not in said.out + said.err, word


def test_prepare_names_organs_that_no_case_has(site: Path, tmp_path: Path, capsys) -> None:
    site.write_text(site.read_text().replace("{Parotid_L:", "{Parotis_L:"))
    for structure in (tmp_path / "JANE archive").glob("*/structures/Parotid_L*"):
        structure.rename(structure.with_name("OSD links.nrrd"))
    main(["prepare", str(site), *PLAN, "--jobs", "1"])
    said = capsys.readouterr().out
    assert "annotated by no case: Bone_Mandible, Parotid_L, Musc" in said, said
    assert "noted: W_ALIAS_UNKNOWN x1, an alias in the site file is for no organ" in said
    assert "findings.csv" in said


def test_what_is_prepared_is_for_this_account_alone(site: Path, tmp_path: Path) -> None:
    """Voxels, case ids and findings, under the umask that lets everybody in."""
    before = os.umask(0)
    try:
        assert main(["prepare", str(site), *PLAN, "--jobs", "2"]) == 0
        own = tmp_path / "elsewhere"
        assert main(["prepare", str(site), *PLAN, "--jobs", "1", "--cache", str(own)]) == 0
    finally:
        os.umask(before)
    folders = [tmp_path / "cache", tmp_path / "state", own]
    made = [*folders, *(path for folder in folders for path in folder.rglob("*"))]
    assert any(path.suffix == ".npy" for path in made)
    assert any(path.name == "findings.csv" for path in made)
    assert [path for path in made if path.stat().st_mode & 0o077] == []


def test_prepare_writes_into_no_open_folder(site: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    arguments = ["prepare", str(site), *PLAN, "--cache", str(tmp_path / "open")]
    assert main(arguments) == 1
    assert f"chmod 700 {tmp_path / 'open'}" in capsys.readouterr().err
    assert list((tmp_path / "open").iterdir()) == []


def test_a_prepare_that_fails_names_no_one(site: Path, tmp_path: Path, capsys) -> None:
    for path in (tmp_path / "JANE archive").rglob("img.nrrd"):
        path.write_bytes(b"DOE^JANE")
    assert main(["prepare", str(site), *PLAN, "--jobs", "1"]) == 1
    said = capsys.readouterr()
    assert "hnfed check" in said.err
    for word in IDENTIFIERS:
        assert word not in said.out + said.err, word
    assert list(found_in(tmp_path / "cache")) == []


def test_what_a_site_file_must_hold(tmp_path: Path, capsys) -> None:
    path = tmp_path / "site.yaml"
    for text in ("name: [a]", "name: nyu", "nmae: nyu", "- a", "name: nyu\nroot: ${oc.env:HOME}"):
        path.write_text(text)
        assert main(["prepare", str(path)]) == 1
        assert "remedy" in capsys.readouterr().err
