from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.screenshots import (
    BROWSERS,
    find_browser,
    require_phantoms,
    screenshot,
    watch_page,
)
from core.errors import UserError
from core.plan.load import load, to_yaml
from tests.hnfed.watch.journals import accepted, cell, sent, started


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


def test_watch_is_pictured_in_the_last_round_of_the_first_phase(tmp_path: Path) -> None:
    rounds = [
        {"event": "round", "phase": "pretrain", "round": r, "scored_round": r - 1, "seconds": 9.0,
         "mean": {"dice": r / 10}, "sites": {"a": {"val": {"Brainstem": cell(3, r / 10)}}}}
        for r in (1, 2, 3, 4)
    ]  # fmt: skip
    events = [(10.0 * r, e) for r, event in enumerate(rounds, 1)
              for e in (sent("a", r), accepted("a", r), event)]  # fmt: skip
    end = [(99.0, {"event": "run-end", "status": "completed", "seconds": 99.0})]
    run = started(tmp_path / "demo", *events, *end)
    page = tmp_path / "watch.html"
    watch_page(run, page)
    text = page.read_text()
    for words in ("running for", "3/4", "training", "train 4", "0.300", "Brainstem"):
        assert words in text, words
    assert "completed" not in text
    assert str(tmp_path) not in text
