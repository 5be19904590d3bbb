"""`hnfed init`: what it writes is read by what will read it, and nothing is overwritten."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import UserError
from core.plan.load import load
from hnfed.cli.main import main
from hnfed.deploy.provision import read_federation
from hnfed.deploy.site_file import site_from_file
from hnfed.deploy.starter import STARTERS, Ask, start
from tests.terminals import heard

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "archive").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typing(*lines: str) -> Ask:
    """A person who types these lines, and Enter from then on."""
    left: Iterator[str] = iter(lines)
    return lambda question: next(left, "")


def test_every_default_makes_a_file_that_is_read(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, starter in STARTERS.items():
        assert main(["init", kind, "--yes"]) == 0
        told = capsys.readouterr().out
        assert f"written: {starter.file}" in told
        assert "next:" in told
        assert "hnfed " in told.split("next:")[1]
    config, _ = load("plan.yaml", [])
    assert (config.site_names, len(config.phases)) == (("site_a", "site_b"), 1)
    assert read_federation(Path("federation.yaml")).keys == "site"
    assert not (here / "hnfed-state").exists(), "only looked at"
    site = site_from_file(Path("site.yaml"), "check")
    assert (site.name, site.sources[0].root) == ("site_a", str(here / "archive"))


@pytest.mark.parametrize("kind", STARTERS)
def test_nothing_is_overwritten(kind: str, here: Path) -> None:
    path = here / STARTERS[kind].file
    path.write_text("mine")
    with pytest.raises(UserError, match="there already"):
        start(kind, {}, None, None)
    assert path.read_text() == "mine"
    start(kind, {}, here / "other" / "new.yaml", None)
    assert (here / "other" / "new.yaml").is_file()


def test_answers_typed_and_given_beforehand(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []
    person = typing("elsewhere", "federation", "nyu, miccai, ucl", "", "20")

    def ask(question: str) -> str:
        asked.append(question)
        return person(question)

    lines = start("plan", {"own": "Larynx", "own_site": "ucl"}, None, ask)
    assert "use one of simulation, federation" in capsys.readouterr().out, "asked again"
    assert not any("phantom" in text for text in asked), "for a simulation alone"
    config, _ = load("plan.yaml", [])
    first, second = config.phases
    assert (first.rounds, list(first.sites)) == (20, ["nyu", "miccai", "ucl"])
    assert (second.sites, second.organs, second.share) == (["ucl"], ["Larynx"], "none")
    assert config.federation.secure_aggregation, "three sites"
    assert any("hnfed run plan.yaml" in line for line in lines)


def test_two_sites_of_a_federation_cannot_hide_in_a_sum() -> None:
    start("plan", {"where": "federation"}, None, None)
    assert not load("plan.yaml", [])[0].federation.secure_aggregation


def test_archives_of_a_simulation(here: Path) -> None:
    start("plan", {"data": "archive", "sites": "a,b"}, None, None)
    sites = load("plan.yaml", [])[0].simulation.sites
    assert {name: site.root for name, site in sites.items()} == {
        name: str(here / "archive" / name) for name in "ab"
    }


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("site", {"root": "absent"}, "root=DIR"),
        ("site", {"split": "60/30"}, "percent"),
        ("site", {"split": "100/0/0"}, "at least 1"),
        ("site", {"format": "nifti"}, "use one of"),
        ("site", {"device": "gpu"}, "device"),
        ("site", {"name": "NYU!"}, "small letters"),
        ("site", {"colour": "red"}, "no question"),
        ("plan", {"organs": "Brainstm"}, "Brainstem"),
        ("plan", {"rounds": "0"}, "whole number"),
        ("plan", {"sites": "a,a"}, "each site once"),
        ("plan", {"own": "Larynx", "own_site": "other"}, "site_a"),
        ("federation", {"port": "70000"}, "65534"),
        ("federation", {"sites": "server"}, "another name"),
        ("federation", {"host": "a b"}, "sites dial"),
    ],
)
def test_answers_that_cannot_be_used(kind: str, given: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        start(kind, given, None, None)
    assert words in str(caught.value)
    assert not Path(STARTERS[kind].file).exists()


def test_each_question_has_a_default_and_says_it() -> None:
    for kind, starter in STARTERS.items():
        asked: list[str] = []
        start(kind, {}, Path(f"all-{kind}.yaml"), lambda q, to=asked: to.append(q) or "")
        assert asked
        assert all(text.endswith("]: ") and "[]" not in text for text in asked)
        assert len(asked) <= len(starter.questions)


def test_at_a_terminal(here: Path) -> None:
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "hnfed.cli.main", "init", "federation"])
    os.write(terminal, b"\nfed.example.org\n\n\n\n")
    said = heard(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said
    assert b"[hn]: " in said
    assert read_federation(here / "federation.yaml").host == "fed.example.org"
