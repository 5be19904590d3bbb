"""The tutorial notebook: what its cells say holds, from the first to the last."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.commands import ROOT

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_tutorial_is_small_and_holds_no_outputs() -> None:
    assert NOTEBOOK.stat().st_size < 20_000
    code = cells("code")
    assert len(code) > 5
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        compile("".join(cell["source"]), cell["id"], "exec")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_runs(tmp_path: Path) -> None:
    """Its code, in order, in a process of its own, as a kernel runs it; pictures go nowhere."""
    code = "\n\n".join("".join(cell["source"]) for cell in cells("code"))
    script = tmp_path / "tutorial.py"
    script.write_text(f"import matplotlib\nmatplotlib.use('Agg')\n{code}\n", encoding="utf-8")
    command = [sys.executable, str(script)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "tutorial" / "run" / "report.html").is_file()
    assert list((tmp_path / "tutorial" / "contours").rglob("*.nrrd"))
    assert "Dice" in done.stdout
