from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.archives.archive import open_archive
from core.archives.preparing import chosen, count_codes
from core.data.site import COUNT, Site, Source, simulated_site
from core.errors import Finding, UserError
from core.plan.schema import Phase, Plan
from tests.client.conftest import filled

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
    entries, findings = filled(site, plan)
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
        absent="count",
    )
    site = replace(site, sources=(source,), cache=tmp_path / "cache")
    plan = make_plan()
    _, findings = filled(site, plan)
    assert splits(site, plan) == {"0": "train", "3": "val", "4": "test"}
    assert count_codes(findings) == {"E_ABSENT": 1, "E_EXCLUDED": 1, "W_CASE_UNASSIGNED": 1}


def test_a_split_that_cases_csv_overrules_is_counted(
    site: Site, make_plan: MakePlan, archive: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(archive, copy)
    listed = {"0": "train", "1": "train", "2": "train", "3": "val", "4": "test"}
    cases = [ref.case for ref in open_archive(copy).cases]
    rows = [f"{case},{listed[case[-1]]}" for case in cases]
    (copy / "cases.csv").write_text("\n".join(["case,split", *rows]) + "\n")
    source = Source(root=str(copy), splits={"train": ["0", "1", "2"], "val": ["4"], "test": ["3"]})
    site = replace(site, sources=(source,), cache=tmp_path / "cache")
    _, findings = filled(site, make_plan())
    assert splits(site, make_plan()) == listed, "the archive's own stands"
    assert count_codes(findings) == {"W_CASE_SPLIT": 2}


@pytest.mark.parametrize(
    ("lists", "field", "value"),
    [
        ({"splits": {"train": ["0", "77"], "val": ["3"], "test": ["4", "78"]}}, "splits", "77, 78"),
        ({"exclude": ["8"]}, "exclude", "8"),
        ({"splits": {"train": ["\u0660"]}}, "splits", "\u0660"),
        ({"exclude": ["doe_jane_1950_1"]}, "exclude", "doe_jane_1950_1"),
    ],
)
def test_a_listed_case_that_does_not_exist_is_an_error(
    lists: dict[str, Any], field: str, value: str, archive: Path
) -> None:
    opened = open_archive(archive)
    with pytest.raises(UserError) as caught:
        chosen(Source(root=str(archive), **lists), opened)
    assert (caught.value.field, caught.value.value) == (field, value)
    assert "no such case" in caught.value.problem
    assert "absent: count" in caught.value.remedy
    counted, _ = chosen(Source(root=str(archive), absent="count", **lists), opened)
    known = {"E_ABSENT", "W_EXCLUDE_UNKNOWN", "W_CASE_UNASSIGNED"}
    assert {f.code for f in counted.findings} <= known
    assert counted.findings


def test_a_listed_case_that_cannot_be_used_is_no_unknown_one(archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(archive, copy)
    (copy / "DOE_Jane_1950_1" / "img.nrrd").unlink()
    (copy / "cases.csv").unlink()
    source = Source(root=str(copy), splits={"train": ["0", "1", "2"], "val": ["3"], "test": ["4"]})
    opened = open_archive(copy)
    assert "DOE_Jane_1950_1" not in {r.case for r in opened.cases}
    own, _ = chosen(source, opened)
    assert len(own.cases) == 4
    assert [f.case for f in own.findings if f.severity == "error"] == ["DOE_Jane_1950_1"]


def test_a_split_that_changes_under_a_run_is_of_the_next_run(
    site: Site, make_plan: MakePlan, archive: Path, tmp_path: Path
) -> None:
    copy, plan = tmp_path / "copy", make_plan()
    shutil.copytree(archive, copy)
    site = replace(site, sources=(Source(root=str(copy)),), cache=tmp_path / "cache")
    later = replace(site, run_folder=tmp_path / "state" / "later")
    before, _ = filled(site, plan)
    text = (copy / "cases.csv").read_text()
    text = text.replace("test", "swap").replace("val", "test").replace("swap", "val")
    (copy / "cases.csv").write_text(text)
    after, _ = filled(later, plan)
    assert [e.split for e in before] == ["train", "train", "train", "val", "test"]
    assert [e.split for e in site.entries(plan)] == [e.split for e in before]
    assert [e.split for e in later.entries(plan)] == ["train", "train", "train", "test", "val"]
    assert [e.folder for e in after] == [e.folder for e in before]  # prepared once


def test_a_run_that_was_not_prepared_here_says_so(site: Site, make_plan: MakePlan) -> None:
    with pytest.raises(UserError, match="--resume"):
        site.entries(make_plan())


def test_every_finding_is_named_at_the_site_and_counted_outside(
    site: Site, make_plan: MakePlan, archive: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(archive, copy)
    rows = (copy / "cases.csv").read_text().splitlines()
    (copy / "cases.csv").write_text("\n".join(rows[:-1]))
    (copy / "DOE_Jane_1950_1" / "img.nrrd").write_bytes(b"NRRD0004\n")
    site = replace(
        site,
        sources=(Source(root=str(copy), exclude=["2", "88"], absent="count"),),
        cache=tmp_path / "cache",
    )
    _, findings = filled(site, make_plan())
    expected = {
        ("E_EXCLUDED", "error", "DOE_Jane_1950_2"),
        ("E_IMAGE_UNREADABLE", "error", "DOE_Jane_1950_1"),
        ("W_CASE_UNASSIGNED", "warning", "DOE_Jane_1950_4"),
        ("W_CASE_UNLISTED", "warning", "DOE_Jane_1950_4"),
        ("W_EXCLUDE_UNKNOWN", "warning", "88"),
    }
    assert count_codes(findings) == dict.fromkeys(sorted(code for code, *_ in expected), 1)
    with (site.run_folder / "findings.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["code", "severity", "case", "organ", "message", "remedy"]
    assert expected <= {(r["code"], r["severity"], r["case"]) for r in table}
    assert len(table) == len(findings)
    assert all(r["message"] and r["remedy"] for r in table)
    assert {p.name for p in site.run_folder.iterdir()} == {"findings.csv", "split.hmac"}


def test_findings_of_several_archives_are_told_apart(
    site: Site, make_plan: MakePlan, archive: Path, tmp_path: Path
) -> None:
    sources = tuple(Source(root=str(archive), label=n, exclude=["4"]) for n in ("east", "west"))
    site = replace(site, sources=sources, cache=tmp_path / "cache")
    entries, findings = filled(site, make_plan())
    named = [f.case for f in findings if f.code == "E_EXCLUDED"]
    assert named == ["east/DOE_Jane_1950_4", "west/DOE_Jane_1950_4"]
    assert [e.case for e in entries] == [
        f"{n}/DOE_Jane_1950_{i}" for n in ("east", "west") for i in range(4)
    ]


def test_of_cases_of_other_sites_nothing_is_told(
    site: Site, make_plan: MakePlan, archive: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(archive, copy)
    header, *rows = (copy / "cases.csv").read_text().splitlines()
    assert header == "case,split"
    rows = [f"{row},{'south' if row.split(',')[0][-1] in '12' else 'north'}" for row in rows]
    rows += ["gone_south,train,south", "gone_north,train,north"]
    (copy / "cases.csv").write_text("\n".join([f"{header},site", *rows]))
    source = Source(root=str(copy), label="north")
    site = replace(site, name="north", sources=(source,), cache=tmp_path / "cache")
    with pytest.raises(UserError, match=r"cases\.csv = gone_north: no such case") as caught:
        filled(site, make_plan())
    assert "absent: count" in caught.value.remedy
    site = replace(site, sources=(replace(source, absent=COUNT),))
    entries, findings = filled(site, make_plan())
    assert [e.case[-1] for e in entries] == ["0", "3", "4"]
    assert count_codes(findings) == {"E_CASE_ABSENT": 1}
    assert "gone_north" in (site.run_folder / "findings.csv").read_text()


@pytest.fixture
def twins(archive: Path, tmp_path: Path) -> Path:
    """Cases A_007, B_007 and C_8 without a list."""
    for i, name in enumerate(("A_007", "B_007", "C_8")):
        shutil.copytree(archive / f"DOE_Jane_1950_{i}", tmp_path / "twins" / name)
    return tmp_path / "twins"


@pytest.mark.parametrize(
    ("lists", "field", "problem"),
    [
        ({"splits": {"train": ["7", "8"]}}, "splits", "2 cases end in this number"),
        ({"splits": {"train": ["C_8", "A_007"]}, "exclude": ["7"]}, "exclude", "2 cases"),
        ({"splits": {"train": ["A_007", "8"], "test": ["C_8"]}}, "splits", "train and in test"),
    ],
)
def test_lists_that_leave_a_case_open_are_refused(
    site: Site,
    make_plan: MakePlan,
    twins: Path,
    tmp_path: Path,
    lists: dict[str, Any],
    field: str,
    problem: str,
) -> None:
    source = Source(root=str(twins), **lists)
    site = replace(site, sources=(source,), cache=tmp_path / "cache")
    with pytest.raises(UserError, match=problem) as caught:
        filled(site, make_plan())
    assert caught.value.field == field


def test_full_ids_tell_cases_of_one_number_apart(
    site: Site, make_plan: MakePlan, twins: Path, tmp_path: Path
) -> None:
    lists: dict[str, list[str]] = {"train": ["A_007", "008", "C_8"], "test": ["B_007"]}
    source = Source(root=str(twins), splits=lists)
    site = replace(site, sources=(source,), cache=tmp_path / "cache")
    entries, findings = filled(site, make_plan())
    assert {e.case: e.split for e in entries} == {
        "A_007": "train",
        "B_007": "test",
        "C_8": "train",
    }
    assert count_codes(findings) == {}


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
        filled(site, make_plan(*phases))
        return site.split_hash()

    first = digest(site)
    assert digest(site, make_phase(organs=["Parotid_L"])) == first  # whatever the plan uses
    assert digest(replace(site, secret=b"other")) != first
    fewer = replace(site.sources[0], exclude=["4"])
    assert digest(replace(site, sources=(fewer,))) != first
    assert "DOE" not in first


def test_only_codes_of_what_was_left_out_or_not_used_are_counted() -> None:
    findings = [
        Finding("E_B", "error", "Jane", "", "m", "r"),
        Finding("E_A", "error", "Jane", "", "m", "r"),
        Finding("E_B", "error", "Joe", "", "m", "r"),
        Finding("W_C", "warning", "Joe", "", "m", "r"),
        Finding("W_CASE_UNASSIGNED", "warning", "Jim", "", "m", "r"),
        Finding("W_EXCLUDE_UNKNOWN", "warning", "Jim", "", "m", "r"),
    ]
    assert count_codes(findings) == {
        "E_A": 1,
        "E_B": 2,
        "W_CASE_UNASSIGNED": 1,
        "W_EXCLUDE_UNKNOWN": 1,
    }


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
