"""Archive to cache, in a process of its own that has an end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from hnfed.deploy import prepare
from hnfed.guard.node import PreparationError


def test_an_archive_that_takes_for_ever_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold the site's one place for orders until somebody looked."""
    (tmp_path / "site.yaml").write_text("name: nyu\nroot: archive\ncache: cache\nstate: state\n")
    (tmp_path / "policy.yaml").write_text("longest_s: 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    begun = time.monotonic()
    with pytest.raises(PreparationError) as caught:
        prepare.prepared_apart(tmp_path / "site.yaml", tmp_path / "policy.yaml", "{}", "r")
    assert caught.value.code == "E_TIME"
    assert time.monotonic() - begun < 20
    assert "longest_s" in (tmp_path / "state" / "client.log").read_text()


def test_an_archive_that_takes_all_memory_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged file can make a reader ask for any amount."""
    (tmp_path / "site.yaml").write_text("name: nyu\nroot: archive\ncache: cache\nstate: state\n")
    (tmp_path / "policy.yaml").write_text("memory_gb: 1\n")
    monkeypatch.chdir(tmp_path)
    greedy = (
        "from hnfed.deploy import prepare\n"
        "def take(*a, **k): bytearray(18 << 30)\n"  # more than 1 GB and what libraries reserve
        "prepare.prepare = take\n"
        "prepare.plan_from_json = lambda text: None\n"
        "prepare.main()"
    )
    monkeypatch.setattr(prepare, "COMMAND", (sys.executable, "-c", greedy))
    with pytest.raises(PreparationError) as caught:
        prepare.prepared_apart(tmp_path / "site.yaml", tmp_path / "policy.yaml", "{}", "r")
    assert caught.value.code == "E_MEMORY"
    assert "MemoryError" in (tmp_path / "state" / "client.log").read_text()
