from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.config import load
from core.run_folder import begin


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
