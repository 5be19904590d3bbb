from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.screenshots import BROWSERS, find_browser, require_phantoms, screenshot
from core.errors import UserError
from core.plan.load import load, to_yaml


def test_only_runs_of_phantoms_are_pictured(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load("smoke")[0]))
    require_phantoms(tmp_path)
    real = "simulation.sites={nyu: {root: /data}, miccai: {phantom: miccai, cases: 5}}"
    path.write_text(to_yaml(load("smoke", [real])[0]))
    with pytest.raises(UserError, match="nyu"):
        require_phantoms(tmp_path)


def test_a_missing_browser_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match="apt install chromium"):
        find_browser()


def test_a_page_is_drawn(tmp_path: Path) -> None:
    try:
        browser = find_browser()
    except UserError:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    page = tmp_path / "a.html"
    page.write_text("<body style='background: #f00'></body>")
    screenshot(page, tmp_path / "pictures" / "a.png", browser)
    with Image.open(tmp_path / "pictures" / "a.png") as image:
        assert image.convert("RGB").getpixel((600, 400)) == (255, 0, 0)
