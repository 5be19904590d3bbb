"""Tracking changes no weight, and costs a bounded time where nobody answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import UserError
from core.wire.checkpoint import load
from simulations.run import simulate

WEIGHTS = Path("checkpoints", "pretrain", "best.safetensors")
SHORT = ("phases.0.rounds=1", "phases.1.rounds=1")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("key", ["", "a" * 40])
def test_keyless_or_unreachable_the_run_is_the_same(
    run_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, key: str,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    begun = time.monotonic()
    plain = run_tiny("plain", *SHORT)
    seconds = time.monotonic() - begun
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", key)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        begun = time.monotonic()
        tracked = run_tiny("tracked", *SHORT, "tracking.mode=online")
    assert time.monotonic() - begun < seconds + 40 + seconds
    assert "note: W&B: " in capsys.readouterr().out
    before, after = (load(run / WEIGHTS)[0] for run in (plain, tracked))
    assert all(after[name].equal(tensor) for name, tensor in before.items())
    assert set(before) == set(after)
    assert not list(plain.glob("wandb")), "smoke is not tracked"


def test_a_tracker_that_is_none_is_told_before_anything_is_prepared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.mode"):
        simulate("smoke", ["tracking.mode=wandbb"], tmp_path / "run")
    assert not (tmp_path / "run").exists()
