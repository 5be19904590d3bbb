"""The documentation site: its order is the README's, it has every page, it fetches nothing."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.docs.commands import ROOT

DOCS = ROOT / "docs"
CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
ROW = re.compile(r"^\| (\w+) \| \[docs/[^]]*\]\(docs/([^)]+)\) \|", flags=re.M)
ENTRY = re.compile(r"^::: ([\w.]+)$", flags=re.M)
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]*)\"|<link[^>]*\shref=\"([^\"]*)\""
)


def navigation() -> list[tuple[str, str]]:
    """Heading and page of each entry; a section within a heading by the page that begins it."""
    return [
        (heading, page)
        for group in CONFIG["nav"]
        for heading, pages in group.items()
        for page in (_first(item) for item in pages)
    ]


def _first(item: Any) -> str:
    return item if isinstance(item, str) else next(iter(item.values()))[0]


def _every(item: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    parts = item if isinstance(item, list) else list(item.values())
    return [page for part in parts for page in _every(part)]


def test_the_order_of_the_site_is_that_of_the_readme() -> None:
    rows = ROW.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(rows) > 20
    assert [row for row in rows if not row[1].endswith(".ipynb")] == navigation()
    headings = list(dict.fromkeys(heading for heading, _ in rows))
    assert headings == ["Start", "Researcher", "Site", "Coordinator", "Developer"]


def test_every_page_is_in_the_site_once() -> None:
    pages = _every(CONFIG["nav"])
    assert sorted(pages) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))


def test_entries_of_the_api_exist_and_say_what_they_do() -> None:
    found = [
        entry
        for page in sorted((DOCS / "api").glob("*.md"))
        for entry in ENTRY.findall(page.read_text(encoding="utf-8"))
    ]
    assert len(found) > 30
    for entry in found:
        module, _, name = entry.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        assert value.__module__ == module, f"{entry} lives in {value.__module__}"
        assert value.__doc__, entry


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="pip install '.[docs]'")
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    for name in ("docs", "core", "server", "client", "simulations", "hnfed"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=240)
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        sources = [source or link for source, link in FETCHED.findall(text)]
        assert not [s for s in sources if s.startswith(("http:", "https:", "//"))], page.name
        assert 'class="mermaid"' not in text, "its script would be fetched"
    api = (tmp_path / "site" / "api" / "data.html").read_text(encoding="utf-8")
    assert 'id="core.archives.archive.open_archive"' in api
    assert "nrrd" in (tmp_path / "site" / "search.json").read_text(encoding="utf-8").lower()
