"""The same as torch's convolution: values, gradients, shapes; and the fast kernels are taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile

from core.models.convolution import SMALL, Convolution

FORMATS = [torch.contiguous_format, torch.channels_last_3d]


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from([1, 3]),
    step=st.tuples(*[st.integers(1, 3)] * 3),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), *[st.integers(1, 9)] * 3),
    layout=st.sampled_from(FORMATS),
)
def test_it_equals_torchs_with_its_gradients(
    size: int, step: tuple[int, ...], shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    usual = nn.Conv3d(shape[1], 4, size, step, padding=size // 2).double()
    ours = Convolution(shape[1], 4, size, step, padding=size // 2).double()
    ours.load_state_dict(usual.state_dict())
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    found = []
    for layer in (usual, ours):
        given_ = x.clone().requires_grad_()
        out = layer(given_)
        (out * torch.linspace(-1, 1, out.numel()).double().reshape(out.shape)).sum().backward()
        found.append([out.detach(), given_.grad, layer.weight.grad, layer.bias.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    ("channels", "size", "volume"),
    [(16, 3, (8, 12, 12)), (16, 1, (24, 40, 40)), (1, 3, (40, 60, 60))],
)
def test_no_slow_kernel_is_taken(
    channels: int, size: int, volume: tuple[int, ...], layout: torch.memory_format
) -> None:
    """With one thread and one case, where `nn.Conv3d` takes it."""
    assert size == 1 or channels * volume[0] * volume[1] <= SMALL
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = []
        for kind in (nn.Conv3d, Convolution):
            layer = kind(channels, 16, size, padding=size // 2)
            x = torch.randn(1, channels, *volume).contiguous(memory_format=layout)
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                layer(x)
            taken.append({event.key for event in seen.key_averages()})
    finally:
        torch.set_num_threads(threads)
    assert "aten::slow_conv3d_forward" in taken[0], "torch has mended it: SMALL may go"
    if size == 3 or layout == torch.channels_last_3d:
        assert "aten::slow_conv3d_forward" not in taken[1]


def test_channels_last_stays() -> None:
    x = torch.randn(1, 8, 5, 6, 7).contiguous(memory_format=torch.channels_last_3d)
    for size in (1, 3):
        out = Convolution(8, 4, size, padding=size // 2)(x)
        assert out.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    "asked",
    [{"groups": 2}, {"dilation": 2}, {"padding": "same"}, {"padding_mode": "reflect"}],
)
def test_what_it_does_not_compute_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="computes this one"):
        Convolution(4, 4, 3, **asked)
