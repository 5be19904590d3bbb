"""A plan reaches the networks of a list, with arguments of a list, and nothing else of MONAI."""

from __future__ import annotations

import contextlib
import inspect
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.models.allowed import NETWORKS, require_allowed
from core.models.build import build
from core.plan.load import CONFIGS, load, read_yaml, shipped_configs
from core.plan.schema import Model

CROP = (32, 32, 32)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("FlexibleUNet", {"backbone": "efficientnet-b0", "pretrained": True}),
        ("UNet", {"channels": [8, 16], "strides": [2], "pretrained": True}),
        ("ResNet", {}),
        ("resnet18", {"pretrained": True}),
        ("HoVerNet", {"preprocess": "x"}),
        ("SegResNetDS", {"preprocess": "os.system"}),
        ("torch", {}),
        ("__builtins__", {}),
        ("", {}),
        ("a\x1b[2Kb", {}),
        ("unetr", {"img_size": [9999, 9999, 9999]}),
        ("unetr", {"save_attn": True}),
        ("unetr", {"hidden_size": 10**9}),
        ("unetr", {"feature_size": True}),
        ("unetr", {"norm_name": ["instance", {"track_running_stats": True}]}),
        ("UNet", {"channels": [40_000, 8], "strides": [2]}),
        ("UNet", {"channels": [8] * 500, "strides": [2]}),
        ("UNet", {"channels": [8, 16], "strides": [2], "act": ["relu", {"__class__": 1}]}),
        ("UNet", {"channels": [8, 16], "strides": [2], "kernel_size": 10**6}),
        ("UNet", {"channels": [8, 16], "strides": [2], "dropout": float("nan")}),
        ("UNet", {"in_channels": 4, "channels": [8, 16], "strides": [2]}),
        ("SwinUNETR", {"downsample": "merging"}),
        ("SwinUNETR", {"spatial_dims": 2}),
    ],
    ids=str,
)
def test_what_is_not_listed_is_refused_before_anything_is_made(
    name: str, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dial(*_: Any) -> None:
        raise AssertionError("a network dials out")

    monkeypatch.setattr(socket.socket, "connect", dial)
    with pytest.raises(UserError) as caught:
        build(Model(name=name, args=args), 2, CROP)
    assert caught.value.field.startswith("model.")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_argument_of_the_list_is_one_of_the_network(name: str) -> None:
    from monai.networks import nets

    cls = getattr(nets, "UNETR" if name == "unetr" else name)
    assert set(NETWORKS[name]) <= set(inspect.signature(cls).parameters)
    assert not set(NETWORKS[name]) & {"pretrained", "in_channels", "out_channels", "img_size"}


@pytest.mark.parametrize(
    ("name", "args", "crop"),
    [
        ("BasicUNet", {"features": [8] * 6}, (16, 16, 32)),
        ("SegResNetDS", {"init_filters": 8, "blocks_down": [1, 1], "norm": "instance"}, CROP),
        ("HighResNet", {"norm_type": ["instance", {"affine": True}]}, (16, 16, 16)),
        (
            "SwinUNETR",
            {"feature_size": 12, "depths": [1] * 4, "num_heads": [1, 2, 3, 4]},
            (64, 32, 32),
        ),
    ],
)
def test_listed_networks_are_built(
    name: str, args: dict[str, Any], crop: tuple[int, int, int]
) -> None:
    assert sum(p.numel() for p in build(Model(name=name, args=args), 2, crop).parameters()) > 1000


def test_the_networks_of_shipped_plans_and_studies_are_listed() -> None:
    for name in shipped_configs():
        model = load(name)[0].model
        require_allowed(model.name, model.args)
    cells = read_yaml(CONFIGS / "studies" / "models.yaml")["cells"]
    told = [cell.get("set", {}) for cell in cells.values()]
    for wish in told:
        require_allowed(wish.get("model.name", "res3dunet"), wish.get("model.args", {}))
    assert {w.get("model.name") for w in told} >= {"unetr", "SegResNet", "DynUNet"}


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 70), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(st.data())
def test_any_argument_is_allowed_or_a_user_error(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(NETWORKS)))
    key = data.draw(st.sampled_from([*NETWORKS[name], "pretrained"]))
    value = data.draw(JUNK)
    with contextlib.suppress(UserError):
        require_allowed(name, {key: value})
