"""Folders with the names of hnfed's packages, in the way of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hnfed.packages import NAMES, ROOT, require_own


def hnfed(*arguments: str, paths: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hnfed.cli.main", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip


def test_ones_own_packages_are_found() -> None:
    require_own()
    assert (ROOT / "core").is_dir()


@pytest.mark.parametrize("name", ["client/__init__.py", "core.py", "server/__init__.py"])
def test_another_package_of_the_name_is_named(name: str, tmp_path: Path) -> None:
    place = tmp_path / "mine" / name
    place.parent.mkdir(parents=True)
    place.write_text("")
    done = hnfed("--help", paths=f"{tmp_path / 'mine'}{os.pathsep}{ROOT}", folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "mine") in done.stderr
    assert "remedy: take" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert Path(name).parts[0].removesuffix(".py") in NAMES


def test_a_folder_without_code_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "mine" / "client").mkdir(parents=True)
    paths = f"{tmp_path / 'mine'}{os.pathsep}{ROOT}"
    assert hnfed("--help", paths=paths, folder=tmp_path).returncode == 0
