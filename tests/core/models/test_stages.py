"""Stages, the de-duplicated state, and the head's rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import nn

from core.errors import UserError
from core.models.build import build
from core.models.stages import head_rows, load_unique, stage_of, unique_state
from core.plan.schema import Model

CROP = (16, 16, 32)
SMALL = Model(channels=[4, 8, 16])
TINY_UNETR = Model(
    name="unetr", args={"feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2}
)
DYNUNET = Model(
    name="DynUNet",
    args={
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [8, 16, 32],
    },
    stages={
        "encoder": ["input_block", "downsamples", "bottleneck"],
        "decoder": ["upsamples"],
        "head": ["output_block"],
    },
)
EVERY = [SMALL, TINY_UNETR, DYNUNET]


@pytest.mark.parametrize("settings", EVERY, ids=lambda s: s.name)
def test_every_parameter_is_in_exactly_one_of_three_stages(settings):
    model = build(settings, 3, CROP)
    stages = stage_of(model, settings)
    assert list(stages) == [name for name, _ in model.named_parameters()]
    assert set(stages.values()) == {"encoder", "decoder", "head"}
    assert {name for name, stage in stages.items() if stage == "head"} == set(head_rows(model))


def test_encoder_of_res3dunet_is_the_downward_path():
    model = build(SMALL, 3, CROP)
    stages = stage_of(model, SMALL)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(
                lambda m, i, o, name=name: seen.update({name: o[0, 0].numel()})
            )
    model(torch.zeros(1, 1, *CROP))
    order = [stages[f"{name}.weight"] for name in seen]
    assert order == sorted(order, key=["encoder", "decoder", "head"].index)  # in order of use
    lowest = min(range(len(order)), key=lambda i: list(seen.values())[i])
    assert order[lowest] == "encoder"


def test_encoder_of_unetr_is_the_transformer_and_its_skip_convolutions():
    stages = stage_of(build(TINY_UNETR, 3, CROP), TINY_UNETR)
    tops = {}
    for name, stage in stages.items():
        tops.setdefault(stage, set()).add(name.split(".")[0])
    assert tops == {
        "encoder": {"vit", "encoder1", "encoder2", "encoder3", "encoder4"},
        "decoder": {"decoder2", "decoder3", "decoder4", "decoder5"},
        "head": {"out"},
    }


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ({}, "no shipped stage table"),
        ({"encoder": ["input_block"], "head": ["output_block"]}, "no stage"),
        (DYNUNET.stages | {"neck": ["bottleneck"]}, "encoder and neck"),
        (DYNUNET.stages | {"tail": ["upsample"]}, "upsample"),  # a prefix ends at a dot
    ],
)
def test_incomplete_or_overlapping_stages_are_refused(stages, says):
    settings = replace(DYNUNET, stages=stages)
    model = build(settings, 3, CROP)
    with pytest.raises(UserError, match=says) as caught:
        stage_of(model, settings)
    assert caught.value.field == "model.stages"


def test_stages_of_the_plan_override_the_shipped_table():
    settings = replace(SMALL, stages={"body": ["down", "up"], "head": ["head"]})
    assert set(stage_of(build(settings, 3, CROP), settings).values()) == {"body", "head"}


def test_tables_of_whole_numbers_are_no_weights():
    """Averaged in floating point, 7 of each site became 6, and a site could send any number."""
    one, other = (SwinUNETR(1, 2, feature_size=12) for _ in range(2))
    tables = {n for n, t in one.state_dict().items() if not t.is_floating_point()}
    assert tables
    state = unique_state(one)
    assert set(state) == set(one.state_dict()) - tables
    load_unique(other, {n: t.clone() for n, t in state.items()})
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, one.state_dict()[name])


def test_unique_state_lists_dynunets_shared_blocks_once():
    model = build(DYNUNET, 3, CROP)
    state = unique_state(model)
    parameters = sum(p.numel() for p in model.parameters())
    assert sum(t.numel() for t in state.values()) == parameters
    assert sum(t.numel() for t in model.state_dict().values()) > 1.9 * parameters
    assert state.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("settings", EVERY, ids=lambda s: s.name)
def test_loading_a_unique_state_gives_the_same_logits(settings):
    torch.manual_seed(0)
    one, other = build(settings, 3, CROP), build(settings, 3, CROP)
    image = torch.randn(1, 1, *CROP)
    assert not torch.allclose(one(image), other(image))
    load_unique(other, {k: v.clone() for k, v in unique_state(one).items()})
    torch.testing.assert_close(other(image), one(image))


def test_equal_tensors_with_their_own_storage_stay():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].load_state_dict(model[0].state_dict())
    assert len(unique_state(model)) == 4


def test_loading_keeps_the_memory_format_and_the_parameters():
    model = build(SMALL, 3, CROP).to(memory_format=torch.channels_last_3d)
    before = dict(model.named_parameters())
    load_unique(model, {k: torch.zeros(v.shape) for k, v in unique_state(model).items()})
    after = dict(model.named_parameters())
    assert all(after[k] is before[k] and not after[k].any() for k in before)
    assert after["down.1.conv1.weight"].is_contiguous(memory_format=torch.channels_last_3d)


def test_a_state_that_does_not_fit_is_refused_and_nothing_is_loaded():
    model = build(SMALL, 3, CROP)
    state = {k: v.clone() + 1 for k, v in unique_state(model).items()}
    before = {k: v.clone() for k, v in unique_state(model).items()}
    head = state["head.weight"]
    for bad, says in [
        ({k: v for k, v in state.items() if k != "head.bias"}, "missing.*head.bias"),
        (state | {"extra": head}, "unknown.*extra"),
        (state | {"head.weight": head[:2]}, "shape"),
    ]:
        with pytest.raises(UserError, match=says):
            load_unique(model, bad)
        assert all(torch.equal(v, before[k]) for k, v in unique_state(model).items())


@pytest.mark.parametrize("settings", EVERY, ids=lambda s: s.name)
def test_row_c_of_the_head_gives_class_c_and_nothing_else(settings):
    torch.manual_seed(0)
    model = build(settings, 3, CROP).eval()
    image = torch.randn(1, 1, *CROP)
    before = model(image)
    parameters = dict(model.named_parameters())
    rows = head_rows(model)
    assert len(rows) == 2
    with torch.no_grad():
        for name in rows:
            assert parameters[name].shape[0] == 4
            parameters[name][2] += 1.0
    changed = (model(image) - before).abs().amax(dim=(0, 2, 3, 4)) > 1e-3
    assert changed.tolist() == [False, False, True, False]
