"""A mark such as D5 stands for a numbered decision: each one can be looked up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "decisions" / "README.md"
MARK = re.compile(r"\bD[0-9]{1,2}\b")
IN_WORDS = re.compile(r"\bdecisions? [0-9]")
WRITTEN = (".py", ".md", ".yaml", ".yml", ".toml", ".j2", ".cfg")
PLACES = (
    "core", "server", "client", "simulations", "hnfed", "benchmarks", "configs", "docs", "tests",
)  # fmt: skip


def written() -> Iterator[Path]:
    """Every text of the repository, but for this file and what lies in hidden folders."""
    yield from (p for p in sorted(ROOT.iterdir()) if p.is_file() and p.suffix in WRITTEN)
    for place in PLACES:
        found = (p for p in sorted((ROOT / place).rglob("*")) if p.suffix in WRITTEN)
        yield from (p for p in found if p != Path(__file__).resolve())


def decided() -> list[str]:
    return re.findall(r"^\* \*\*(D[0-9]+)\b", PAGE.read_text("utf-8"), flags=re.M)


def test_every_mark_stands_on_the_page_of_decisions() -> None:
    used = {
        mark: path.relative_to(ROOT)
        for path in written()
        if path != PAGE
        for mark in MARK.findall(path.read_text("utf-8"))
    }
    assert len(used) > 10  # the reader finds them
    assert {mark: str(path) for mark, path in used.items() if mark not in decided()} == {}


def test_decisions_are_numbered_once_and_in_order() -> None:
    assert decided() == [f"D{n}" for n in range(1, len(decided()) + 1)]


def test_a_decision_is_named_by_its_mark() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in written()
        for text in IN_WORDS.findall(path.read_text("utf-8"))
    ]
    assert found == []


def test_the_page_links_every_longer_one() -> None:
    linked = re.findall(r"\]\((\d{4}-[a-z-]+\.md)\)", PAGE.read_text("utf-8"))
    pages = sorted(p.name for p in PAGE.parent.glob("[0-9]*.md"))
    assert sorted(set(linked)) == pages


def test_code_names_no_page_that_is_not_here() -> None:
    pages = {p.name for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]}
    pages.add("dataset_format.md")  # of nnU-Net
    named = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in written()
        if path.suffix == ".py" and not path.is_relative_to(ROOT / "tests")
        for name in re.findall(r"[`/]([\w-]+\.md)\b", path.read_text("utf-8"))
        if name not in pages
    ]
    assert named == []
