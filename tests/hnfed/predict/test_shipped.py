from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import core.plan.load
from core.data.geometry import Geometry
from core.errors import UserError
from core.models.build import build
from core.models.stages import unique_state
from core.plan.load import load as load_plan
from core.plan.schema import Model
from core.wire.checkpoint import load, save
from hnfed.predict import shipped
from hnfed.predict.segmenter import Choice, load_segmenter

ORGANS = ["Brainstem", "Parotid_L"]
CROP = [16, 16, 16]
WORDS = {"data": "made-up CTs", "licence": "MIT", "made_by": "a test", "test": []}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A checkpoint of a run, with what must not travel."""
    torch.manual_seed(1)
    settings = {"name": "res3dunet", "channels": [4, 8]}
    network = build(Model(name="res3dunet", channels=[4, 8]), len(ORGANS), CROP)
    meta = {
        "organs": ORGANS,
        "preprocess": {"spacing_mm": [4.0] * 3, "crop": CROP, "window_hu": [-200.0, 300.0]},
        "model": settings,
        "phase": "pretrain",
        "round": 3,
        "average_mirrored": False,
        "run": "run-1",
        "splits": {"nyu": "0" * 64},
        "plan_hash": "1" * 64,
    }
    save(tmp_path / "run", "best", unique_state(network), meta)
    return tmp_path / "run" / "best.safetensors"


@pytest.fixture
def models(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with one model, ``tiny``."""
    configs = tmp_path / "configs"
    configs.mkdir()
    smoke = core.plan.load.find_config("smoke")
    (configs / "smoke.yaml").write_text(smoke.read_text(encoding="utf-8"), encoding="utf-8")
    shipped.make(run, configs / "models", "tiny", ["a" * 64, "a" * 64], WORDS)
    monkeypatch.setattr(core.plan.load, "CONFIGS", configs)
    return configs / "models"


def test_weights_ship_in_16_bits_and_are_read_as_32(run: Path, models: Path) -> None:
    path = models / "tiny.safetensors"
    assert path.stat().st_size < 0.6 * run.stat().st_size
    before, _ = load(run)
    after, _ = load(path)
    for name, tensor in before.items():
        assert after[name].dtype is tensor.dtype
        assert torch.allclose(after[name], tensor, rtol=1e-3, atol=1e-6)


def test_a_weight_that_16_bits_cannot_hold_is_refused(run: Path, tmp_path: Path) -> None:
    state, meta = load(run)
    name = next(iter(state))
    state[name] = torch.full_like(state[name], 1e6)
    kept = {k: v for k, v in meta.items() if k not in ("sha256", "meta_sha256", "schema", "saved")}
    save(tmp_path / "far", "best", state, kept)
    with pytest.raises(UserError, match=r"65,504"):
        shipped.make(tmp_path / "far" / "best.safetensors", tmp_path, "x", [], WORDS)


def test_nothing_of_the_run_or_its_sites_goes_along(models: Path) -> None:
    told = json.loads((models / "tiny.json").read_text(encoding="utf-8"))
    assert not {"run", "splits", "plan_hash"} & set(told)
    assert told["trained_on"] == ["a" * 64]


def test_model_takes_a_name_a_path_and_nothing_else(run: Path, models: Path) -> None:
    assert shipped.path_of("tiny") == models / "tiny.safetensors"
    assert shipped.path_of(str(run)) == str(run)
    with pytest.raises(UserError) as caught:
        shipped.path_of("tinny")
    assert "did you mean tiny?" in str(caught.value)


def test_altered_weights_are_refused_with_the_names_that_exist(models: Path) -> None:
    path = models / "tiny.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        shipped.path_of("tiny")
    assert "models that ship: tiny" in str(caught.value)


def test_a_model_that_ships_draws(models: Path) -> None:
    segmenter = load_segmenter(Choice(("tiny",), device="cpu"))
    assert segmenter.model.startswith("tiny phase ")
    assert segmenter.organs == tuple(ORGANS)
    assert segmenter.trained_on == {"a" * 64}
    labels, _ = segmenter(np.zeros((20, 24, 24), np.int16), Geometry((20, 24, 24), (4.0, 4.0, 4.0)))
    assert labels.shape == (20, 24, 24)


def test_a_plan_starts_from_it_by_name(models: Path) -> None:
    config, _ = load_plan("smoke", ["phases.pretrain.init=tiny"])
    assert config.phases[0].init == str(models / "tiny.safetensors")
    with pytest.raises(UserError, match="a model that comes with hnfed has this one"):
        load_plan("smoke", ["phases.0.name=tiny", "phases.1.init=tiny"])
    with pytest.raises(UserError, match=r"phases\.pretrain\.init"):
        load_plan("smoke", ["phases.pretrain.init=tyni"])


def test_models_that_ship_keep_what_they_promise() -> None:
    """Of this installation: small, sound, with a card that says for what it is not."""
    for model in shipped.listed():
        shipped.path_of(model["name"])
        assert model["bytes"] <= 4_000_000
        assert model["licence"]
        assert model["test"]
        card = Path(model["card"]).read_text(encoding="utf-8")
        assert "never for clinical use" in card
        for row in model["test"]:
            assert 0 <= row["low"] <= row["dice"] <= row["high"] <= 1
