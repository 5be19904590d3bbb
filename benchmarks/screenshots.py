"""Pictures of a run's report for the documentation: `python -m benchmarks.screenshots runs/demo`.

Of phantoms only: a run with any other data is refused. Needs Chromium (`apt install chromium`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from core.errors import UserError
from core.plan.load import load

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = 1280, 1000  # what a screen shows at once, in pixels
COLOURS = 128
TIMEOUT_S = 120


def screenshot(page: Path, picture: Path, browser: str) -> None:
    """Writes the first screen of a page as PNG.

    Args:
        page: file of HTML; nothing is fetched for it.
        picture: file to write.
        browser: Chromium's command.

    Raises:
        UserError: the browser wrote no picture.
    """
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        options = ["--headless=new", "--disable-gpu", "--hide-scrollbars"]
        options += ["--proxy-server=127.0.0.1:9"]  # no network
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        options += [f"--user-data-dir={folder}/profile", f"--window-size={SIZE[0]},{SIZE[1]}"]
        command = [browser, *options, f"--screenshot={shot}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)
        if not shot.is_file():
            said = done.stderr.decode(errors="replace")[-200:]
            raise UserError(browser, page, "run the command by hand", problem=said)
        picture.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(shot) as image:  # few colours: a tenth of the bytes
            image.convert("RGB").quantize(COLOURS).save(picture, optimize=True)


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
    picture = options.out / "report.png"
    screenshot(options.run / "report.html", picture, find_browser())
    print(picture)


if __name__ == "__main__":
    main()
