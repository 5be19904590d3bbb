"""The command `hnfed` itself: its versions and its help."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hnfed.cli.main import main

ROOT = Path(__file__).resolve().parents[3]


def test_version_is_one_line_of_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    python = ".".join(map(str, sys.version_info[:3]))
    assert capsys.readouterr().out == (
        f"hnfed {version('hnfed')}, Python {python}, torch {version('torch')}, "
        f"flwr {version('flwr')}\n"
    )


# What takes longer to load than the command's own parser takes to be made.
HEAVY = {"torch", "numpy", "monai", "omegaconf", "flwr", "ray", "filelock"}
HEAVY |= {"ctypes", "difflib", "logging", "secrets", "subprocess", "tempfile"}


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_versions_and_help_load_no_library(option: str) -> None:
    of_metadata = {"tempfile"} if option == "--version" else set()  # it reads what is installed
    code = (
        "import sys; before = set(sys.modules); from hnfed.cli.main import main\n"
        f"try: main([{option!r}])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print(({HEAVY - of_metadata!r} & set(sys.modules)) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_help_names_no_folder_of_whoever_wrote_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "simulation.data=DIR" in text
    assert re.findall(r"\.\./|(?<![\w/])/[a-z]+/", text) == []
