"""A checkpoint that version 0.1.0 wrote gives the numbers that it gave there.

The file beside this one says how it was made. It is text: weights stay out of the repository.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch

from core.plan.load import load as load_plan
from core.wire.checkpoint import load
from core.wire.partition import network, require_same_input, start_state, unique_state
from hnfed.predict.inference import load_models

FIXTURE = json.loads(Path(__file__).with_name("checkpoint_0_1.json").read_text())
PHASES = """
preprocess: {spacing_mm: [8.0, 6.0, 6.0], crop: [32, 32, 40], window_hu: [-200.0, 300.0]}
model: {channels: [2, 4, 4]}
phases:
  - name: personal
    sites: [nyu]
    organs: [Parotid_R, Musc_Constrict_S]
    init: %s
    share: none
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    path.write_bytes(base64.b64decode(FIXTURE["best.safetensors"]))
    path.with_suffix(".json").write_text(FIXTURE["best.json"])
    return path


def test_its_network_computes_what_it_did(old: Path) -> None:
    (model,), (about,) = load_models([old], "cpu")
    assert about["versions"]["hnfed"] == "0.1.0"
    image = torch.linspace(-1, 1, 32 * 32 * 40).reshape(1, 1, 32, 32, 40).roll(5, 3).sin()
    with torch.no_grad():
        logits = model.eval()(image)
    found = torch.stack([logits[0, :, z, z, z] for z in (3, 16, 29)])
    torch.testing.assert_close(found, torch.tensor(FIXTURE["logits"]), rtol=1e-4, atol=1e-5)


def test_a_phase_begins_with_it(old: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(PHASES % old)
    plan = load_plan(str(file), [])[0].plan
    phase = plan.phases[0]
    state, about = load(old)
    require_same_input(about, plan, "init", old)
    begun = start_state(plan, phase, (state, about["organs"]))
    head = next(n for n in state if state[n].shape[:1] == (5,) and begun[n].shape[:1] == (3,))
    torch.testing.assert_close(begun[head][:2], state[head][[0, 4]])
    body = [n for n in unique_state(network(plan, phase)) if begun[n].shape == state[n].shape]
    assert len(body) >= len(state) - 2
    assert all(torch.equal(begun[n], state[n]) for n in body)
