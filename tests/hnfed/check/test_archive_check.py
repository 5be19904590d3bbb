from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from core.archives.archive import open_archive
from core.archives.contour_qa import Place
from core.errors import Finding
from hnfed.check.archive_check import Report, check_archive
from hnfed.check.case_check import CaseFacts
from hnfed.check.cohort_check import protocols, two_groups
from hnfed.check.text import screen


def codes(root: Path, **options: object) -> list[str]:
    report = check_archive(open_archive(root), secret=b"s", **options)  # type: ignore[arg-type]
    return [f.code for f in report.findings]


@pytest.fixture
def balls(ball_archive: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ball_archive, tmp_path / "DOE_JANE_archive"))


def test_counts_and_json(balls: Path) -> None:
    (balls / "c3" / "img.nrrd").write_bytes(b"nothing")
    report = check_archive(open_archive(balls), secret=None)
    assert (report.cases, report.usable, report.errors) == (6, 5, 1)
    value = json.loads(json.dumps(report.as_json()))
    assert value["organs"] == {"Brainstem": {"n": 5}, "Parotid_L": {"n": 4}}
    assert value["schema"] == 1
    first = value["findings"][0]
    assert (first["code"], first["severity"], first["case"]) == (
        "E_IMAGE_UNREADABLE",
        "error",
        "c3",
    )
    assert set(first) == {"code", "severity", "case", "organ", "message", "remedy"}


def test_processes_say_the_same(balls: Path) -> None:
    archive = open_archive(balls)
    seen: list[tuple[int, int]] = []
    one = check_archive(archive, secret=b"s", progress=lambda *step: seen.append(step))
    two = check_archive(archive, secret=b"s", jobs=2)
    assert one == two
    assert seen == [(i, 6) for i in range(1, 7)]


def test_no_name_and_no_path_unless_asked_for(balls: Path) -> None:
    (balls / "c1").rename(balls / "Musterfrau_Erika")
    text = (balls / "cases.csv").read_text().replace("c1,", "Musterfrau_Erika,")
    (balls / "cases.csv").write_text(text + "Nobody_Known,test,north\n")
    structures = balls / "Musterfrau_Erika" / "structures"
    (structures / "PTV_Dr_Smith.nrrd").write_bytes(b"")
    (structures / "BrainStem of Erika.nrrd").write_bytes(b"")
    (structures / "Brainstem.nrrd").write_bytes(b"broken")
    archive = open_archive(balls)
    hidden = check_archive(archive, secret=b"s")
    named = check_archive(archive, secret=None)
    assert [f.code for f in hidden.findings] != []
    assert len(hidden.findings) == len(named.findings)
    for text in (json.dumps(hidden.as_json()), screen(hidden)):
        for word in ("Musterfrau", "Erika", "Smith", "Nobody_Known", "DOE_JANE", str(balls)):
            assert word not in text, word
    assert "Musterfrau_Erika" in json.dumps(named.as_json())
    other = check_archive(archive, secret=b"another")
    case = next(f.case for f in hidden.findings if f.code == "E_LABEL_UNREADABLE")
    assert case not in {f.case for f in other.findings}


def test_copies_and_patients_in_two_splits(balls: Path) -> None:
    assert not [code for code in codes(balls) if code.startswith("E_")]
    shutil.copytree(balls / "c0", balls / "copy")
    rows = (balls / "cases.csv").read_text() + "copy,test,south\n"
    (balls / "cases.csv").write_text(rows)
    report = check_archive(open_archive(balls), secret=None)
    double = [f for f in report.findings if f.code == "E_DUPLICATE"]
    assert [f.case for f in double] == ["c0"], "the copy in test is kept"
    assert report.usable == 6
    patients = [
        line + (",patient" if not i else f",P{i % 4}") for i, line in enumerate(rows.splitlines())
    ]
    (balls / "cases.csv").write_text("\n".join(patients) + "\n")
    leaks = [f for f in check_archive(open_archive(balls)).findings if f.code == "E_SPLIT_PATIENT"]
    assert len(leaks) == 3
    assert "P1" not in str(leaks)


@pytest.mark.parametrize(
    ("values", "mixed"),
    [
        ([10, 11, 12, 24, 25, 26], True),
        ([10, 24, 25, 26, 27, 28], False),
        ([10, 12, 14, 17, 20, 24, 29, 35], False),
        ([20, 22, 24, 26, 30, 33], False),
        ([], False),
    ],
)
def test_two_groups_have_a_gap_between_them(values: list[float], mixed: bool) -> None:
    assert (two_groups(values) is not None) is mixed


def test_protocols_are_compared_inside_a_site() -> None:
    facts = [
        CaseFacts(f"c{i}", {"Larynx": Place(ml, (0.0, 0.0, 0.0), 40.0)}, ())
        for i, ml in enumerate([10.0, 11.0, 12.0, 30.0, 31.0, 32.0])
    ]
    one = {f.case: "a" for f in facts}
    two = {f"c{i}": "ab"[i // 3] for i in range(6)}
    assert [(f.code, f.organ) for f in protocols(facts, one)] == [("W_PROTOCOL_MIXED", "Larynx")]
    assert protocols(facts, two) == []


def test_the_screen_is_one_screen(balls: Path) -> None:
    for i in range(30):
        (balls / f"bad{i:02d}").mkdir()
        (balls / f"bad{i:02d}" / "img.nrrd").write_bytes(b"x")
    report = check_archive(open_archive(balls))
    lines = screen(report).splitlines()
    assert len(lines) < 40
    assert any("E_IMAGE_UNREADABLE x30" in line for line in lines)
    assert "36 cases (pddca), 6 usable" in lines[0]


def test_every_reason_of_a_code_is_on_the_screen() -> None:
    """Two series refused for different reasons: the first one's reason is not the second's."""

    def refused(case: str, message: str) -> Finding:
        return Finding("E_IMAGE_GEOMETRY", "error", case, "", message, f"remedy of {message}")

    tilts = [refused(f"{n}f", f"gantry tilt of {n}.5 degrees") for n in range(3)]
    found = [*tilts, refused("b", "PixelSpacing reads [3,2]: a decimal comma"), refused("c", "x")]
    text = screen(Report("dicom", 5, 0, {}, tuple(found)))
    assert text.count("gantry tilt") == 2, "one line, and its remedy"
    assert "a decimal comma" in text
    assert "E_IMAGE_GEOMETRY x5" in text
    more = [refused(str(n), f"reason {word}") for n, word in enumerate("abcde")]
    assert "and 2 further reasons: see --json" in screen(Report("dicom", 5, 0, {}, tuple(more)))


def test_a_case_without_contours_is_told_what_it_lacks(balls: Path) -> None:
    shutil.rmtree(balls / "c1" / "structures")
    report = check_archive(open_archive(balls), secret=None)
    (finding,) = [f for f in report.findings if f.case == "c1" and f.severity == "error"]
    assert finding.code == "E_NO_ORGAN"
    assert finding.message == "no contours belong to this CT"
