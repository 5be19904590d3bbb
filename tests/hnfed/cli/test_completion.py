"""Completion as a shell asks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hnfed.cli.completion import SHELLS
from hnfed.cli.main import main

ROOT = Path(__file__).resolve().parents[3]


def offered(line: str, tmp_path: Path) -> list[str]:
    """What is offered for a line that was typed so far."""
    answer = tmp_path / "answer"
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    code = "from hnfed.cli.main import main; main()"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=False, capture_output=True
    )
    return [word.strip() for word in answer.read_text().split("\n")]


def test_commands_options_and_choices(tmp_path: Path) -> None:
    assert set(offered("hnfed pre", tmp_path)) == {"predict", "prepare"}
    assert "--resume" in offered("hnfed simulate --r", tmp_path)
    assert set(offered("hnfed evaluate --split t", tmp_path)) == {"test", "train"}


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_lines_that_it_can_read(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "hnfed" in text
    if shutil.which(shell):
        file = tmp_path / "completion"
        file.write_text(text)
        subprocess.run([shell, "-n", str(file)], check=True)
