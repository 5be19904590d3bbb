from __future__ import annotations

import signal
import subprocess
from typing import Any

import pytest

from core.errors import UserError
from core.plan.load import load
from core.plan.schema import Plan
from core.training.optimisation import DeviceMemoryError
from hnfed.deploy.memory_probe import rehearse


def plan_of(*overrides: str) -> Plan:
    return load("smoke", ["train.batch=1", *overrides])[0].plan


def test_a_larger_crop_takes_more() -> None:
    small = rehearse(plan_of("preprocess.crop=[16, 16, 16]"), "cpu")
    large = rehearse(plan_of("preprocess.crop=[96, 96, 128]"), "cpu")
    logits = 4 * 96 * 96 * 128 * (1 + len(plan_of().phases[0].organs))
    assert large.peak_bytes - small.peak_bytes > 2 * logits
    assert large.seconds > small.seconds


def test_what_the_step_refuses_is_told() -> None:
    with pytest.raises(UserError, match="off or bf16") as caught:
        rehearse(plan_of("preprocess.crop=[16, 16, 16]", "train.amp=fp16"), "cpu")
    assert caught.value.field == "train.amp"


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [(-signal.SIGKILL, DeviceMemoryError, "memory runs out"), (3, UserError, "a last line")],
)
def test_a_step_that_dies(
    monkeypatch: pytest.MonkeyPatch, code: int, error: type[UserError], words: str
) -> None:
    def ended(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, code, "", "more\na last line\n")

    monkeypatch.setattr(subprocess, "run", ended)
    with pytest.raises(error, match=words):
        rehearse(plan_of(), "cpu")
