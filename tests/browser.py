"""Pages in headless Chromium: looked at, worked by keyboard, and read by axe-core.

Tests that need it are skipped, and counted as skipped, where chromium or one of the packages of
`pip install 'hnfed[browser]'` is missing.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PACKAGES = ("playwright", "axe_playwright_python")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or bool(MISSING),
    reason=f"no browser on this machine: chromium {CHROMIUM}, packages missing: {MISSING}",
)


@contextmanager
def opened(path: Path, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """The page of a file, offline; afterwards nothing was asked for, and nothing complained."""
    from playwright.sync_api import sync_playwright

    told: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            context = browser.new_context(
                viewport={"width": width, "height": 900},
                color_scheme=scheme,  # type: ignore[arg-type]
                offline=True,
            )
            page = context.new_page()
            page.on("console", lambda message: told.append(message.text))
            page.on("pageerror", lambda error: told.append(str(error)))
            page.on("request", lambda request: told.append(request.url))
            page.goto(path.as_uri())
            yield page
        finally:
            browser.close()
    assert [line for line in told if not line.startswith((path.as_uri(), "data:,"))] == []


def violations(page: Any) -> list[str]:
    """What axe-core finds wrong with a page: rule, elements."""
    import axe_playwright_python

    folder = Path(axe_playwright_python.__file__).parent
    page.evaluate((folder / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document).then((r) => r.violations)")
    return [f"{v['id']}: {[n['html'][:120] for n in v['nodes'][:3]]}" for v in found]


def overflow(page: Any) -> int:
    """Pixels by which a page is wider than the window."""
    wide: int = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return wide
