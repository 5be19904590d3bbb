from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.site import Site, Source, count_codes, simulated_site, site_from_file
from core.errors import Finding, UserError
from core.plan import Phase, Plan

MakePlan = Callable[..., Plan]
MakePhase = Callable[..., Phase]


def splits(site: Site, plan: Plan) -> dict[str, str]:
    return {e.case[-1]: e.split for e in site.entries(plan)}


def test_prepare_fills_the_cache_and_training_needs_nothing_else(
    site: Site, make_plan: MakePlan, archive: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(archive, copy)
    site = replace(site, sources=(Source(root=str(copy)),), cache=tmp_path / "cache")
    plan = make_plan()
    entries, findings = site.prepare(plan)
    assert len(entries) == 5
    assert count_codes(findings) == {}
    shutil.rmtree(copy)
    assert splits(site, plan) == {"0": "train", "1": "train", "2": "train", "3": "val", "4": "test"}
    assert site.entries(plan)[0].image().shape == (16, 16, 16)
    for path in (tmp_path / "cache").rglob("*.json"):
        assert str(copy) not in path.read_text()


def test_explicit_splits_by_number_exclusions_and_what_is_absent(
    site: Site, make_plan: MakePlan, archive: Path, tmp_path: Path
) -> None:
    source = Source(
        root=str(archive),
        splits={"train": ["0", "2", "77"], "test": ["4"], "val": ["3"]},
        exclude=["2"],
    )
    site = replace(site, sources=(source,), cache=tmp_path / "cache")
    plan = make_plan()
    _, findings = site.prepare(plan)
    assert splits(site, plan) == {"0": "train", "3": "val", "4": "test"}
    assert count_codes(findings) == {"E_ABSENT": 1, "E_EXCLUDED": 1}


def test_of_phase_takes_the_cases_that_annotate_an_organ_of_it(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    plan = make_plan()
    parotid = make_phase(organs=["Parotid_L"])
    assert [e.case[-1] for e in prepared.of_phase(plan, parotid, "train")] == ["0", "2"]
    assert [e.case[-1] for e in prepared.of_phase(plan, make_phase(), "train")] == ["0", "1", "2"]
    assert [e.case[-1] for e in prepared.of_phase(plan, make_phase(), "val")] == ["3"]


def test_fewer_cases_are_a_part_of_more_and_the_fullest_come_first(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    plan = make_plan()
    chosen = [
        {e.case for e in prepared.of_phase(plan, make_phase(max_cases=n), "train")}
        for n in (1, 2, 3)
    ]
    assert [len(c) for c in chosen] == [1, 2, 3]
    assert chosen[0] < chosen[1] < chosen[2]
    assert not any(c.endswith("1") for c in chosen[1])  # it annotates one organ only
    assert len(prepared.of_phase(plan, make_phase(max_cases=1), "val")) == 1


def test_the_split_hash_is_of_the_whole_split_and_tells_nothing_without_the_secret(
    site: Site, make_plan: MakePlan, make_phase: MakePhase, archive: Path
) -> None:
    def digest(site: Site, *phases: Phase) -> str:
        site.prepare(make_plan(*phases))
        return site.split_hash()

    first = digest(site)
    assert digest(site, make_phase(organs=["Parotid_L"])) == first  # whatever the plan uses
    assert digest(replace(site, secret=b"other")) != first
    fewer = replace(site.sources[0], exclude=["4"])
    assert digest(replace(site, sources=(fewer,))) != first
    assert "DOE" not in first


def test_only_codes_of_what_was_left_out_are_counted() -> None:
    findings = [
        Finding("E_B", "error", "Jane", "", "m", "r"),
        Finding("E_A", "error", "Jane", "", "m", "r"),
        Finding("E_B", "error", "Joe", "", "m", "r"),
        Finding("W_C", "warning", "Joe", "", "m", "r"),
    ]
    assert count_codes(findings) == {"E_A": 1, "E_B": 2}


def test_a_simulated_site_is_found_by_its_number(tmp_path: Path) -> None:
    local = json.dumps(
        {
            "sites": {
                "zeta": {"sources": [{"root": "z"}]},
                "alpha": {"sources": [{"root": "a", "label": "alpha", "exclude": ["1"]}]},
            },
            "out": str(tmp_path),
            "cache": "c",
            "device": "cpu",
            "overlays": 3,
        }
    )
    first, second = (simulated_site(local, i, "run") for i in (0, 1))
    assert (first.name, second.name) == ("alpha", "zeta")
    assert first.sources == (Source(root="a", label="alpha", exclude=["1"]),)
    assert first.run_folder == tmp_path / "sites" / "alpha"
    assert first.overlays == 3
    assert first.secret == second.secret


def site_file(folder: Path, **changes: Any) -> Path:
    values = {
        "name": "north",
        "root": "/data/archive",
        "cache": str(folder / "cache"),
        "state": str(folder / "state"),
    } | changes
    path = folder / "site.yaml"
    path.write_text("\n".join(f"{k}: {json.dumps(v)}" for k, v in values.items() if v is not None))
    return path


def test_a_site_file(tmp_path: Path) -> None:
    path = site_file(
        tmp_path, format="pddca", aliases={"Parotid_L": ["Lt Parotid"]}, device="cuda:1"
    )
    site = site_from_file(path, "run7")
    assert (site.name, site.device) == ("north", "cuda:1")
    (source,) = site.sources
    assert (source.root, source.format) == ("/data/archive", "pddca")
    assert source.aliases == {"Parotid_L": ["Lt Parotid"]}
    assert source.split == {"train": 0.64, "val": 0.16, "test": 0.2, "seed": 0}
    assert site.run_folder == tmp_path / "state" / "run7"
    assert site.base_folder == tmp_path / "state" / "base"
    assert site.overlays == 0


def test_the_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    first, second = (site_from_file(site_file(tmp_path), r) for r in ("a", "b"))
    assert first.secret == second.secret
    assert len(first.secret) == 32
    assert (tmp_path / "state" / "secret").stat().st_mode & 0o077 == 0
    (tmp_path / "elsewhere").mkdir()
    assert site_from_file(site_file(tmp_path / "elsewhere"), "a").secret != first.secret


def test_a_split_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text("case,split\nx,train\ny,test\n")
    site = site_from_file(site_file(tmp_path, split={"file": "splits.csv"}), "r")
    assert site.sources[0].splits == {"train": ["x"], "val": [], "test": ["y"]}
    assert site.sources[0].split == {}


@pytest.mark.parametrize(
    "text", ["case,split\nx,training\n", "patient,split\nx,train\n", None], ids=str
)
def test_a_split_file_that_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(UserError, match="case,split"):
        site_from_file(site_file(tmp_path, split={"file": "splits.csv"}), "r")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"nmae": "x"}, "site file: nmae"),
        ({"state": None}, "site file: state"),
        ({"root": ""}, "site file: root"),
    ],
)
def test_a_site_file_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(UserError) as caught:
        site_from_file(site_file(tmp_path, **changes), "r")
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["a: [", "- a", ""])
def test_a_site_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        site_from_file(path, "r")
    with pytest.raises(UserError, match="readable"):
        site_from_file(tmp_path / "none.yaml", "r")
