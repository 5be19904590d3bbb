"""Pictures of a run for the documentation: `python -m benchmarks.screenshots runs/demo`.

Its report, `hnfed watch` as it stood in a round, and the preview of one of its test cases. Of
phantoms only: a run with any other data is refused. Needs Chromium (`apt install chromium`).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock
from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI

from core.errors import UserError
from core.journal import JOURNAL, read_events
from core.plan.load import load
from hnfed.predict.prediction import predict
from hnfed.predict.segmenter import Choice
from hnfed.watch.run_state import read_run_state
from hnfed.watch.screen import screen_of
from server.run_folder import START_LOCK
from simulations.site_map import site_map

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = 1280, 1000  # what a screen shows at once, in pixels
COLUMNS = 84  # of a terminal
TERMINAL = """<!DOCTYPE html><meta charset="utf-8"><style>{stylesheet}
body {{ margin: 0; padding: 18px 24px; color: #d7dade; background: #15181c; }}
pre {{ font: 15px/1.35 "DejaVu Sans Mono", monospace; margin: 0; }}</style><pre>{code}</pre>"""
COLOURS = 256
TIMEOUT_S = 120


def screenshot(page: Path, picture: Path, browser: str, size: tuple[int, int] = SIZE) -> None:
    """Writes the first screen of a page as PNG.

    Args:
        page: file of HTML; nothing is fetched for it.
        picture: file to write.
        browser: Chromium's command.
        size: of the screen in pixels.

    Raises:
        UserError: the browser wrote no picture.
    """
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        options = ["--headless=new", "--disable-gpu", "--hide-scrollbars"]
        options += ["--proxy-server=127.0.0.1:9"]  # no network
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        options += [f"--user-data-dir={folder}/profile", f"--window-size={size[0]},{size[1]}"]
        options += ["--virtual-time-budget=20000"]  # for what a page's script unpacks
        command = [browser, *options, f"--screenshot={shot}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)
        if not shot.is_file():
            said = done.stderr.decode(errors="replace")[-200:]
            raise UserError(browser, page, "run the command by hand", problem=said)
        picture.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(shot) as image:  # few colours: a tenth of the bytes
            few = image.convert("RGB").quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)
            few.save(picture, optimize=True)


def require_phantoms(run: Path) -> None:
    """Requires that all sites of a run are phantoms.

    Raises:
        UserError: no run, or one with an archive of other data.
    """
    config, _ = load(str(run / "config.yaml"))
    others = [name for name, site in config.simulation.sites.items() if not site.phantom]
    if others or not config.simulation.sites:
        remedy = "take a run of phantoms, such as runs/demo"
        raise UserError("RUN", run, remedy, problem=f"sites without a phantom: {others}")


def watch_page(run: Path, page: Path) -> None:
    """Writes what `hnfed watch` showed in the last round of the first phase.

    Args:
        run: run folder.
        page: file of HTML to write.
    """
    events = read_events(run / JOURNAL)
    first = next(e["phase"] for e in events if e["event"] == "phase-start")
    rounds = [i for i, e in enumerate(events) if (e["event"], e.get("phase")) == ("round", first)]
    end = rounds[max(len(rounds) - 2, 0)] + 1
    while end < len(events) and events[end]["event"] == "sent":
        end += 1
    with tempfile.TemporaryDirectory() as folder:
        half = Path(folder) / run.resolve().name
        half.mkdir()
        shutil.copy(run / "plan.json", half)
        lines = (json.dumps(event) + "\n" for event in events[:end])
        (half / JOURNAL).write_text("".join(lines), encoding="utf-8")
        with FileLock(half / START_LOCK):
            now = read_run_state(half).last_event
            state = read_run_state(half, None if now is None else now + 20.0)
        state.pids = []
    console = Console(
        record=True,
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(screen_of(state, {}, width=COLUMNS))
    page.write_text(console.export_html(theme=MONOKAI, code_format=TERMINAL), encoding="utf-8")


def preview_page(run: Path, folder: Path) -> Path:
    """Contours a test case of the run's first site, with a preview; returns the preview.

    Args:
        run: run folder, of phantoms.
        folder: where the contours go.
    """
    config, _ = load(str(run / "config.yaml"))
    phase = config.phases[0]
    site = phase.sites[-1]
    with (run / "sites" / site / phase.name / "cases.csv").open(encoding="utf-8") as file:
        case = next(csv.DictReader(file))["case"]
    sources = site_map(config, run.resolve())["sites"][site]["sources"]
    ct = Path(sources[0]["root"]) / case
    predict(ct, folder, Choice([str(run)], phase=phase.name), look="masked")
    return next(folder.glob("*.preview.html"))


def find_browser() -> str:
    """The command of a Chromium.

    Raises:
        UserError: there is none.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise UserError("browser", ", ".join(BROWSERS), "install one: apt install chromium")
    return found


def main() -> None:
    """Writes the pictures and prints their paths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder, of phantoms")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="docs/pictures")
    options = parser.parse_args()
    require_phantoms(options.run)
    browser = find_browser()
    screenshot(options.run / "report.html", options.out / "report.png", browser)
    with tempfile.TemporaryDirectory() as folder:
        terminal = Path(folder) / "watch.html"
        watch_page(options.run, terminal)
        screenshot(terminal, options.out / "watch.png", browser, (860, 520))
        page = preview_page(options.run, Path(folder))
        screenshot(page, options.out / "preview.png", browser, (1280, 860))
    for name in ("report", "watch", "preview"):
        print(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
