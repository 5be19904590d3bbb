from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import UserError
from simulations.run import resolve, simulate
from simulations.site_map import site_map

RunTiny = Callable[..., Path]
SPLITS = "{train: ['0', '1', '4'], val: ['2'], test: ['3']}"


@pytest.fixture
def halves(archive: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same archive in two folders: cases 0 to 2, cases 3 and 4."""
    folders = tmp_path / "a", tmp_path / "b"
    for i, case in enumerate(sorted(archive.glob("miccai_*"))):
        shutil.copytree(case, folders[i > 2] / case.name)
    return folders


def words(data: str, splits: str = SPLITS) -> list[str]:
    return [
        f"simulation.data={data}",
        f"simulation.sites.miccai={{root: '{{data}}', splits: {splits}}}",
        "phases.pretrain.sites=[miccai]",
        "phases.pretrain.rounds=1",
        "phases.personalise.sites=[miccai]",
        "phases.personalise.organs=[Bone_Mandible]",
        "phases.personalise.rounds=1",
    ]


def test_two_folders_are_one_archive(
    halves: tuple[Path, Path], archive: Path, run_tiny: RunTiny, tmp_path: Path
) -> None:
    a, b = halves
    parts = run_tiny("parts", *words(f"[{a},{b}]"))
    one = run_tiny("one", *words(str(archive)))
    findings = (parts / "sites" / "miccai" / "findings.csv").read_text()
    assert "E_ABSENT" not in findings
    described = [
        next(e for e in map(json.loads, (run / "journal.jsonl").read_text().splitlines())
             if e["event"] == "site-described")
        for run in (parts, one)
    ]  # fmt: skip
    assert described[0]["cases"] == described[1]["cases"] == {"train": 3, "val": 1, "test": 1}
    assert described[0]["organs"] == described[1]["organs"]


def test_a_case_of_neither_folder_is_refused(
    halves: tuple[Path, Path], tiny: list[str], tmp_path: Path
) -> None:
    a, b = halves
    lists = SPLITS.replace("'4'", "'9'")
    with pytest.raises(UserError, match="9: no such case in the archive"):
        simulate("smoke", [*tiny, *words(f"[{a},{b}]", lists)], tmp_path / "x")


def test_a_patient_in_two_folders_is_refused_by_name(
    halves: tuple[Path, Path], tiny: list[str], tmp_path: Path
) -> None:
    a, b = halves
    shutil.copytree(b / "miccai_004", a / "miccai_004")
    with pytest.raises(UserError, match="stand in two of the folders") as caught:
        simulate("smoke", [*tiny, *words(f"[{a},{b}]")], tmp_path / "x")
    assert caught.value.value == "miccai_004"


def test_a_folder_without_listed_cases_gives_none(
    halves: tuple[Path, Path], tiny: list[str], tmp_path: Path
) -> None:
    a, b = halves
    lists = "{train: ['0'], val: ['1'], test: ['2']}"
    _, config = resolve("smoke", [*tiny, *words(f"[{a},{b}]", lists)])
    (tmp_path / "x").mkdir()
    (source,) = site_map(config, tmp_path / "x")["sites"]["miccai"]["sources"]
    assert source["root"] == str(a)


@pytest.mark.parametrize("data", ["[]", "''", "[a,a]", "[a,'']", "3", "{a: b}"])
def test_what_names_no_folders_is_refused(data: str, tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"simulation\.data"):
        simulate("smoke", [*tiny, *words(data)], tmp_path / "x")
    assert not (tmp_path / "x").exists()
