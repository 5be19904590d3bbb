from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import pytest

from core.errors import UserError
from core.plan.load import load
from core.plan.schema import Plan
from core.training.optimisation import DeviceMemoryError
from simulations.memory_probe import rehearse


def plan_of(*overrides: str) -> Plan:
    return load("smoke", ["train.batch=1", *overrides])[0].plan


@pytest.mark.slow
def test_a_larger_crop_takes_more() -> None:
    small = rehearse(plan_of("preprocess.crop=[16, 16, 16]"), "cpu")
    large = rehearse(plan_of("preprocess.crop=[96, 96, 128]"), "cpu")
    logits = 4 * 96 * 96 * 128 * (1 + len(plan_of().phases[0].organs))
    assert large.peak_bytes - small.peak_bytes > 2 * logits
    assert large.seconds > small.seconds


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core alone")
def test_each_process_takes_its_share_of_a_batch() -> None:
    """Two with a case each take hardly more than one with both and a second interpreter.

    What a heap keeps differs by a fifth from run to run.
    """
    crop = "preprocess.crop=[96, 96, 128]"
    one = rehearse(plan_of("train.batch=2", crop), "cpu")
    two = rehearse(plan_of("train.batch=2", crop), "cpu:2")
    alone = rehearse(plan_of(crop), "cpu")
    assert alone.peak_bytes < two.peak_bytes < 1.2 * (one.peak_bytes + alone.peak_bytes)
    with pytest.raises(UserError, match="share the cases of a batch"):
        rehearse(plan_of(), "cpu:2")


def test_what_the_step_refuses_is_told() -> None:
    with pytest.raises(UserError, match="off, auto or bf16") as caught:
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
