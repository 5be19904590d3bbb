from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import UserError
from server.app import run_folder_of


def test_a_path_in_a_simulation_a_name_in_deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HNFED_RUNS", raising=False)
    assert run_folder_of(str(tmp_path / "run")) == tmp_path / "run"
    monkeypatch.setenv("HNFED_RUNS", str(tmp_path))
    assert run_folder_of("demo") == tmp_path / "demo"
    for out in ("", ".", "..", "../x", "/etc", "a/b"):
        with pytest.raises(UserError, match="without a path"):
            run_folder_of(out)
