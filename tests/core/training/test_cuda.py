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
from core.data import dataset
from core.data.augment import augment
from core.data.cached_case import Entry
from core.data.dataset import CropDataset
from core.models.build import build
from core.organs.vocabulary import NINE
from core.plan.schema import Augment, Phase, Plan, Train
from core.training import engine, ranks
from core.training.losses import segmentation_loss
from core.training.optimisation import DeviceMemoryError, precision, take_step_unread

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
    """The mean difference as a share of the mean movement since the first weights."""
    torch.manual_seed(0)
    first = build(NETWORKS["res3dunet"], len(NINE), CROP).state_dict()
    assert a.keys() == b.keys() == first.keys()
    moved = sum(float((a[name] - first[name]).abs().sum()) for name in a)
    assert moved > 0, "nothing was trained"
    return sum(float((a[name] - b[name]).abs().sum()) for name in a) / moved


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("batch", [1, 3])
def test_an_epoch_equals_that_of_a_cpu(entries: list[Entry], optimizer: str, batch: int) -> None:
    settings = Train(**EXACT, optimizer=optimizer, batch=batch)
    there, here = (trained(entries, device, settings) for device in (CUDA, CPU))
    assert there[0].steps == here[0].steps == math.ceil(4 / batch)
    assert there[0].loss == pytest.approx(here[0].loss, rel=2e-3)
    # AdamW moves a weight whose gradient is only rounding by the whole rate, in either direction.
    assert apart(here[1], there[1]) <= (0.2 if optimizer == "adamw" else 0.02)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16", "auto"])
@pytest.mark.parametrize("network", ["res3dunet", "unetr", "MONAI DynUNet"])
def test_it_learns_in_each_precision(entries: list[Entry], amp: str, network: str) -> None:
    if network != "res3dunet":
        pytest.importorskip("monai")
    settings = Train(amp=amp, batch=2, lr=2e-3)
    first = trained(entries, CUDA, settings, network=network)
    result, weights, memory, _, _ = trained(entries, CUDA, settings, network=network, count=8)
    assert result.steps + result.skipped_nonfinite == 16
    scaled = precision(settings, torch.device(CUDA)) == torch.float16
    assert result.skipped_nonfinite <= (3 if scaled else 0)
    assert result.loss["total"] < first[0].loss["total"]
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert any("scaler" in key for key in memory) == scaled


def test_a_run_in_two_parts_is_one_in_whole(entries: list[Entry]) -> None:
    settings = Train(amp="fp16", optimizer="sgd", lr=1e-2, momentum=0.9, ramp_steps=0)
    whole = trained(entries, CUDA, settings, count=2)
    first = trained(entries, CUDA, settings)
    rest = trained(
        entries, CUDA, settings, model=first[3], first=1, count=1, optimiser_state=first[2]
    )
    assert apart(whole[1], rest[1]) < 0.02
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
    assert max(s.dice for s in here) > 0.1, "it learnt something"
    dice = [abs(a.dice - b.dice) for a, b in zip(there, here, strict=True)]
    assert max(dice) < 0.03
    assert sum(dice) / len(dice) < 0.005


def test_samples_of_the_site_are_those_of_a_cpu(entries: list[Entry]) -> None:
    always = Augment(probability=1.0, intensity_probability=1.0, mirror=0.5)
    data = [CropDataset(entries, NINE, always, [-200.0, 300.0], seed=5) for _ in range(2)]
    data[1].device = torch.device(CUDA)
    plain = CropDataset(entries, NINE, None, [-200.0, 300.0], seed=5)
    for here, there, before in zip(*data, plain, strict=True):
        assert there["image"].device == there["label"].device == data[1].device
        torch.testing.assert_close(there["image"].cpu(), here["image"], atol=2e-3, rtol=0)
        off = (there["label"].cpu().int() - here["label"].int()).abs()
        assert off.max() <= 1, "shares in 255ths"
        assert torch.equal(there["annotated"].cpu(), here["annotated"])
        assert float((here["image"] - before["image"]).abs().mean()) > 0.01, "it was augmented"


def test_training_augments_where_the_plan_says(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    for where, kind in (("site", "cuda"), ("cpu", "cpu")):
        seen: list[str] = []

        def watched(image: Tensor, *given: Any, seen: list[str] = seen) -> Any:
            seen.append(image.device.type)
            return augment(image, *given)

        with monkeypatch.context() as patch:
            patch.setattr(dataset, "augment_sample", watched)
            trained(entries, CUDA, Train(), augment=Augment(device=where))
        assert seen == [kind] * 4


def test_deterministic_training_repeats_its_loss(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def loss(*given: Any) -> Any:
        asked.append(torch.are_deterministic_algorithms_enabled())
        return segmentation_loss(*given)

    monkeypatch.setattr(engine, "segmentation_loss", loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some kernels have no deterministic form
        one, two = (trained(entries, CUDA, Train(deterministic=True, **EXACT)) for _ in range(2))
    assert asked == [True] * 8
    assert one[0].loss == pytest.approx(two[0].loss, rel=1e-5)


def test_a_rehearsal_counts_the_sample_that_is_made_beside_a_step() -> None:
    memory_probe = pytest.importorskip("simulations.memory_probe", exc_type=ImportError)
    plan = plan_of(NETWORKS["res3dunet"], CROP, Train())
    plan = replace(plan, phases=[Phase(name="p", organs=list(NINE))])
    batch = {
        "image": torch.zeros(1, 1, *CROP, device=CUDA),
        "label": torch.full((1, len(NINE), *CROP), 20, dtype=torch.uint8, device=CUDA),
    }
    found = memory_probe._augmenting(batch, plan, torch.device(CUDA))
    assert found > 60 * math.prod(CROP), "the image as float64, twice as fine on each axis"
    elsewhere = replace(plan, augment=replace(plan.augment, device="cpu"))
    assert memory_probe._augmenting(batch, elsewhere, torch.device(CUDA)) == 0


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
    assert apart(one[1], two[1]) <= (0.2 if optimizer == "adamw" else 0.02)
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
