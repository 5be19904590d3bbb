"""On a GPU: the same training and scores as on a CPU, and what only a GPU does.

Skipped, and counted, without one. Needs torch, numpy, scipy and pytest alone, so that a machine
with little else can run it: ``pytest --noconftest tests/core/training/test_cuda.py``.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu_steps import NETWORKS, cases, plan_of
from core.data.cached_case import Entry
from core.models.build import build
from core.organs.vocabulary import NINE
from core.plan.schema import Augment, Phase, Plan, Train
from core.training import engine, ranks
from core.training.losses import segmentation_loss
from core.training.optimisation import DeviceMemoryError, take_step_unread

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CROP = (32, 32, 48)
CUDA, CPU = "cuda:0", "cpu"
EXACT = {"matmul": "highest", "lr": 1e-3}


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Four cases with their truth; the second annotates all organs but the first."""
    made = cases(tmp_path_factory.mktemp("cases"), CROP, 4)
    for entry in made:
        found = {"truth": {}} | json.loads((entry.folder / "entry.json").read_text())
        pieces: list[np.ndarray] = []
        for organ, (box, shares) in entry.shares(NINE).items():
            first = sum(map(len, pieces))
            found["truth"][organ] = {"box": [[b.start, b.stop] for b in box], "first": first}
            pieces.append(np.packbits(shares.ravel() > 127))
        (entry.folder / "entry.json").write_text(json.dumps(found))
        np.save(entry.folder / "truth.npy", np.concatenate(pieces))
    made[1] = replace(made[1], annotated=frozenset(NINE[1:]))
    return made


def trained(
    entries: list[Entry],
    device: str,
    settings: Train,
    *,
    network: str = "res3dunet",
    augment: Augment | None = None,
    **options: Any,
) -> tuple[engine.TrainResult, dict[str, Tensor], dict[str, Tensor], nn.Module, Plan]:
    """Figures, weights, optimiser's memory, network and plan after an epoch or more."""
    plan = plan_of(NETWORKS[network], CROP, settings)
    plan = replace(plan, augment=augment or Augment(enabled=False))
    torch.manual_seed(0)
    model = options.pop("model", None) or build(plan.model, len(NINE), CROP)
    phase = Phase(name="p", organs=list(NINE), rounds=1, local_epochs=8)
    epochs = engine.Epochs(**{"first": 0, "count": 1, "seed": 3} | options)
    result, memory = engine.train(model, entries, plan, phase, device, epochs)
    weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    return result, weights, memory, model, plan


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("batch", [1, 3])
def test_an_epoch_equals_that_of_a_cpu(entries: list[Entry], optimizer: str, batch: int) -> None:
    settings = Train(**EXACT, optimizer=optimizer, batch=batch)
    there, here = (trained(entries, device, settings) for device in (CUDA, CPU))
    assert there[0].steps == here[0].steps == math.ceil(4 / batch)
    assert there[0].loss == pytest.approx(here[0].loss, rel=2e-3)
    steps = there[0].steps
    # AdamW moves a weight whose gradient is only rounding by up to the rate, in either direction.
    most = 2 * steps * EXACT["lr"] if optimizer == "adamw" else 1e-3
    assert apart(there[1], here[1]) <= most
    mean = sum(float((there[1][n] - here[1][n]).abs().sum()) for n in here[1])
    assert mean / sum(v.numel() for v in here[1].values()) <= 5e-4


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16", "auto"])
@pytest.mark.parametrize("network", ["res3dunet", "unetr", "MONAI DynUNet"])
def test_it_learns_in_each_precision(entries: list[Entry], amp: str, network: str) -> None:
    if network != "res3dunet":
        pytest.importorskip("monai")
    settings = Train(amp=amp, batch=2, lr=2e-3)
    first = trained(entries, CUDA, settings, network=network)
    result, weights, memory, _, _ = trained(entries, CUDA, settings, network=network, count=8)
    assert result.steps + result.skipped_nonfinite == 16
    assert result.skipped_nonfinite <= (3 if amp == "fp16" else 0)
    assert result.loss["total"] < first[0].loss["total"]
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert any("scaler" in key for key in memory) == (amp == "fp16")


def test_a_run_in_two_parts_is_one_in_whole(entries: list[Entry]) -> None:
    settings = Train(amp="fp16", optimizer="sgd", lr=1e-2, momentum=0.9, ramp_steps=0)
    whole = trained(entries, CUDA, settings, count=2)
    first = trained(entries, CUDA, settings)
    rest = trained(
        entries, CUDA, settings, model=first[3], first=1, count=1, optimiser_state=first[2]
    )
    mean = sum(float((whole[1][n] - rest[1][n]).abs().mean()) for n in whole[1]) / len(whole[1])
    assert mean < 1e-4
    assert whole[2].keys() == rest[2].keys()


def test_a_step_that_is_not_finite_is_left_out_on_the_gpu(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    for amp in ("off", "bf16", "fp16"):
        calls: list[int] = []

        def loss(*given: Any, calls: list[int] = calls) -> Any:
            terms = segmentation_loss(*given)
            calls.append(1)
            return replace(terms, total=terms.total * math.nan) if len(calls) == 2 else terms

        with monkeypatch.context() as patch:
            patch.setattr(engine, "segmentation_loss", loss)
            result, weights, *_ = trained(entries, CUDA, Train(amp=amp))
        assert (result.steps, result.skipped_nonfinite) == (3, 1), amp
        assert all(bool(value.isfinite().all()) for value in weights.values())


def test_a_step_reads_nothing_from_the_gpu(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch itself refuses each wait for the GPU between a step's batch and its end."""
    taken: list[int] = []

    def watched(losses: Any, *given: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mode is a prototype, torch says
            torch.cuda.set_sync_debug_mode("error")
        try:
            found = take_step_unread(losses, *given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        taken.append(1)
        return found

    monkeypatch.setattr(engine, "take_step_unread", watched)
    trained(entries, CUDA, Train(amp="bf16"))
    assert len(taken) == 4


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_scores_are_those_of_a_cpu(entries: list[Entry], amp: str) -> None:
    *_, model, plan = trained(entries, CUDA, Train(amp=amp, lr=3e-3), count=8)
    phase = Phase(name="p", organs=list(NINE), average_mirrored=True)
    there = engine.validate(model, entries, plan, phase, CUDA)
    exact = replace(plan, train=replace(plan.train, amp="off", matmul="highest"))
    here = engine.validate(model, entries, exact, phase, CPU)
    assert [(s.case, s.organ) for s in there] == [(s.case, s.organ) for s in here]
    least = 0.1
    assert max(s.dice for s in here) > least, "it learnt something"
    dice = [abs(a.dice - b.dice) for a, b in zip(there, here, strict=True)]
    assert max(dice) < 0.03
    assert sum(dice) / len(dice) < 0.005


def test_augmenting_at_the_site_gives_the_training_of_a_cpu(entries: list[Entry]) -> None:
    always = Augment(probability=1.0, intensity_probability=1.0)
    losses = [
        trained(entries, CUDA, Train(**EXACT), augment=replace(always, device=device))[0].loss
        for device in ("cpu", "site")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    plain = trained(entries, CUDA, Train(**EXACT))[0].loss
    assert plain["total"] != pytest.approx(losses[0]["total"], rel=1e-4)


def test_deterministic_training_runs_and_repeats_its_loss(entries: list[Entry]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some kernels have no deterministic form
        one, two = (trained(entries, CUDA, Train(deterministic=True, **EXACT)) for _ in range(2))
    assert one[0].loss == pytest.approx(two[0].loss, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_two_processes_on_one_gpu_are_one_process(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """A second GPU is played by the same one: gradients pass between two processes."""
    gpu = torch.device(CUDA)
    settings = Train(**EXACT, batch=2, accumulate=2, optimizer=optimizer)
    one = trained(entries, CUDA, settings)
    monkeypatch.setattr(engine, "devices_of", lambda *_: (gpu, gpu))
    try:
        two = trained(entries, CUDA, replace(settings, accumulate=1))
        plan, phase = two[4], Phase(name="p", organs=list(NINE))
        shared = engine.validate(two[3], entries, plan, phase, CUDA)
    finally:
        ranks.end_others()
    monkeypatch.undo()
    assert two[0].steps == one[0].steps == 2
    assert two[0].loss == pytest.approx(one[0].loss, rel=1e-3)
    assert apart(one[1], two[1]) <= (2 * 2 * EXACT["lr"] if optimizer == "adamw" else 1e-3)
    alone = engine.validate(two[3], entries, plan, phase, CUDA)
    assert [s.dice for s in shared] == pytest.approx([s.dice for s in alone], abs=1e-3)


def test_a_gpu_that_is_full_is_said(entries: list[Entry]) -> None:
    settings, crop = Train(), (256, 256, 256)
    plan = plan_of(NETWORKS["res3dunet"], crop, settings)
    model = build(plan.model, len(NINE), crop).to(CUDA)
    batch = {
        "image": torch.zeros(1, 1, *crop, device=CUDA),
        "label": torch.zeros(1, len(NINE), *crop, dtype=torch.uint8, device=CUDA),
        "annotated": torch.ones(1, len(NINE), dtype=torch.bool),
    }
    share = (torch.cuda.memory_allocated() + 2e9) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0))

    def step() -> None:
        with engine.memory_advice():
            for loss in engine.part_losses(model, batch, plan, engine.LossWeights(), []):
                loss.backward()

    try:
        with pytest.raises(DeviceMemoryError, match="accumulate"):
            step()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
