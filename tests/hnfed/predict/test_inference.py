"""Prediction with one or several models; their averages."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.archives.archive import open_archive, read_image_of
from core.archives.preprocess import prepare_image
from core.data.cached_case import Entry
from core.data.dataset import scale_image
from core.data.resample import restore
from core.errors import UserError
from core.models.stages import unique_state
from core.plan.schema import Model, Plan, Train
from core.training import engine
from core.training.probabilities import probabilities_of
from core.wire import checkpoint
from hnfed.predict import inference
from hnfed.predict.inference import load_models, predict_volume, select_labels
from tests.core.training.conftest import ORGANS, PRE, model_of, plan_of


def _checkpoint(folder: Path, plan: Plan, seed: int, **changes: Any) -> Path:
    meta = {
        "organs": list(ORGANS),
        "preprocess": asdict(PRE),
        "model": asdict(plan.model),
        **changes,
    }
    checkpoint.save(folder, f"m{seed}", unique_state(model_of(plan, seed)), meta)
    return folder / f"m{seed}.safetensors"


def test_prediction_averages_probabilities_and_equals_validation(
    entries: list[Entry], ball_archive: Path, tmp_path: Path
) -> None:
    untrained = Model(channels=[8, 16], norm="group", prior=0.5)  # that finds something
    plan = plan_of(model=untrained)
    archive = open_archive(ball_archive)
    image, geometry = read_image_of(archive, archive.cases[0])
    models, metas = load_models([_checkpoint(tmp_path, plan, seed) for seed in (1, 2)], "cpu")
    single = predict_volume(models[:1], metas[:1], image, geometry, "cpu")
    drawn = []
    engine.validate(
        model_of(plan, 1), entries[:1], plan, plan.phases[0], "cpu", lambda _, m: drawn.append(m)
    )
    assert single.dtype == np.uint8
    assert np.array_equal(single, drawn[0])

    both = predict_volume(models, metas, image, geometry, "cpu")
    crop, crop_geometry = prepare_image(image, geometry, PRE)
    scaled = scale_image(crop, PRE.window_hu)[None]
    with torch.no_grad():
        mean = (models[0](scaled).softmax(1) + models[1](scaled).softmax(1))[0] / 2
    assert np.array_equal(both, restore(mean, crop_geometry, geometry))
    assert not np.array_equal(both, single)


def test_the_average_with_the_mirrored_ct_treats_both_sides_alike(
    ball_archive: Path, tmp_path: Path
) -> None:
    plan = plan_of(model=Model(channels=[8, 16], norm="group", prior=0.5))
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
    drawn = predict_volume(models, metas, ct, geometry, "cpu")
    without = predict_volume(models, [{**metas[0], "average_mirrored": False}], ct, geometry, "cpu")
    assert not np.array_equal(drawn, without)


def test_models_are_used_in_the_precision_that_they_were_validated_with(
    ball_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def watched(*args: Any, settings: Train, **kwargs: Any) -> torch.Tensor:
        asked.append(settings.amp)
        return probabilities_of(*args, settings=settings, **kwargs)

    plan = plan_of(model=Model(channels=[8, 16], norm="group", prior=0.5))
    monkeypatch.setattr(inference, "probabilities_of", watched)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    archive = open_archive(ball_archive)
    image, geometry = read_image_of(archive, archive.cases[0])
    known = [{"amp": "auto"}, {"amp": "fp16"}, {}]
    paths = [_checkpoint(tmp_path, plan, i, **more) for i, more in enumerate(known)]
    models, metas = load_models(paths, "cpu")
    drawn = []
    for some in (slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 2), slice(1, 3)):
        drawn.append(predict_volume(models[some], metas[some], image, geometry, "cpu"))
    assert asked == ["auto", "fp16", "off", "off", "off"]
    plain = [predict_volume([m], metas[2:], image, geometry, "cpu") for m in models]
    for one, other in zip(drawn, plain, strict=False):
        assert np.array_equal(one, other), "a CPU without units for bf16 draws in float32"


def test_an_absent_key_means_no_average_and_one_side_alone_is_refused(tmp_path: Path) -> None:
    plan = plan_of(model=Model(channels=[8, 16], norm="group"))
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
    plan = plan_of(model=Model(channels=[8, 16], norm="group", prior=0.5))
    sides = ["Parotid_L", "Parotid_R"]
    path = _checkpoint(tmp_path, plan, 1, organs=sides, average_mirrored=True)
    models, metas = load_models([path], "cpu")
    archive = open_archive(ball_archive)
    image, geometry = read_image_of(archive, archive.cases[0])
    drawn: list[Any] = []
    phase = replace(plan.phases[0], organs=sides, average_mirrored=True)
    engine.validate(models[0], entries[:1], plan, phase, "cpu", lambda _, m: drawn.append(m))
    predicted = predict_volume(models, metas, image, geometry, "cpu")
    assert np.array_equal(drawn[0], predicted)


def test_models_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    plan = plan_of()
    first = _checkpoint(tmp_path, plan, 1)
    turned = _checkpoint(tmp_path, plan, 2, organs=list(ORGANS[::-1]))
    coarse = _checkpoint(
        tmp_path, plan, 3, preprocess=asdict(PRE) | {"spacing_mm": [4.0, 5.0, 5.0]}
    )
    for other in (turned, coarse):
        with pytest.raises(UserError, match="average only"):
            load_models([first, other], "cpu")


def test_weights_that_do_not_fit_their_description_are_refused(tmp_path: Path) -> None:
    plan = plan_of()
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
