from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import SMALL, Bench, distributed, frozen, losses, measured
from benchmarks.gpu_steps import cases
from benchmarks.measure import row, show


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    found = cases(tmp_path, SMALL, 2)
    return Bench(torch.device("cpu"), SMALL, found, found)


def test_ddp_of_one_process_gives_the_weights_of_none(bench: Bench) -> None:
    (found,) = distributed(bench)
    assert found["value"] == 0.0


def test_what_cannot_be_measured_has_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    def section() -> Iterator[dict[str, Any]]:
        yield row("first", 1.0, "s")
        raise ModuleNotFoundError("No module named 'monai'")

    rows = list(measured("section", section(), time.monotonic() + 60))
    assert [r["value"] for r in rows] == [1.0, None]
    assert "monai" in rows[1]["against"]
    late = list(measured("section", section(), time.monotonic() - 1))
    assert [r["against"] for r in late] == ["the time was up"]
    show(rows)
    assert "not measured" in capsys.readouterr().out


def test_a_frozen_encoder_has_no_gradient(bench: Bench) -> None:
    (found,) = frozen(bench)
    assert found["ratio"] > 0


def test_the_device_that_is_the_cpu_is_compared_with_nothing(bench: Bench) -> None:
    (found,) = losses(bench)
    assert found["value"] is None
