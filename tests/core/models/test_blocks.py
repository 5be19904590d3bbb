"""Instance norm of one case in channels-last: exact sums, torch's gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.models.blocks import InstanceNorm, mean_and_variance

LAST = torch.channels_last_3d


def volume(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Channels whose means lie far from zero."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    offsets = torch.linspace(-20, 20, shape[1]).reshape(-1, 1, 1, 1)
    return (drawn + offsets).to(dtype).to(memory_format=LAST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 16, 48, 64, 112), (1, 3, 5, 7, 1), (1, 1, 1, 1, 2)])
def test_mean_and_variance_are_those_of_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = volume(*shape, dtype=dtype)
    mean, variance = mean_and_variance(x)
    exact = x.double().movedim(1, 0).flatten(1)
    assert mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        variance.double(), exact.var(1, unbiased=False), rtol=1e-6, atol=1e-6
    )


def test_a_large_volume_is_normalised_exactly() -> None:
    """torch's kernel adds up in one float32: its variance is off by 1e-4 here."""
    x = volume(1, 16, 48, 64, 112)
    y = InstanceNorm(16, 16)(x)
    exact = nn.functional.instance_norm(x.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_are_those_of_the_definition(affine: bool, frozen: bool) -> None:
    norm = InstanceNorm(3, 3, affine=affine).double()
    if affine:
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
    x = volume(1, 3, 3, 4, 2, dtype=torch.float64).requires_grad_()
    inputs = (x, *norm.parameters())
    for parameter in norm.parameters():
        parameter.requires_grad_(not frozen)
    torch.autograd.gradcheck(lambda *given: norm(given[0]), inputs)
    other = norm(x.detach()).detach().square()
    assert torch.autograd.gradcheck(lambda given: norm(given) * other, x)
    wanted = [given for given in inputs if given.requires_grad]
    ours = torch.autograd.grad((norm(x) * other).sum(), wanted)
    plain = nn.functional.group_norm(x, 3, norm.weight, norm.bias, norm.eps)
    theirs = torch.autograd.grad((plain * other).sum(), wanted)
    torch.testing.assert_close(ours, theirs)


def test_weights_alone_can_be_trained() -> None:
    norm = InstanceNorm(4, 4)
    norm(volume(1, 4, 3, 3, 3)).sum().backward()
    assert norm.weight.grad is not None
    torch.testing.assert_close(norm.bias.grad, torch.full((4,), 27.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_and_order_stay(dtype: torch.dtype) -> None:
    y = InstanceNorm(4, 4)(volume(1, 4, 3, 5, 6, dtype=dtype).requires_grad_())
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=LAST)


def test_a_constant_channel_becomes_its_shift() -> None:
    norm = InstanceNorm(2, 2)
    nn.init.constant_(norm.bias, 0.5)
    x = torch.full((1, 2, 4, 4, 4), 10.0).to(memory_format=LAST)
    torch.testing.assert_close(norm(x), torch.full_like(x, 0.5), rtol=0, atol=1e-4)


def test_one_voxel_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1 value"):
        InstanceNorm(4, 4)(volume(1, 4, 1, 1, 1))


def test_a_plane_unlike_the_rest_costs_no_digits() -> None:
    """A crop's border is often padding: the rough mean must not be of one plane alone."""
    x = torch.randn(1, 2, 64, 32, 64, generator=torch.Generator().manual_seed(1))
    x[..., 0] += 1000
    mean, variance = mean_and_variance(x.to(memory_format=LAST))
    exact = x.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(
        variance.double(), exact.var(1, unbiased=False), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-6, atol=1e-6)


def test_a_network_in_bfloat16_runs() -> None:
    x = torch.randn(1, 4, 3, 5, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    x = x.to(memory_format=LAST)
    y = InstanceNorm(4, 4).bfloat16()(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, InstanceNorm(4, 4)(x), rtol=0.02, atol=0.03)
