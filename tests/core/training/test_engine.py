"""Training, validation and prediction on one device, against a plain PyTorch loop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from core.archives.archive import open_archive, read_image_of
from core.archives.cache_build import build_cache
from core.data.cached_case import Entry
from core.data.dataset import CropDataset, scale_image
from core.data.preprocess import prepare_image, restore
from core.errors import UserError
from core.metrics.scores import score_case
from core.models.build import build
from core.models.stages import unique_state
from core.plan.schema import Augment, Loss, Model, Phase, Plan, Preprocess, Train
from core.processes import leave_by_signal
from core.training import engine
from core.training.inference import select_labels
from core.training.losses import segmentation_loss
from core.training.optimisation import (
    DeviceMemoryError,
    NonFiniteError,
    learning_rate,
    load_optimiser,
    make_optimiser,
    resolve_device,
)
from core.wire import checkpoint
from tests.conftest import lose_a_signal

ORGANS = ("Brainstem", "Parotid_L")
PRE = Preprocess([5.0, 5.0, 5.0], [24, 24, 24], [-200.0, 300.0])


def _plan(augment: bool = False, model: Model | None = None, **train: Any) -> Plan:
    return Plan(
        preprocess=PRE,
        augment=Augment(enabled=augment),
        model=model or Model(channels=[8, 16], norm="group", channels_last=True),
        loss=Loss(dice=1.0, gdice=0.0),
        train=Train(**{"lr": 5e-3, "threads": 1, "deterministic": True, **train}),
        phases=[Phase(name="p", sites=["s"], organs=list(ORGANS))],
    )


@pytest.fixture(scope="session")
def entries(ball_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    archive = open_archive(ball_archive)
    splits = {ref.case: str(ref.split) for ref in archive.cases}
    cache = tmp_path_factory.mktemp("cache")
    return list(build_cache(archive, archive.cases, cache, ORGANS, PRE, splits=splits).entries)


def _model(plan: Plan, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(plan.model, len(ORGANS), PRE.crop)


def _train(
    model: nn.Module, entries: Sequence[Entry], plan: Plan, **options: Any
) -> tuple[engine.TrainResult, dict[str, Tensor]]:
    given: dict[str, Any] = {
        "device": "cpu",
        "epochs": 1,
        "first_epoch": 0,
        "total_epochs": 4,
        "seed": 7,
    }
    return engine.train(model, entries, ORGANS, plan, **given | options)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in unique_state(model).items()}


@pytest.mark.usefixtures("leaving")
def test_a_signal_that_was_lost_ends_training_and_scoring(entries: list[Entry]) -> None:
    plan, seen = _plan(), []

    def lose(*given: Any) -> None:
        seen.append(given)
        lose_a_signal()

    with pytest.raises(SystemExit):
        _train(_model(plan), entries, plan, epochs=3, progress=lose)
    assert len(seen) == 1
    leave_by_signal()
    with pytest.raises(SystemExit):
        engine.validate(_model(plan), entries, ORGANS, plan, "cpu", on_case=lose)
    assert len(seen) == 2


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((a[n] - b[n]).square().sum()) for n in a))


def test_it_learns_and_is_scored_on_the_ct_grid(entries: list[Entry]) -> None:
    plan = _plan(augment=True, lr=3e-2)
    model = _model(plan)
    before = engine.validate(model, entries[4:], ORGANS, plan, "cpu")
    seen: list[tuple[int, int]] = []
    result, _ = _train(
        model,
        entries[:4],
        plan,
        epochs=16,
        total_epochs=16,
        progress=lambda done, count: seen.append((done, count)),
    )
    assert result.steps == 64
    assert result.skipped_nonfinite == 0
    assert result.seconds > 0
    assert seen == [(i, 64) for i in range(1, 65)]
    assert set(result.loss) == {"total", "ce", "focal", "dice", "gdice"}
    drawn: dict[str, npt.NDArray[np.uint8]] = {}
    scores = engine.validate(
        model,
        entries[4:],
        ORGANS,
        plan,
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
    plan = _plan()
    model = build(plan.model, 1, PRE.crop)
    scores = engine.validate(model, entries[:2], ("Parotid_L",), plan, "cpu", hd95=False)
    assert [(s.case, s.organ) for s in scores] == [("c0", "Parotid_L")]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("mu", [None, 0.5])
def test_equals_a_plain_loop(entries: list[Entry], optimizer: str, mu: float | None) -> None:
    plan = _plan(optimizer=optimizer, clip_norm=0.5, batch=2, warmup_epochs=0.5)
    model, other = _model(plan), _model(plan)
    start = {n: p.detach() + 0.01 for n, p in other.named_parameters()}
    class_weights, organ_weights = [0.1, 0.6, 0.3], [1.0, 2.0]
    result, _ = _train(
        model,
        entries[:3],
        plan,
        epochs=2,
        first_epoch=1,
        class_weights=class_weights,
        organ_weights=organ_weights,
        term_weights={"dice": 0.5},
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
            plain.param_groups[0]["lr"] = rate
            items = [dataset[i] for i in index]
            batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
            terms = segmentation_loss(
                other(batch["image"]),
                batch["label"],
                batch["annotated"],
                plan.loss,
                torch.tensor(class_weights),
                torch.tensor(organ_weights),
                {"dice": 0.5},
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
    moved = _distance(theirs, _weights(_model(plan)))
    assert moved > 1e-3
    assert _distance(ours, theirs) < 1e-3 * moved
    assert result.loss["total"] == pytest.approx(sum(n * v for n, v in totals) / 6, rel=1e-4)
    if mu is None:
        assert "proximal" not in result.loss
    else:
        assert result.loss["proximal"] == pytest.approx(sum(n * v for n, v in pulls) / 6, rel=1e-4)


def test_the_weights_pulled_towards_may_be_the_networks_own(entries: list[Entry]) -> None:
    plan = _plan()
    model = _model(plan)
    result, _ = _train(model, entries[:2], plan, proximal=(1.0, unique_state(model)))
    assert result.loss["proximal"] > 0


def test_same_seed_same_bits_and_nothing_outside_is_touched(entries: list[Entry]) -> None:
    plan = _plan(augment=True)
    results = []
    for seed in (7, 7, 8):
        model = _model(plan)
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
    before = torch.get_num_threads()
    seen = []

    def loss(*arguments: Any) -> Any:
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        return segmentation_loss(*arguments)

    monkeypatch.setattr(engine, "segmentation_loss", loss)
    plan = _plan(threads=before + 1)
    _train(_model(plan), entries[:1], plan)
    assert seen == [(before + 1, True)]
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_frozen_parameters_stay_and_get_no_gradient(entries: list[Entry]) -> None:
    plan = _plan()
    model = _model(plan)
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
    plan = _plan()
    model = _model(plan).requires_grad_(False)
    with pytest.raises(UserError, match="freeze"):
        _train(model, entries[:1], plan)
    with pytest.raises(UserError, match="training cases"):
        _train(_model(plan), [], plan)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_optimiser_memory_continues_across_calls_and_files(
    entries: list[Entry], tmp_path: Path, optimizer: str
) -> None:
    plan = _plan(optimizer=optimizer)
    whole, halves, fresh = _model(plan), _model(plan), _model(plan)
    _train(whole, entries[:2], plan, epochs=2)
    _, state = _train(halves, entries[:2], plan)
    checkpoint.save(tmp_path, "optimiser", state, {})
    state, _ = checkpoint.load(tmp_path / "optimiser.safetensors")
    _train(halves, entries[:2], plan, first_epoch=1, optimiser_state=state)
    for epoch in (0, 1):
        _train(fresh, entries[:2], plan, first_epoch=epoch)
    assert _distance(_weights(whole), _weights(halves)) < 1e-6
    assert _distance(_weights(whole), _weights(fresh)) > 1e-4


def test_optimiser_memory_of_another_network_is_refused() -> None:
    layer = nn.Linear(3, 2)
    named = dict(layer.named_parameters())
    optimiser = make_optimiser(Train(), list(named.values()))
    with pytest.raises(UserError, match="shape"):
        load_optimiser(optimiser, named, {"weight::exp_avg": torch.zeros(5, 5)})


def test_nonfinite_step_is_skipped_and_counted(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def loss(*arguments: Any) -> Any:
        terms = segmentation_loss(*arguments)
        calls.append(1)
        return (
            dataclasses.replace(terms, total=terms.total * math.nan) if len(calls) == 2 else terms
        )

    monkeypatch.setattr(engine, "segmentation_loss", loss)
    plan = _plan()
    model = _model(plan)
    result, _ = _train(model, entries[:3], plan)
    assert (result.steps, result.skipped_nonfinite) == (2, 1)
    assert all(math.isfinite(v) for v in result.loss.values())
    assert all(bool(t.isfinite().all()) for t in _weights(model).values())


def test_infinite_gradient_is_skipped_too(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(logits: Tensor, *arguments: Any) -> Any:
        terms = segmentation_loss(logits, *arguments)
        return dataclasses.replace(terms, total=(logits - logits.detach()).sum().abs().sqrt())

    monkeypatch.setattr(engine, "segmentation_loss", loss)
    plan = _plan()
    model = _model(plan)
    before = _weights(model)
    with pytest.raises(NonFiniteError, match=r"train\.lr"):
        _train(model, entries[:2], plan)
    assert _distance(before, _weights(model)) == 0


def test_broken_weights_are_said_not_trained(entries: list[Entry]) -> None:
    plan = _plan()
    model = _model(plan)
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
    plan = _plan()
    with pytest.raises(DeviceMemoryError, match="checkpointing"):
        _train(_model(plan), entries[:1], plan)


def test_batches_cover_every_case_once_and_the_thread_changes_nothing(
    entries: list[Entry],
) -> None:
    plan = _plan(augment=True, batch=2)
    cpu = torch.device("cpu")
    plain = list(engine._batches(entries[:5], ORGANS, plan, 3, 1, cpu, ahead=False))
    ahead = list(engine._batches(entries[:5], ORGANS, plan, 3, 1, cpu, ahead=True))
    assert [len(batch["image"]) for batch in plain] == [2, 2, 1]
    for a, b in zip(plain, ahead, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert sum(int((~batch["annotated"]).sum()) for batch in plain) == 1  # the case c1


def test_bf16_runs_and_fp16_asks_for_a_gpu(entries: list[Entry]) -> None:
    plan = _plan(amp="bf16")
    model = _model(plan)
    before = _weights(model)
    result, _ = _train(model, entries[:1], plan)
    assert math.isfinite(result.loss["total"])
    assert _distance(before, _weights(model)) > 0
    plan = _plan(amp="fp16")
    with pytest.raises(UserError, match="fp16"):
        _train(_model(plan), entries[:1], plan)


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_order_is_as_asked(entries: list[Entry], channels_last: bool) -> None:
    plan = _plan(model=Model(channels=[8, 16], channels_last=channels_last))
    model = _model(plan)
    engine.validate(model, entries[:1], ORGANS, plan, "cpu")
    weight = next(
        p for p in model.parameters() if p.dim() == 5 and p.shape[1] > 1 and p.shape[2] > 1
    )
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) == channels_last


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


def test_lr_argument_stands_for_the_plans(entries: list[Entry]) -> None:
    plan = _plan()
    a, b = _model(plan), _model(plan)
    _train(a, entries[:1], plan, lr=1e-4)
    _train(b, entries[:1], _plan(lr=1e-4))
    assert _distance(_weights(a), _weights(b)) == 0


def test_devices() -> None:
    auto = resolve_device("auto")
    assert auto.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    for wrong in ("gpu", "cuda:99", "cuda:x", ""):
        with pytest.raises(UserError, match="device"):
            resolve_device(wrong)


# --------------------------------------------------------------------------------------------------
# Prediction


def _checkpoint(folder: Path, plan: Plan, seed: int, **changes: Any) -> Path:
    meta = {
        "organs": list(ORGANS),
        "preprocess": dataclasses.asdict(PRE),
        "model": dataclasses.asdict(plan.model),
        **changes,
    }
    checkpoint.save(folder, f"m{seed}", unique_state(_model(plan, seed)), meta)
    return folder / f"m{seed}.safetensors"


def test_prediction_averages_probabilities_and_equals_validation(
    entries: list[Entry], ball_archive: Path, tmp_path: Path
) -> None:
    from core.training.inference import load_models

    untrained = Model(channels=[8, 16], norm="group", prior=0.5)  # that finds something
    plan = _plan(model=untrained)
    archive = open_archive(ball_archive)
    image, geometry = read_image_of(archive, archive.cases[0])
    models, metas = load_models([_checkpoint(tmp_path, plan, seed) for seed in (1, 2)], "cpu")
    single = engine.predict_volume(models[:1], metas[:1], image, geometry, "cpu")
    drawn = []
    engine.validate(
        _model(plan, 1), entries[:1], ORGANS, plan, "cpu", on_case=lambda _, m: drawn.append(m)
    )
    assert single.dtype == np.uint8
    assert np.array_equal(single, drawn[0])

    both = engine.predict_volume(models, metas, image, geometry, "cpu")
    crop, crop_geometry = prepare_image(image, geometry, PRE)
    scaled = scale_image(crop, PRE.window_hu)[None]
    with torch.no_grad():
        mean = (models[0](scaled).softmax(1) + models[1](scaled).softmax(1))[0] / 2
    assert np.array_equal(both, restore(mean, crop_geometry, geometry))
    assert not np.array_equal(both, single)


def test_the_average_with_the_mirrored_ct_treats_both_sides_alike(
    ball_archive: Path, tmp_path: Path
) -> None:
    from core.training.inference import load_models, probabilities_of

    plan = _plan(model=Model(channels=[8, 16], norm="group", prior=0.5))
    sides = ["Parotid_L", "Parotid_R"]
    paths = [
        _checkpoint(tmp_path, plan, seed, organs=sides, average_mirrored=seed == 1)
        for seed in (1, 2)
    ]
    with pytest.raises(UserError, match="average_mirrored"):
        load_models(paths, "cpu")
    models, metas = load_models(paths[:1], "cpu")
    image = torch.rand(1, *PRE.crop) * 2 - 1
    exchanged = [0, 2, 1]
    cpu = torch.device("cpu")
    seen = probabilities_of(models, image, cpu, average_mirrored=sides)
    turned = probabilities_of(models, image.flip(-1), cpu, average_mirrored=sides)
    plain = probabilities_of(models, image, cpu)
    other = probabilities_of(models, image.flip(-1), cpu).flip(-1)[exchanged]
    torch.testing.assert_close(turned.flip(-1)[exchanged], seen)
    torch.testing.assert_close(seen, (plain + other) / 2)
    assert not torch.allclose(seen, plain)

    archive = open_archive(ball_archive)
    ct, geometry = read_image_of(archive, archive.cases[0])
    drawn = engine.predict_volume(models, metas, ct, geometry, "cpu")
    without = engine.predict_volume(
        models, [{**metas[0], "average_mirrored": False}], ct, geometry, "cpu"
    )
    assert not np.array_equal(drawn, without)


def test_an_absent_key_means_no_average_and_one_side_alone_is_refused(tmp_path: Path) -> None:
    from core.training.inference import load_models

    plan = _plan(model=Model(channels=[8, 16], norm="group"))
    older = _checkpoint(tmp_path, plan, 1)
    newer = _checkpoint(tmp_path, plan, 2, average_mirrored=False)
    assert len(load_models([older, newer], "cpu")[0]) == 2
    alone = ["Parotid_L", "Brainstem"]
    broken = _checkpoint(tmp_path, plan, 3, organs=alone, average_mirrored=True)
    with pytest.raises(UserError, match="Parotid_L"):
        load_models([broken], "cpu")


def test_validation_averages_as_prediction_does(
    entries: list[Entry], ball_archive: Path, tmp_path: Path
) -> None:
    from core.training.inference import load_models

    plan = _plan(model=Model(channels=[8, 16], norm="group", prior=0.5))
    sides = ["Parotid_L", "Parotid_R"]
    path = _checkpoint(tmp_path, plan, 1, organs=sides, average_mirrored=True)
    models, metas = load_models([path], "cpu")
    archive = open_archive(ball_archive)
    image, geometry = read_image_of(archive, archive.cases[0])
    drawn: list[Any] = []
    engine.validate(
        models[0],
        entries[:1],
        sides,
        plan,
        "cpu",
        average_mirrored=True,
        on_case=lambda _, m: drawn.append(m),
    )
    predicted = engine.predict_volume(models, metas, image, geometry, "cpu")
    assert np.array_equal(drawn[0], predicted)


def test_models_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    from core.training.inference import load_models

    plan = _plan()
    first = _checkpoint(tmp_path, plan, 1)
    turned = _checkpoint(tmp_path, plan, 2, organs=list(ORGANS[::-1]))
    coarse = _checkpoint(
        tmp_path, plan, 3, preprocess=dataclasses.asdict(PRE) | {"spacing_mm": [4.0, 5.0, 5.0]}
    )
    for other in (turned, coarse):
        with pytest.raises(UserError, match="average only"):
            load_models([first, other], "cpu")


def test_weights_that_do_not_fit_their_description_are_refused(tmp_path: Path) -> None:
    from core.training.inference import load_models

    plan = _plan()
    wrong = [
        _checkpoint(tmp_path, plan, 1, organs=["Brainstem"]),
        _checkpoint(tmp_path, plan, 2, model={"name": "res3dunet", "colour": "red"}),
        _checkpoint(tmp_path, plan, 3, preprocess={"crop": [24, 24, 24]}),
    ]
    for path in wrong:
        with pytest.raises(UserError, match="remedy"):
            load_models([path], "cpu")


def test_chosen_organs_are_renumbered() -> None:
    labels = np.array([[[0, 1, 2, 3]]], dtype=np.uint8)
    chosen = select_labels(labels, ["a", "b", "c"], ["c", "a"])
    assert chosen.tolist() == [[[0, 2, 0, 1]]]
    assert chosen.dtype == np.uint8
