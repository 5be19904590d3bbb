from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.layers import AffineTransform
from scipy import ndimage
from torch import Tensor

from core.data.augment import _refinement, augment, deformation, intensity, warp
from core.plan.schema import Augment

STILL = Augment(
    probability=1.0, rotate_deg=[0.0] * 3, scale=0.0, translate_mm=[0.0] * 3, elastic_mm=0.0,
    noise=0.0, brightness=0.0, contrast=0.0, gamma=0.0,
)  # fmt: skip
SPACING = (3.0, 1.5, 2.0)
SHAPE = (16, 30, 24)


def sample(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2)
    image = np.clip(image / abs(image).max(), -1, 1).astype(np.float32)
    label = np.zeros((3, *SHAPE), dtype=np.uint8)
    label[0, 5:11, 8:20, 6:16] = 255
    label[0, 5:11, 8, 6:16] = 80
    label[2, 6:9, 10:16, 8:12] = 200
    label[0, 6:9, 10:16, 8:12] = 55
    return torch.from_numpy(image)[None], torch.from_numpy(label)


def positions_mm(settings: Augment, seed: int = 0, spacing: tuple[float, ...] = SPACING) -> Tensor:
    """Where each voxel is taken from, in mm (z, y, x) from the centre, (Z, Y, X, 3)."""
    grid = deformation(SHAPE, settings, spacing, torch.Generator().manual_seed(seed)).double()
    half = (torch.tensor(SHAPE, dtype=torch.float64) - 1) / 2 * torch.tensor(spacing).double()
    return grid.flip(-1) * half


def centred_mm(spacing: tuple[float, ...] = SPACING) -> Tensor:
    axes = [
        (torch.arange(n).double() - (n - 1) / 2) * s for n, s in zip(SHAPE, spacing, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def test_nothing_asked_is_nothing_done() -> None:
    image, label = sample()
    moved, labels = augment(image, label, STILL, SPACING, 1)
    torch.testing.assert_close(moved, image, atol=0.03, rtol=0)
    assert torch.equal(labels, label)
    moved, labels = augment(image, label, replace(Augment(), enabled=False), SPACING, 1)
    assert torch.equal(moved, image)
    assert torch.equal(labels, label)
    off = Augment(probability=0.0, intensity_probability=0.0)
    never = [augment(image, label, off, SPACING, s)[0] for s in range(9)]
    assert all(torch.equal(one, image) for one in never)


def test_the_seed_decides_and_the_input_stays() -> None:
    image, label = sample()
    copies = image.clone(), label.clone()
    a, b = (augment(image, label, Augment(probability=1.0), SPACING, 5) for _ in range(2))
    c = augment(image, label, Augment(probability=1.0), SPACING, 6)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[0], c[0])
    assert torch.equal(image, copies[0])
    assert torch.equal(label, copies[1])
    assert a[0].shape == image.shape
    assert (a[0].dtype, a[1].dtype) == (torch.float32, torch.uint8)
    assert int(a[1].sum(dim=0, dtype=torch.int64).max()) <= 255
    assert not a[1][1].any()
    assert -1 <= float(a[0].min()) <= float(a[0].max()) <= 1


def test_deformation_and_intensity_have_probabilities_of_their_own() -> None:
    image, label = sample()
    some = Augment(probability=0.25, intensity_probability=0.75)
    changed = [augment(image, label, some, SPACING, s) for s in range(80)]
    moved = [not torch.equal(labels, label) for _, labels in changed]
    same = sum(torch.equal(one, image) for one, _ in changed)
    brighter = sum(not m and not torch.equal(one[0], image)
                   for m, one in zip(moved, changed, strict=True))  # fmt: skip
    assert 10 <= sum(moved) <= 32
    assert 34 <= brighter <= 56
    assert 6 <= same <= 26


def test_a_rotation_is_rigid_in_mm() -> None:
    turned = positions_mm(replace(STILL, rotate_deg=[20.0, 15.0, 25.0]), seed=1)
    points = centred_mm()
    assert float((turned - points).norm(dim=-1).max()) > 3
    torch.testing.assert_close(turned.norm(dim=-1), points.norm(dim=-1), atol=1e-3, rtol=0)
    corner = (turned[0, 0, 0] - turned[-1, 3, 5]).norm()
    assert float(corner) == pytest.approx(
        float((points[0, 0, 0] - points[-1, 3, 5]).norm()), abs=1e-3
    )


@pytest.mark.parametrize("axis", range(3))
def test_each_angle_turns_about_its_own_axis(axis: int) -> None:
    degrees = [0.0, 0.0, 0.0]
    degrees[axis] = 30.0
    turned, points = positions_mm(replace(STILL, rotate_deg=degrees)), centred_mm()
    torch.testing.assert_close(turned[..., axis], points[..., axis], atol=1e-3, rtol=0)
    assert float((turned - points).abs().max()) > 0.5


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_strengths_stay_inside_their_ranges(seed: int) -> None:
    points = centred_mm()
    scaled = positions_mm(replace(STILL, scale=0.2), seed)
    factors = scaled[-1, -1, -1] / points[-1, -1, -1]
    assert bool(((factors >= 0.8 - 1e-4) & (factors <= 1.2 + 1e-4)).all())
    shift = positions_mm(replace(STILL, translate_mm=[9.0, 0.0, 4.0]), seed) - points
    assert bool((shift.amax((0, 1, 2)) - shift.amin((0, 1, 2)) < 1e-3).all())
    assert bool((shift[0, 0, 0].abs() <= torch.tensor([9.0, 0.0, 4.0]) + 1e-3).all())


def test_elastic_displacement_has_the_strength_asked() -> None:
    gentle = replace(STILL, elastic_mm=1.0, elastic_spacing_mm=12.0)
    fields = torch.stack([positions_mm(gentle, seed) - centred_mm() for seed in range(30)])
    rms = fields.square().mean((0, 1, 2, 3)).sqrt()
    assert bool(((rms > 0.85) & (rms < 1.15)).all())


def test_the_shipped_elastic_displacement_is_four_mm() -> None:
    """Cut at the folding bound, normal numbers of 12 mm gave 3.35 mm."""
    assert (Augment().elastic_mm, Augment().elastic_spacing_mm) == (4.0, 40.0)
    wide, coarse = replace(STILL, elastic_mm=4.0), (24.0, 12.0, 16.0)
    squares = [
        (positions_mm(wide, seed, coarse) - centred_mm(coarse)).square().mean()
        for seed in range(60)
    ]
    assert float(torch.stack(squares).mean().sqrt()) == pytest.approx(4.0, abs=0.12)
    most = replace(wide, elastic_mm=60.0)
    squares = [
        (positions_mm(most, seed, coarse) - centred_mm(coarse)).square().mean()
        for seed in range(20)
    ]
    assert float(torch.stack(squares).mean().sqrt()) == pytest.approx(0.133 * 40, rel=0.06)


@given(seed=st.integers(0, 2**32), spacing_mm=st.sampled_from([10.0, 25.0]))
@settings(max_examples=25, deadline=None)
def test_no_folds_however_strong(seed: int, spacing_mm: float) -> None:
    wild = Augment(elastic_mm=500.0, elastic_spacing_mm=spacing_mm, scale=0.2)
    fine = (1.0, 1.0, 1.0)
    points = positions_mm(wild, seed, fine)
    steps = torch.stack(torch.gradient(points, dim=(0, 1, 2)), -1)
    assert float(torch.linalg.det(steps).min()) > 0


def test_affine_agrees_with_monai() -> None:
    image, label = sample()
    plan = replace(STILL, rotate_deg=[12.0] * 3, scale=0.1, translate_mm=[5.0, 4.0, 3.0])
    grid = deformation(SHAPE, plan, SPACING, torch.Generator().manual_seed(4))
    ours, _ = warp(image, label, grid)
    # The affine map that the grid is, in voxels about the centre, by least squares.
    half = (torch.tensor(SHAPE, dtype=torch.float64) - 1) / 2
    target = (grid.double().flip(-1) * half).reshape(-1, 3)
    source = centred_mm((1.0, 1.0, 1.0)).reshape(-1, 3)
    design = torch.cat([source, torch.ones(len(source), 1, dtype=torch.float64)], 1)
    theta = torch.eye(4, dtype=torch.float64)
    theta[:3] = torch.linalg.lstsq(design, target).solution.T
    assert float((design @ theta[:3].T - target).abs().max()) < 1e-3
    reference = AffineTransform(
        normalized=False, align_corners=True, padding_mode="zeros", reverse_indexing=True
    )
    # MONAI's voxels count from the corner.
    to_centre, back = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    to_centre[:3, 3], back[:3, 3] = -half, half
    voxels = back @ theta @ to_centre
    theirs = reference((image + 1)[None], voxels.float()[None])[0] - 1
    inside = (grid.abs() < 1).all(-1)
    torch.testing.assert_close(ours[:, inside], theirs[:, inside], atol=0.08, rtol=0)


def test_sampling_agrees_with_scipy() -> None:
    image, label = sample()
    plan = replace(Augment(), elastic_mm=3.0, elastic_spacing_mm=20.0)
    grid = deformation(SHAPE, plan, SPACING, torch.Generator().manual_seed(9))
    moved, labels = warp(image, label, grid)
    size = np.array(SHAPE)
    index = np.moveaxis((grid.double().flip(-1).numpy() + 1) / 2 * (size - 1), -1, 0)
    whole = image[0].double().numpy() + 1
    cubic = ndimage.map_coordinates(whole, index, order=3, mode="mirror") - 1
    inside = ((index >= 0) & (index <= (size - 1)[:, None, None, None])).all(0)
    assert 0.5 < inside.mean() < 1
    np.testing.assert_allclose(moved[0].numpy()[inside], cubic[inside], atol=0.012)
    for organ, shares in zip(label.numpy(), labels.numpy(), strict=True):
        linear = ndimage.map_coordinates(organ.astype(float), index, order=1, mode="grid-constant")
        assert abs(shares + 0.5 - linear).max() < 0.55  # rounded down
    assert labels.any()


@pytest.mark.parametrize("size", [2, 48, 224])
def test_the_refinement_holds_no_subnormal_numbers(size: int) -> None:
    """A CPU multiplies by them twenty times more slowly, and they change no image."""
    weights = _refinement(size).float().abs()
    assert not ((weights > 0) & (weights < torch.finfo(torch.float32).tiny)).any()
    torch.testing.assert_close(_refinement(size).sum(1), torch.ones(2 * size - 1).double())


def test_a_warp_keeps_the_detail_of_an_image() -> None:
    """Second differences of noise of the band that a CT has; linear interpolation keeps half."""
    noise = torch.from_numpy(np.random.default_rng(3).normal(size=(40, 44, 48)))
    waves = torch.fft.rfftn(noise)
    axes = (torch.fft.fftfreq(40), torch.fft.fftfreq(44), torch.fft.rfftfreq(48))
    grids = torch.meshgrid(*axes, indexing="ij")
    image = torch.fft.irfftn(waves * (sum(g**2 for g in grids) < 0.4**2), s=noise.shape).float()
    image = (image / image.abs().max())[None]
    rigid = replace(Augment(), scale=0.0, elastic_mm=0.0, rotate_deg=[3.0] * 3)
    inner = (slice(8, -8),) * 3
    kept, linear, far = [], [], []
    for seed in range(4):
        random = torch.Generator().manual_seed(seed)
        grid = deformation(image.shape[1:], rigid, (3.0, 3.0, 3.0), random)
        moved, _ = warp(image, torch.zeros((0, *image.shape[1:]), dtype=torch.uint8), grid)
        plain = torch.nn.functional.grid_sample(image[None], grid[None], align_corners=True)[0]
        index = (grid.double().flip(-1) + 1) / 2 * (torch.tensor(image.shape[1:]) - 1)
        cubic = ndimage.map_coordinates(
            image[0].double().numpy(), index.movedim(-1, 0).numpy(), order=3, mode="mirror"
        )
        for found, list_ in ((moved, kept), (plain, linear)):
            ratio = [
                found[0].diff(n=2, dim=d)[inner].square().mean()
                / image[0].diff(n=2, dim=d)[inner].square().mean()
                for d in range(3)
            ]
            list_.append(float(torch.stack(ratio).mean()))
        far.append(float((moved[0] - torch.from_numpy(cubic))[inner].abs().max()))
    assert min(kept) > 0.78
    assert max(linear) < 0.6
    assert max(far) < 0.1


def test_organs_are_found_wherever_the_warp_takes_them() -> None:
    """Only blocks are sampled; outside of them nothing may be missing."""
    rng = np.random.default_rng(1)
    label = np.zeros((6, 30, 36, 41), dtype=np.uint8)
    for organ in label[:5]:
        low = [int(rng.integers(0, n - 4)) for n in organ.shape]
        organ[tuple(slice(a, a + int(rng.integers(1, 9))) for a in low)] = 255
    shares, image = torch.from_numpy(label), torch.zeros(1, *label.shape[1:])
    strong = Augment(rotate_deg=[40.0] * 3, scale=0.4, elastic_mm=8.0, elastic_spacing_mm=40.0)
    for seed in range(12):
        grid = deformation(label.shape[1:], strong, SPACING, torch.Generator().manual_seed(seed))
        _, found = warp(image, shares, grid)
        dense = torch.nn.functional.grid_sample(
            shares[None].float(), grid[None], align_corners=True
        )
        assert torch.equal(found, (dense[0] + 1e-3).to(torch.uint8))


def test_outside_is_air_and_background() -> None:
    image, label = torch.full((1, *SHAPE), 0.5), torch.full((2, *SHAPE), 99, dtype=torch.uint8)
    away = replace(STILL, translate_mm=[500.0] * 3, intensity_probability=0.0)
    moved, labels = augment(image, label, away, SPACING, 2)
    assert bool((moved == -1).all())
    assert not bool(labels.any())


def test_intensity_by_its_formulas() -> None:
    image, _ = sample()
    image = image * 0.4
    u = torch.rand(4, generator=torch.Generator().manual_seed(8), dtype=torch.float64) * 2 - 1

    def changed(**strengths: float) -> Tensor:
        return intensity(image, replace(STILL, **strengths), torch.Generator().manual_seed(8))

    torch.testing.assert_close(changed(brightness=0.3), image + float(u[2]) * 0.3)
    mean = image.mean()
    torch.testing.assert_close(
        changed(contrast=0.3), (image - mean) * (1 + float(u[1]) * 0.3) + mean
    )
    exponent = float(torch.exp(u[0] * 0.5))
    torch.testing.assert_close(changed(gamma=0.5), ((image + 1) / 2) ** exponent * 2 - 1)
    noise = changed(noise=0.1) - image
    assert float(noise.std()) == pytest.approx(float((u[3] + 1) / 2 * 0.1), rel=0.05)
    assert abs(float(noise.mean())) < 0.002


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    image, label = sample()
    quiet = Augment(probability=1.0, noise=0.0)
    here, there = (
        augment(image, label, quiet, SPACING, 3),
        augment(image.cuda(), label.cuda(), quiet, SPACING, 3),
    )
    torch.testing.assert_close(there[0].cpu(), here[0], atol=1e-4, rtol=1e-4)


def test_a_gpu_interpolates_the_same_field() -> None:
    draw = [
        deformation(SHAPE, Augment(), SPACING, torch.Generator().manual_seed(5), torch.device(kind))
        for kind in ("cpu", "meta")
    ]
    assert draw[1].device.type == "meta"
    assert (draw[1].dtype, draw[1].shape) == (draw[0].dtype, draw[0].shape)


def test_noise_is_drawn_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.device] = []
    randn = torch.randn

    def watched(*shape: object, **options: object) -> Tensor:
        found: Tensor = randn(*shape, **options)  # type: ignore[call-overload]
        drawn.append(found.device)
        return found

    monkeypatch.setattr(torch, "randn", watched)
    image, label = sample()
    always = Augment(probability=1.0)
    moved, _ = augment(image.to("meta"), label.to("meta"), always, SPACING, 3)
    assert moved.device.type == "meta"
    assert {device.type for device in drawn} == {"cpu"}
