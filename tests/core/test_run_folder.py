from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.config import load
from core.errors import UserError
from core.identifiers import run_id
from core.run_folder import begin, run_folder


def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not UTF-8"):
        run_folder("smoke", tmp_path / "run-\udcff", resume=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run 1", "lr=0.01", "lauf-ä", "a:b", "x" * 200])
def test_a_folder_of_any_name_has_an_id_and_keeps_it(name: str, tmp_path: Path) -> None:
    config = load("smoke")[0]
    told = [
        begin(config, config, tmp_path / name, out=name, resume=resume, local="")
        for resume in (False, True)
    ]
    assert run_id(told[0]["run_id"]) == told[1]["run_id"]


@pytest.mark.parametrize(("local", "mode"), [("{}", 0o700), ("", 0o777)])
def test_a_simulation_keeps_what_its_sites_write_to_this_account(
    local: str, mode: int, tmp_path: Path
) -> None:
    """Under the umask that lets everybody in; a server's folder has no site's figures in it."""
    config = load("smoke")[0]
    before = os.umask(0)
    try:
        begin(config, config, tmp_path / "run", out="run", resume=False, local=local)
    finally:
        os.umask(before)
    assert (tmp_path / "run").stat().st_mode & 0o777 == mode
