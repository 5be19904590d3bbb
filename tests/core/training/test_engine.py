"""Training, validation and prediction on one device, against a plain PyTorch loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from core.data.cached_case import Entry
from core.data.dataset import CropDataset
from core.errors import UserError
from core.metrics.scores import score_case
from core.models.build import build
from core.models.stages import unique_state
from core.plan.schema import Model, Plan
from core.processes import leave_by_signal
from core.training import engine
from core.training.losses import LossWeights, segmentation_loss
from core.training.optimisation import (
    DeviceMemoryError,
    NonFiniteError,
)
from core.training.ranks import ALONE, Group
from core.wire import checkpoint
from tests.conftest import lose_a_signal
from tests.core.training.conftest import ORGANS, PRE, model_of, plan_of


def _train(
    model: nn.Module, entries: Sequence[Entry], plan: Plan, **options: Any
) -> tuple[engine.TrainResult, dict[str, Tensor]]:
    phase = replace(plan.phases[0], rounds=options.pop("rounds", 4), lr=options.pop("lr", None))
    epochs = engine.Epochs(**{"first": 0, "count": 1, "seed": 7} | options)
    return engine.train(model, entries, plan, phase, "cpu", epochs)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in unique_state(model).items()}


@pytest.mark.usefixtures("leaving")
def test_a_signal_that_was_lost_ends_training_and_scoring(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, seen = plan_of(), []

    def lose(*given: Any) -> bool:
        seen.append(given)
        lose_a_signal()
        return True

    monkeypatch.setattr(engine, "take_step", lose)
    with pytest.raises(SystemExit):
        _train(model_of(plan), entries, plan, count=3)
    assert len(seen) == 1
    leave_by_signal()
    with pytest.raises(SystemExit):
        engine.validate(model_of(plan), entries, plan, plan.phases[0], "cpu", lose)
    assert len(seen) == 2


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((a[n] - b[n]).square().sum()) for n in a))


def test_it_learns_and_is_scored_on_the_ct_grid(entries: list[Entry]) -> None:
    plan = plan_of(augment=True, lr=3e-2)
    model = model_of(plan)
    before = engine.validate(model, entries[4:], plan, plan.phases[0], "cpu")
    result, _ = _train(model, entries[:4], plan, count=16, rounds=16)
    assert result.steps == 64
    assert result.skipped_nonfinite == 0
    assert result.seconds > 0
    assert set(result.loss) == {"total", "ce", "focal", "dice", "gdice"}
    drawn: dict[str, npt.NDArray[np.uint8]] = {}
    scores = engine.validate(
        model,
        entries[4:],
        plan,
        plan.phases[0],
        "cpu",
        on_case=lambda entry, labels: drawn.update({entry.case: labels}),
    )
    assert not model.training
    mean = sum(s.dice for s in scores) / len(scores)
    assert mean > 0.75
    assert mean > sum(s.dice for s in before) / len(before) + 0.3
    assert all(s.penalty_mm == pytest.approx(120 * math.sqrt(3)) for s in scores)
    for entry in entries[4:]:
        assert drawn[entry.case].shape == entry.source.size == (40, 48, 48)
        expected = score_case(
            entry.case, drawn[entry.case], ORGANS, entry.truth(), entry.source.spacing_mm, 0.0
        )
        found = [s for s in scores if s.case == entry.case]
        assert [s.dice for s in found] == [s.dice for s in expected]
        assert [s.hd95_mm for s in found] == [s.hd95_mm for s in expected]


def test_organs_of_other_phases_do_not_count(entries: list[Entry]) -> None:
    plan = plan_of()
    model = build(plan.model, 1, PRE.crop)
    phase = replace(plan.phases[0], organs=["Parotid_L"])
    scores = engine.validate(model, entries[:2], plan, phase, "cpu")
    assert [(s.case, s.organ) for s in scores] == [("c0", "Parotid_L")]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("mu", [None, 0.5])
def test_equals_a_plain_loop(entries: list[Entry], optimizer: str, mu: float | None) -> None:
    plan = plan_of(optimizer=optimizer, clip_norm=0.5, batch=2, warmup_epochs=0.5)
    model, other = model_of(plan), model_of(plan)
    start = {n: p.detach() + 0.01 for n, p in other.named_parameters()}
    weights = LossWeights([0.1, 0.6, 0.3], [1.0, 2.0], {"dice": 0.5})
    result, _ = _train(
        model,
        entries[:3],
        plan,
        count=2,
        first=1,
        weights=weights,
        proximal=None if mu is None else (mu, start),
    )
    train = plan.train
    if optimizer == "adamw":
        plain: torch.optim.Optimizer = torch.optim.AdamW(
            other.parameters(), weight_decay=train.weight_decay, foreach=False
        )
    else:
        plain = torch.optim.SGD(
            other.parameters(),
            lr=1.0,
            momentum=train.momentum,
            nesterov=True,
            weight_decay=train.weight_decay,
            foreach=False,
        )
    totals, pulls = [], []
    for epoch in (1, 2):
        dataset = CropDataset(entries[:3], ORGANS, None, PRE.window_hu, 7, epoch)
        for step, index in enumerate(([0, 1], [2])):
            at = epoch + step / 2
            rate = 5e-3 * (1 - at / 4) ** 0.9 * min(1.0, at / 0.5)
            rate *= 0.5 if (epoch, step) == (1, 0) else 1.0  # the ramp: a quarter of four steps
            plain.param_groups[0]["lr"] = rate
            items = [dataset[i] for i in index]
            batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
            terms = segmentation_loss(
                other(batch["image"]),
                batch["label"],
                batch["annotated"],
                plan.loss,
                weights,
            )
            loss = terms.total
            if mu is not None:
                away = sum((p - start[n]).square().sum() for n, p in other.named_parameters())
                loss = loss + 0.5 * mu * away
                pulls.append((len(index), float(0.5 * mu * away.detach())))
            totals.append((len(index), float(terms.total.detach())))
            plain.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(other.parameters(), 0.5)
            plain.step()
    ours, theirs = _weights(model), _weights(other)
    moved = _distance(theirs, _weights(model_of(plan)))
    assert moved > 1e-3
    assert _distance(ours, theirs) < 1e-3 * moved
    assert result.loss["total"] == pytest.approx(sum(n * v for n, v in totals) / 6, rel=1e-4)
    if mu is None:
        assert "proximal" not in result.loss
    else:
        assert result.loss["proximal"] == pytest.approx(sum(n * v for n, v in pulls) / 6, rel=1e-4)


def test_the_weights_pulled_towards_may_be_the_networks_own(entries: list[Entry]) -> None:
    plan = plan_of()
    model = model_of(plan)
    result, _ = _train(model, entries[:2], plan, proximal=(1.0, unique_state(model)))
    assert result.loss["proximal"] > 0


def test_same_seed_same_bits_and_nothing_outside_is_touched(entries: list[Entry]) -> None:
    plan = plan_of(augment=True)
    results = []
    for seed in (7, 7, 8):
        model = model_of(plan)
        torch.manual_seed(123)
        _train(model, entries[:2], plan, seed=seed)
        assert torch.equal(torch.rand(3), torch.manual_seed(123) and torch.rand(3))
        results.append(_weights(model))
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])
    assert _distance(results[0], results[2]) > 0
    assert not torch.are_deterministic_algorithms_enabled()


def test_threads_and_determinism_hold_during_the_call_only(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, filling = torch.get_num_threads(), torch.utils.deterministic
    seen = []

    def loss(*arguments: Any) -> Any:
        exact = torch.are_deterministic_algorithms_enabled()
        seen.append((torch.get_num_threads(), exact, filling.fill_uninitialized_memory))
        return segmentation_loss(*arguments)

    monkeypatch.setattr(engine, "segmentation_loss", loss)
    plan = plan_of(threads=before + 1)
    _train(model_of(plan), entries[:1], plan)
    assert seen == [(before + 1, True, False)], "filling memory takes a tenth of a step"
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert filling.fill_uninitialized_memory


def test_frozen_parameters_stay_and_get_no_gradient(entries: list[Entry]) -> None:
    plan = plan_of()
    model = model_of(plan)
    names = [name for name, _ in model.named_parameters()]
    frozen = set(names[: len(names) // 2])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    before = _weights(model)
    _, state = _train(model, entries[:2], plan)
    after = _weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not changed & frozen
    assert {key.split("::")[0] for key in state} == set(names) - frozen
    assert all(p.grad is None for n, p in model.named_parameters() if n in frozen)


def test_nothing_to_train_or_no_case_is_a_user_error(entries: list[Entry]) -> None:
    plan = plan_of()
    model = model_of(plan).requires_grad_(False)
    with pytest.raises(UserError, match="freeze"):
        _train(model, entries[:1], plan)
    with pytest.raises(UserError, match="training cases"):
        _train(model_of(plan), [], plan)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_optimiser_memory_continues_across_calls_and_files(
    entries: list[Entry], tmp_path: Path, optimizer: str
) -> None:
    plan = plan_of(optimizer=optimizer, ramp_steps=0)
    whole, halves, fresh = model_of(plan), model_of(plan), model_of(plan)
    _train(whole, entries[:2], plan, count=2)
    _, state = _train(halves, entries[:2], plan)
    checkpoint.save(tmp_path, "optimiser", state, {})
    state, _ = checkpoint.load(tmp_path / "optimiser.safetensors")
    _train(halves, entries[:2], plan, first=1, optimiser_state=state)
    for epoch in (0, 1):
        _train(fresh, entries[:2], plan, first=epoch)
    assert _distance(_weights(whole), _weights(halves)) < 1e-6
    assert _distance(_weights(whole), _weights(fresh)) > 1e-4


def test_rates_rise_after_a_fresh_start_and_not_where_memory_is_kept(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh Adam moves every weight by the whole rate in its first step."""
    rates: list[float] = []
    take = engine.take_step

    def watched(losses: Any, optimiser: torch.optim.Optimizer, *rest: Any) -> bool:
        rates.append(optimiser.param_groups[0]["lr"] / 5e-3)
        return take(losses, optimiser, *rest)

    monkeypatch.setattr(engine, "take_step", watched)
    plan = plan_of(schedule="constant", ramp_steps=8)
    moved = []
    for steps in (8, 0):
        model = model_of(plan)
        before = _weights(model)
        own = replace(plan, train=replace(plan.train, ramp_steps=steps))
        rates.clear()
        _, memory = _train(model, entries[:4], own, count=2)
        assert rates == pytest.approx([1 / 3, 2 / 3, *[1.0] * 6] if steps else [1.0] * 8)
        moved.append(_distance(_weights(model), before))
    assert moved[0] < moved[1]
    rates.clear()
    _train(model, entries[:4], plan, count=2, first=2, optimiser_state=memory)
    assert rates == pytest.approx([1.0] * 8)


def test_nonfinite_step_is_skipped_and_counted(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def loss(*arguments: Any) -> Any:
        terms = segmentation_loss(*arguments)
        calls.append(1)
        return replace(terms, total=terms.total * math.nan) if len(calls) == 2 else terms

    monkeypatch.setattr(engine, "segmentation_loss", loss)
    plan = plan_of()
    model = model_of(plan)
    result, _ = _train(model, entries[:3], plan)
    assert (result.steps, result.skipped_nonfinite) == (2, 1)
    assert all(math.isfinite(v) for v in result.loss.values())
    assert all(bool(t.isfinite().all()) for t in _weights(model).values())


@pytest.mark.parametrize("broken", [None, 1, 2])
def test_a_gpu_takes_the_same_steps_without_reading_a_flag(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch, broken: int | None
) -> None:
    def run(unread: bool) -> tuple[engine.TrainResult, dict[str, Tensor], dict[str, Tensor]]:
        calls: list[int] = []

        def loss(*arguments: Any) -> Any:
            terms = segmentation_loss(*arguments)
            calls.append(1)
            bad = len(calls) == broken
            return replace(terms, total=terms.total * math.nan) if bad else terms

        def forbidden(*_: Any) -> bool:
            raise AssertionError("a flag was read")

        with monkeypatch.context() as patch:
            patch.setattr(engine, "segmentation_loss", loss)
            patch.setattr(engine, "reads_none", lambda *_: unread)
            if unread:
                patch.setattr(engine, "take_step", forbidden)
            plan = plan_of()
            model = model_of(plan)
            start = {n: t.clone() for n, t in model.named_parameters()}
            result, memory = _train(model, entries[:3], plan, proximal=(0.1, start))
            return result, memory, _weights(model)

    (read, memory, weights), (unread, other_memory, others) = run(False), run(True)
    assert (unread.steps, unread.skipped_nonfinite) == (read.steps, read.skipped_nonfinite)
    assert unread.loss == read.loss
    assert all(torch.equal(weights[n], others[n]) for n in weights)
    assert all(torch.equal(memory[n], other_memory[n]) for n in memory)


def test_augmentation_at_the_site_is_that_of_the_cpu(entries: list[Entry]) -> None:
    weights = []
    for where in ("cpu", "site"):
        plan = plan_of(augment=True)
        plan = replace(plan, augment=replace(plan.augment, device=where))
        model = model_of(plan)
        _train(model, entries[:2], plan)
        weights.append(_weights(model))
    assert _distance(*weights) == 0
    always = replace(plan.augment, probability=1.0, mirror=1.0)
    cases = CropDataset(entries[:1], ORGANS, always, PRE.window_hu, seed=0)
    cases.device = torch.device("meta")  # no value of the CPU may be needed there
    sample = cases[0]
    assert sample["image"].device.type == sample["label"].device.type == "meta"
    assert sample["annotated"].device.type == "cpu"


def test_infinite_gradient_is_skipped_too(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(logits: Tensor, *arguments: Any) -> Any:
        terms = segmentation_loss(logits, *arguments)
        return replace(terms, total=(logits - logits.detach()).sum().abs().sqrt())

    monkeypatch.setattr(engine, "segmentation_loss", loss)
    plan = plan_of()
    model = model_of(plan)
    before = _weights(model)
    with pytest.raises(NonFiniteError, match=r"train\.lr"):
        _train(model, entries[:2], plan)
    assert _distance(before, _weights(model)) == 0


def test_broken_weights_are_said_not_trained(entries: list[Entry]) -> None:
    plan = plan_of()
    model = model_of(plan)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(math.nan)
    with pytest.raises(NonFiniteError):
        _train(model, entries[:1], plan)


def test_lack_of_memory_names_the_remedy(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr(engine, "segmentation_loss", full)
    plan = plan_of()
    with pytest.raises(DeviceMemoryError, match="checkpointing"):
        _train(model_of(plan), entries[:1], plan)


def test_batches_cover_every_case_once_and_the_thread_changes_nothing(
    entries: list[Entry],
) -> None:
    plan = plan_of(augment=True, batch=2)
    cases = CropDataset(entries[:5], ORGANS, plan.augment, PRE.window_hu, 3, 1)
    plain = list(engine._batches(cases, 2, ALONE, ahead=False))
    ahead = list(engine._batches(cases, 2, ALONE, ahead=True))
    assert [(count, len(batch["image"])) for count, batch in plain] == [(2, 2), (2, 2), (1, 1)]
    for (_, a), (_, b) in zip(plain, ahead, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert sum(int((~batch["annotated"]).sum()) for _, batch in plain) == 1  # the case c1
    two = (torch.device("cpu"),) * 2
    shares = [engine._batches(cases, 2, Group(rank, two), ahead=False) for rank in range(2)]
    for (_, whole), *parts in zip(plain, *shares, strict=True):
        assert [count for count, _ in parts] == [len(whole["image"])] * 2
        held = [part for _, part in parts if part]
        for key, value in whole.items():
            assert torch.equal(torch.cat([part[key] for part in held]), value)


def test_bf16_runs_and_fp16_asks_for_a_gpu(entries: list[Entry]) -> None:
    plan = plan_of(amp="bf16")
    model = model_of(plan)
    before = _weights(model)
    result, _ = _train(model, entries[:1], plan)
    assert math.isfinite(result.loss["total"])
    assert _distance(before, _weights(model)) > 0
    plan = plan_of(amp="fp16")
    with pytest.raises(UserError, match="fp16"):
        _train(model_of(plan), entries[:1], plan)


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_order_is_as_asked(entries: list[Entry], channels_last: bool) -> None:
    plan = plan_of(model=Model(channels=[8, 16], channels_last=channels_last))
    model = model_of(plan)
    engine.validate(model, entries[:1], plan, plan.phases[0], "cpu")
    weight = next(
        p for p in model.parameters() if p.dim() == 5 and p.shape[1] > 1 and p.shape[2] > 1
    )
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) == channels_last


def test_lr_argument_stands_for_the_plans(entries: list[Entry]) -> None:
    plan = plan_of()
    a, b = model_of(plan), model_of(plan)
    _train(a, entries[:1], plan, lr=1e-4)
    _train(b, entries[:1], plan_of(lr=1e-4))
    assert _distance(_weights(a), _weights(b)) == 0


@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_takes_the_same_steps(entries: list[Entry], parts: int) -> None:
    """Also where the last batch is smaller, and cases annotate different organs."""
    plan = plan_of(augment=True)
    plan = replace(plan, train=replace(plan.train, batch=3))
    whole, cut = model_of(plan), model_of(plan)
    one, _ = _train(whole, entries[:5], plan, count=2)
    apart = replace(plan, train=replace(plan.train, accumulate=parts))
    other, _ = _train(cut, entries[:5], apart, count=2)
    assert (one.steps, other.steps) == (4, 4)
    assert other.loss == pytest.approx(one.loss, rel=1e-4)
    assert _distance(_weights(whole), _weights(cut)) < 1e-4 * _distance(
        _weights(whole), _weights(model_of(plan))
    )
