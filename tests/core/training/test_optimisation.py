"""Learning rates, devices and the optimiser's memory."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core.errors import UserError
from core.plan.schema import Train
from core.training.optimisation import (
    Averaged,
    autocast_scoring,
    float32_products,
    learning_rate,
    load_optimiser,
    load_scaler,
    make_optimiser,
    precision,
    ramp,
    reads_none,
    resolve_device,
    scaler_tensors,
)


def test_optimiser_memory_of_another_network_is_refused() -> None:
    layer = nn.Linear(3, 2)
    named = dict(layer.named_parameters())
    optimiser = make_optimiser(Train(), list(named.values()))
    with pytest.raises(UserError, match="shape"):
        load_optimiser(optimiser, named, {"weight::exp_avg": torch.zeros(5, 5)})


def test_the_ramp_after_a_fresh_start() -> None:
    factors = [ramp(Train(ramp_steps=3), step, 40) for step in range(5)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert ramp(Train(ramp_steps=0), 0, 40) == 1.0
    assert [ramp(Train(ramp_steps=8), step, 8) for step in range(3)] == [1 / 3, 2 / 3, 1.0]


@given(steps=st.integers(1, 400), longest=st.integers(0, 10_000))
def test_no_ramp_makes_steps_vanish(steps: int, longest: int) -> None:
    """The floors of a site count steps; three quarters of them keep the whole rate."""
    factors = [ramp(Train(ramp_steps=longest), step, steps) for step in range(steps)]
    assert sum(f == 1 for f in factors) >= 0.75 * steps
    assert sum(factors) >= 0.87 * steps
    assert sum(factors) ** 2 / sum(f * f for f in factors) >= 0.9 * steps


def test_learning_rate_schedules() -> None:
    def rates(**settings: Any) -> list[float]:
        train = Train(lr=2.0, **settings)
        return [learning_rate(train, epoch, 10) for epoch in (0.0, 2.5, 5.0, 10.0)]

    assert rates(schedule="constant") == [2.0] * 4
    assert rates(schedule="poly") == pytest.approx([2.0, 2 * 0.75**0.9, 2 * 0.5**0.9, 0.0])
    cosine = [2.0, 1 + math.cos(math.pi / 4), 1.0, 0.0]
    assert rates(schedule="cosine") == pytest.approx(cosine, abs=1e-12)
    warm = rates(schedule="constant", warmup_epochs=5.0)
    assert 0 < warm[0] < 0.1
    assert warm[1:] == [1.0, 2.0, 2.0]
    with pytest.raises(UserError, match="schedule"):
        learning_rate(Train(schedule="step"), 0, 1)


def test_devices() -> None:
    auto = resolve_device("auto")
    assert auto.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    for wrong in ("gpu", "cuda:99", "cuda:x", ""):
        with pytest.raises(UserError, match="device"):
            resolve_device(wrong)


def test_products_of_float32_are_set_for_a_gpu_alone_and_put_back() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for matmul, convolutions in (("highest", False), ("high", True), ("medium", True)):
        settings = Train(matmul=matmul)
        with float32_products(settings, torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == matmul
            assert torch.backends.cudnn.allow_tf32 is convolutions
        with float32_products(settings, torch.device("cpu")):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize(
    ("amp", "bf16", "on_gpu", "on_cpu"),
    [
        ("off", True, None, None),
        ("bf16", False, torch.bfloat16, torch.bfloat16),
        ("auto", True, torch.bfloat16, torch.bfloat16),
        ("auto", False, torch.float16, None),
    ],
)
def test_precision_follows_the_device(
    monkeypatch: pytest.MonkeyPatch,
    amp: str,
    bf16: bool,
    on_gpu: torch.dtype | None,
    on_cpu: torch.dtype | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": bf16}, raising=False)
    settings = Train(amp=amp)
    assert precision(settings, torch.device("cuda", 0)) == on_gpu
    assert precision(settings, torch.device("cpu")) == on_cpu


@pytest.mark.parametrize("amp", ["off", "auto", "bf16", "fp16"])
@pytest.mark.parametrize("bf16", [True, False])
def test_scores_use_what_the_machine_has(
    monkeypatch: pytest.MonkeyPatch, amp: str, bf16: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": bf16}, raising=False)
    scoring = autocast_scoring(Train(amp=amp), torch.device("cpu"))
    assert scoring._enabled == (bf16 and amp != "off")


def test_a_scaler_goes_on_where_it_was() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    weight = nn.Parameter(torch.ones(1))
    optimiser = torch.optim.SGD([weight], lr=0.1)
    for factor in (1.0, float("inf"), 1.0, 1.0):
        optimiser.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimiser)
        scaler.update()
    told = scaler_tensors(scaler)
    again = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    load_scaler(again, told | {"weight::step": torch.tensor(1.0)})
    assert again.state_dict() == scaler.state_dict()
    assert (again.get_scale(), again.state_dict()["_growth_tracker"]) == (512.0, 2)
    off = torch.amp.GradScaler("cpu", enabled=False)
    load_scaler(off, told)
    assert scaler_tensors(off) == {}


def test_flags_stay_on_a_gpu_for_adamw_alone() -> None:
    weight = [nn.Parameter(torch.ones(1))]
    adamw, sgd = (make_optimiser(Train(optimizer=name), weight) for name in ("adamw", "sgd"))
    cuda = torch.device("cuda")
    assert reads_none(adamw, cuda)
    assert not reads_none(sgd, cuda)
    assert not reads_none(adamw, torch.device("cpu"))


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_the_running_mean_weighs_the_last_steps(share: float) -> None:
    layer = nn.Linear(1, 1, bias=False)
    named = dict(layer.named_parameters())
    values = [float(v) for v in range(1, 41)]
    average = Averaged(share)
    for step, value in enumerate(values):
        if step == 20:  # a round ends here: the site keeps the mean, and goes on with it
            average = Averaged(share, average.steps, average.mean)
        with torch.no_grad():
            layer.weight.fill_(value)
        average.add(named)
    expected = 0.0
    for t, value in enumerate(values, start=1):
        expected += (value - expected) / (share * t + 1 - share)
    assert average.steps == 40
    assert float(average.mean["weight"]) == pytest.approx(expected, rel=1e-5)
    if share == 1:
        assert expected == pytest.approx(sum(values) / 40)
    else:
        assert 30 < expected < 40
    assert layer.weight.item() == 40.0  # training goes on from where it is


def test_what_begins_to_train_later_joins_the_mean_as_it_is() -> None:
    one, two = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.full((2,), 5.0))
    average = Averaged(0.5)
    average.add({"one": one})
    average.add({"one": one, "two": two})
    assert average.mean["two"].tolist() == [5.0, 5.0]
