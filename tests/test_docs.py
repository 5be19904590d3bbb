"""Each command and each configuration key is documented, and no page names another one."""

from __future__ import annotations

import argparse
import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path

from core.plan.schema import Config
from hnfed.cli.main import _parser

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"


def keys_of(schema: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a configuration dataclass; list items have no index, map items are NAME."""
    for name, kind in typing.get_type_hints(schema).items():
        if name not in {f.name for f in dataclasses.fields(schema)}:
            continue
        items = [a for a in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(a)]
        if not items:
            yield prefix + name
        elif typing.get_origin(kind) is dict:
            yield prefix + name
            yield from keys_of(items[0], f"{prefix}{name}.NAME.")
        else:
            yield from keys_of(items[0], f"{prefix}{name}.")


def documented() -> list[str]:
    return re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.M)


def test_every_configuration_key_is_documented_once() -> None:
    known = list(keys_of(Config))
    assert len(known) > 50
    assert sorted(documented()) == sorted(known)


def test_every_command_is_in_the_readme_and_has_an_example() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert {"simulate", "predict", "evaluate", "report", "compare", "config"} <= set(
        commands.choices
    )
    for name, parser in commands.choices.items():
        assert f"hnfed {name}" in readme, name
        text = parser.format_help()
        nested = [
            p.format_help()
            for a in parser._actions
            if isinstance(a, argparse._SubParsersAction)
            for p in a.choices.values()
        ]
        assert f"hnfed {name} " in " ".join([text.split("options:")[-1], *nested]), name


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    assert len(pages) > 5
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_page_holds_a_mark_that_was_to_be_filled_in() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8").replace("\n@@\n", "\n")  # of a diff
        assert "@@" not in text, page.name


def prose(page: Path) -> str:
    """A page without its code: no blocks, no spans."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def test_the_glossary_has_each_term_once_in_order() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    sections = [
        [t for t in re.findall(r"^\| ([^|]+?) \|", part, flags=re.M) if t not in ("term", "---")]
        for part in text.split("\n## ")[1:]
    ]
    terms = [term for section in sections for term in section]
    assert len(terms) > 60
    assert len(set(terms)) == len(terms)
    assert all(section == sorted(section, key=str.lower) for section in sections)


def test_a_bundle_is_an_app_bundle_or_a_model_bundle() -> None:
    """As the glossary has it; decisions tell of one kind each, and say so where they begin."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    unclear = re.compile(r"(?<!\bapp )(?<!\bmodel )(?<!\bMONAI )(?<!\bcode )\bbundles?\b", re.I)
    found = [
        f"{page.name}: {line.strip()[:80]}"
        for page in pages
        if page.name != "CHANGELOG.md"
        for line in " ".join(prose(page).split("\n")).split(". ")
        if unclear.search(line)
    ]
    assert found == []
