"""Networks by name: shapes, norms, refusals, and what one costs."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from monai.networks.nets import UNETR
from torch import nn

from core.errors import UserError
from core.models import build as build_module
from core.models.blocks import InstanceNorm, norm_layer, with_fast_layers
from core.models.build import build, cost
from core.models.convolution import Convolution
from core.plan.schema import Model
from core.training.memory import laid_out, to_device

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
)
SEGRESNET = Model(
    name="SegResNet", args={"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
)
UNET = Model(name="UNet", args={"channels": [8, 16], "strides": [2], "num_res_units": 1})
EVERY = [SMALL, TINY_UNETR, DYNUNET, SEGRESNET, UNET]


@pytest.mark.parametrize("settings", EVERY, ids=lambda s: s.name)
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_every_network_gives_class_logits_and_learns(settings, norm):
    torch.manual_seed(0)
    model = build(replace(settings, norm=norm), 3, CROP)
    logits = model(torch.randn(2, 1, *CROP))
    assert logits.shape == (2, 4, *CROP)
    logits.square().mean().backward()
    for name, p in model.named_parameters():
        if "norm_cross_attn" not in name:  # MONAI's ViT lists these and never uses them
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name


def test_our_own_network_is_built_without_torchs_compiler() -> None:
    """It takes seconds to load, and at a site each message is a new process."""
    code = (
        "import sys\n"
        "from core.models.build import build\n"
        "from core.plan.schema import Model\n"
        "build(Model(channels=[4, 8], strides=[[1, 2, 3]]), 2, [8, 16, 18])\n"
        "print({'torch._dynamo', 'sympy', 'monai'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("settings", EVERY, ids=lambda s: s.name)
def test_every_organ_begins_near_the_prior(settings):
    torch.manual_seed(0)
    model = build(replace(settings, prior=0.004), 3, CROP)
    with torch.no_grad():
        p = model(torch.randn(1, 1, *CROP)).softmax(dim=1)
    for organ in range(1, 4):
        assert 0.001 < float(p[:, organ].median()) < 0.016


@pytest.mark.parametrize("settings", EVERY, ids=lambda s: s.name)
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_norms_are_learned_and_keep_no_running_statistics(settings, norm):
    model = build(replace(settings, norm=norm), 3, CROP)
    norms = [m for m in model.modules() if isinstance(m, nn.InstanceNorm3d | nn.GroupNorm)]
    assert norms
    assert all(m.weight is not None and m.bias is not None for m in norms)
    assert not list(model.buffers())
    if settings is SMALL:
        groups = {m.num_channels: m.num_groups for m in norms}
        assert groups == ({4: 4, 8: 8, 16: 16} if norm == "instance" else {4: 1, 8: 1, 16: 2})


@pytest.mark.parametrize("cases", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_instance_norm_has_the_numbers_of_torchs_instance_norm(cases, training):
    ours = norm_layer("instance", 5).train(training)
    theirs = nn.InstanceNorm3d(5, affine=True).train(training)
    found = []
    for norm in (ours, theirs):
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(0))
        x = torch.randn(cases, 5, 3, 4, 6, generator=torch.Generator().manual_seed(1))
        x = (3 * x + 7).requires_grad_()
        y = norm(x)
        found.append((y, *torch.autograd.grad(y.pow(3).sum(), (x, norm.weight, norm.bias))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_instance_norm_of_one_case_keeps_channels_last_memory():
    x = torch.randn(1, 8, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    assert norm_layer("instance", 8)(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_group_norm_takes_groups_of_eight_channels():
    model = build(Model(channels=[12, 16, 64], norm="group"), 1, CROP)
    norms = {m.num_channels: m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)}
    assert norms == {12: 3, 16: 2, 64: 8}


def test_group_norm_that_a_width_forbids_becomes_instance_norm_and_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        build(
            replace(UNET, norm="group"), 2, CROP
        )  # MONAI normalises its three output channels too
    assert "UNet" in caplog.text
    assert "instance norm" in caplog.text


def test_default_is_the_paper_size_network():
    got = cost(build(Model(), 9, (96, 128, 224)), (96, 128, 224))
    assert got["parameters"] == 1_423_530
    assert got["gflop"] == pytest.approx(301.6, rel=0.01)


def test_unetr_is_monais():
    torch.manual_seed(1)
    ours = build(replace(TINY_UNETR, norm="instance"), 2, CROP)
    theirs = UNETR(
        1, 3, CROP, norm_name=("instance", {"affine": True}), **TINY_UNETR.args
    )  # same class, learned norms
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert [name for name in missing if ".cross_attn." not in name] == []  # MONAI before 1.6
    assert unexpected == []
    image = torch.randn(1, 1, *CROP)
    torch.testing.assert_close(ours(image), theirs(image))


def test_unetr_has_the_same_tensors_with_each_monai(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI before 1.6 makes a cross attention in each block and never uses it."""

    class Before(UNETR):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for block in self.vit.blocks:
                block.cross_attn = torch.nn.Linear(24, 24)

    names = list(build(TINY_UNETR, 2, CROP).state_dict())
    monkeypatch.setattr("monai.networks.nets.unetr.UNETR", Before)
    assert list(build(TINY_UNETR, 2, CROP).state_dict()) == names


@pytest.mark.parametrize(
    ("strides", "crop"),
    [([[1, 2, 2], [2, 2, 2]], (6, 8, 16)), ([[2, 2, 2], [1, 1, 3]], (8, 4, 12))],
)
def test_anisotropic_strides(strides, crop):
    model = build(replace(SMALL, strides=strides), 2, crop)
    assert model(torch.randn(1, 1, *crop)).shape == (1, 3, *crop)


def test_checkpointing_changes_memory_not_numbers():
    torch.manual_seed(0)
    plain = build(SMALL, 2, CROP)
    again = build(replace(SMALL, checkpointing=True), 2, CROP)
    again.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, *CROP)
    for model in (plain, again):
        model(image).square().sum().backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert cost(again, CROP)["activation_bytes"] < 0.5 * cost(plain, CROP)["activation_bytes"]


def test_channels_last_gives_the_same_logits():
    torch.manual_seed(0)
    model = build(SMALL, 2, CROP)
    image = torch.randn(1, 1, *CROP)
    want = model(image)
    got = model.to(memory_format=torch.channels_last_3d)(image)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_cost_counts_a_convolution_by_hand():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(1, 5, 3, padding=1, bias=False)

        def forward(self, x):
            return self.conv(x).square()

    got = cost(One(), (4, 5, 6))
    voxels = 4 * 5 * 6
    assert got["parameters"] == 5 * 27
    assert got["gflop"] == pytest.approx(2 * 27 * 5 * voxels / 1e9)
    assert got["activation_bytes"] == 4 * voxels * (1 + 5)  # the image and the convolution's output


def test_cost_leaves_the_model_alone():
    model = build(SMALL, 2, CROP).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cost(model, CROP)
    assert not model.training
    assert all(p.device.type == "cpu" and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "crop", "says"),
    [
        (Model(norm="batch"), CROP, "model.norm: instance or group"),
        (
            Model(name="UNet", args={"channels": [8, 16], "strides": [2], "norm": "batch"}),
            CROP,
            "model.args: {norm:",
        ),
        (Model(name="res3dnet"), CROP, "did you mean res3dunet"),
        (Model(name="SegResNett"), CROP, "SegResNet"),
        (Model(name="Regressor"), CROP, "segmentation network"),
        (Model(name="VNet"), CROP, "segmentation network"),
        (Model(name="SegResNet", args={"filters": 3}), CROP, "filters"),
        (Model(channels=[2048] * 4), CROP, "more than 250000000 parameters"),
        (replace(DYNUNET, args=DYNUNET.args | {"deep_supervision": True}), CROP, "logits only"),
        (Model(name="UNet", args={"channels": [8, 16], "strides": [2]}), CROP, "num_res_units: 1"),
        (replace(SEGRESNET, checkpointing=True), CROP, "model.checkpointing"),
        (replace(TINY_UNETR, checkpointing=True), CROP, "model.checkpointing"),
        (TINY_UNETR, (16, 16, 24), "multiple of 16"),
        (replace(TINY_UNETR, args={"hidden_size": 25}), CROP, "hidden_size"),
        (replace(TINY_UNETR, args={"size": 3}), CROP, "model.args"),
        (Model(channels=[16]), CROP, "model.channels"),
        (Model(strides=[[2, 2, 2]]), CROP, "give 3 steps"),
        (Model(strides=[[2, 2]] * 3), CROP, "model.strides"),
        (Model(args={"feature_size": 3}), CROP, "takes no args"),
        (Model(), (16, 20, 32), "axis y a multiple of 8"),
        (Model(), (8, 16, 32), "axis z a multiple of 8, at least 16"),
        (DYNUNET, (16, 16, 30), "preprocess.crop"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_remedy(settings, crop, says):
    with pytest.raises(UserError) as caught:
        build(settings, 2, crop)
    assert "remedy" in str(caught.value)
    assert says in str(caught.value)


def test_instance_norm_of_several_cases_is_the_same_by_case() -> None:
    """The form for CUDA, on a CPU: equal to group norm, its gradients too."""
    torch.manual_seed(0)
    norm = InstanceNorm(5, 5)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.normal_()
    x = torch.randn(3, 5, 4, 6, 7, requires_grad=True)
    ours, theirs = norm.by_case(x), norm(x)
    torch.testing.assert_close(ours, theirs)
    inputs = (x, norm.weight, norm.bias)
    weight = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((theirs * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("settings", [TINY_UNETR, DYNUNET, UNET], ids=["unetr", "DynUNet", "UNet"])
def test_a_network_of_monai_gets_our_layers_and_stays_the_same(
    settings: Model, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, weights and what it computes, forth and back; its norms are unlike new ones."""
    monkeypatch.setattr(build_module, "with_fast_layers", lambda model: model)
    torch.manual_seed(0)
    theirs = build(settings, 2, CROP)
    for module in theirs.modules():
        if isinstance(module, nn.InstanceNorm3d):
            module.eps = 1e-2
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2.0)
                nn.init.normal_(module.bias)
    ours = with_fast_layers(copy.deepcopy(theirs))
    kinds = [{type(module) for module in model.modules()} for model in (ours, theirs)]
    assert {InstanceNorm, Convolution} <= kinds[0]
    assert not kinds[0] & {nn.InstanceNorm3d, nn.Conv3d}
    assert nn.InstanceNorm3d in kinds[1]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    to_device(ours, torch.device("cpu"), True)
    x = torch.rand(batch, 1, *CROP)
    said = [ours(laid_out(x, ours)), theirs(x)]
    torch.testing.assert_close(said[0], said[1], atol=2e-4, rtol=2e-4)
    for output in said:
        output.square().mean().backward()
    used = [(a.grad, b.grad) for a, b in pairs if b.grad is not None]
    assert all(b.grad is not None for a, b in pairs if a.grad is not None)
    own, other = (torch.cat([grads[i].flatten() for grads in used]) for i in (0, 1))
    assert float((own - other).norm() / other.norm()) < 1e-2


def test_norms_keep_that_they_have_no_weights() -> None:
    layers = with_fast_layers(nn.Sequential(nn.InstanceNorm3d(3, eps=1e-2, affine=False)))
    assert isinstance(layers[0], InstanceNorm)
    assert not list(layers.parameters())
    x = 0.1 * torch.rand(1, 3, 4, 5, 6)
    torch.testing.assert_close(layers(x), nn.InstanceNorm3d(3, eps=1e-2)(x))


def test_layers_that_ours_do_not_cover_stay() -> None:
    kept = nn.Sequential(
        nn.Conv3d(4, 4, 3, groups=2),
        nn.Conv3d(4, 4, 3, dilation=2),
        nn.Conv3d(4, 4, 3, padding="same"),
        nn.Conv3d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.InstanceNorm3d(4, track_running_stats=True),
    )
    before = [type(layer) for layer in kept]
    assert [type(layer) for layer in with_fast_layers(kept)] == before
