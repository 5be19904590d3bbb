from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from core.archives.masks import Shares, inside_fraction, prepare_masks, voxels_of
from core.archives.preprocess import (
    place_crop,
    prepare_image,
    resample_image,
)
from core.data import resample
from core.data.geometry import Geometry
from core.data.grid import (
    affine,
    bounding_box,
    covering_box,
    index_transform,
    part_of,
    snap,
)
from core.data.resample import restore
from core.errors import UserError
from core.plan.schema import Preprocess

TURNS = [
    np.diag(signs)[:, order]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
OBLIQUE = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])


def grid(
    size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    direction: npt.NDArray[np.float64] | None = None,
) -> Geometry:
    matrix = np.eye(3) if direction is None else direction
    return Geometry(size, spacing, origin, tuple(float(v) for v in matrix.flatten()))


def ball(
    geometry: Geometry, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> npt.NDArray[np.bool_]:
    """An ellipsoid; `centre` and `radii` in mm (x, y, z)."""
    matrix, origin = affine(geometry)
    points = np.moveaxis(np.indices(geometry.size), 0, -1) @ matrix.T + origin
    return np.asarray((((points - centre) / radii) ** 2).sum(-1) <= 1)


def head(geometry: Geometry, centre: tuple[float, float, float]) -> npt.NDArray[np.int16]:
    body = ball(geometry, centre, (70.0, 90.0, 100.0))
    return np.where(body, 40, -1000).astype(np.int16)


def one_hot(labels: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.float32]:
    return np.stack([labels == c for c in range(classes)]).astype(np.float32)


def probabilities(
    shares: Mapping[str, Shares], organs: Sequence[str], crop: Geometry
) -> npt.NDArray[np.float32]:
    """What a network says that has learned the shares."""
    found = np.zeros((1 + len(organs), *crop.size), dtype=np.float32)
    for i, organ in enumerate(organs, start=1):
        box, values = shares.get(organ, ((slice(0),) * 3, np.zeros((0, 0, 0), dtype=np.uint8)))
        found[i][box] = values / np.float32(255)
    found[0] = 1 - found[1:].sum(axis=0)
    return found


def dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def at_crop(
    array: npt.NDArray[np.float32], source: Geometry, crop: Geometry
) -> npt.NDArray[np.float64]:
    """SciPy's linear interpolation of `array` at every voxel of `crop`."""
    matrix, start = index_transform(crop, source)
    index = np.moveaxis(np.indices(crop.size), 0, -1) @ matrix.T + start
    return np.asarray(
        ndimage.map_coordinates(
            array.astype(float), np.moveaxis(index, -1, 0), order=1, mode="nearest"
        )
    )


@given(
    turn=st.sampled_from(TURNS),
    seed=st.integers(0, 2**31),
    shift=st.tuples(*[st.integers(-6, 6)] * 3),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
)
@settings(max_examples=15, deadline=None)
def test_round_trip_at_equal_spacing_is_exact(
    turn: npt.NDArray[np.float64],
    seed: int,
    shift: tuple[int, int, int],
    origin: tuple[float, float, float],
) -> None:
    source = grid((14, 12, 13), (3.0, 3.0, 3.0), origin, turn)
    # A crop somewhere near, not on the CT's voxels yet.
    matrix, start = affine(source)
    corner = snap((matrix @ [7, 6, 6] + start) - 15 + np.array(shift) * 3.0 + 0.7, source)
    crop = grid((10, 11, 12), (3.0, 3.0, 3.0), tuple(float(v) for v in corner + 1.5))
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, source.size).astype(np.uint8)
    masks = {name: truth == i + 1 for i, name in enumerate("abc")}
    shares = prepare_masks(masks, source, crop, ["a", "b", "c"])
    assert all(set(np.unique(values)) <= {0, 255} for _, values in shares.values())
    back = restore(probabilities(shares, "abc", crop), crop, source)
    to_crop, offset = index_transform(source, crop)
    index = np.rint(np.moveaxis(np.indices(source.size), 0, -1) @ to_crop.T + offset)
    inside = ((index >= 0) & (index < crop.size)).all(-1)
    np.testing.assert_array_equal(back, np.where(inside, truth, 0))


@pytest.mark.parametrize("turn", [np.eye(3), TURNS[13], OBLIQUE])
def test_round_trip_at_twice_the_spacing_keeps_organs(turn: npt.NDArray[np.float64]) -> None:
    source = grid((64, 70, 66), (1.5, 1.5, 1.5), (-40.0, 10.0, 7.0), turn)
    matrix, origin = affine(source)
    middle = matrix @ (np.array(source.size) / 2) + origin
    masks = {
        "parotid": ball(source, tuple(middle + np.array([20, 0, 0])), (14.0, 18.0, 25.0)),
        "brainstem": ball(source, tuple(middle - np.array([18, 3, 0])), (15.0, 14.0, 30.0)),
    }
    crop = grid(
        (44, 44, 44), (3.0, 3.0, 3.0), tuple(float(v) for v in snap(middle - 66, source) + 1.5)
    )
    shares = prepare_masks(masks, source, crop, list(masks))
    back = restore(probabilities(shares, list(masks), crop), crop, source)
    for i, organ in enumerate(masks):
        assert dice(back == i + 1, masks[organ]) >= 0.98, organ


@pytest.mark.parametrize("turn", [np.eye(3), TURNS[13], OBLIQUE])
@pytest.mark.parametrize("coarser", [1.2, 1.5, 2.6])
def test_the_way_to_the_crop_and_back_keeps_shape_and_volume(
    turn: npt.NDArray[np.float64], coarser: float
) -> None:
    """Made hard on the crop, these lose up to a tenth of their volume, or win it."""
    source = grid((52, 56, 60), (2.0, 1.6, 1.6), (-40.0, 10.0, 7.0), turn)
    matrix, origin = affine(source)
    middle = matrix @ (np.array(source.size) / 2) + origin
    sizes = {"oesophagus": (7.0, 8.0, 38.0), "nerve": (4.0, 15.0, 5.0), "gland": (11.0, 14.0, 20.0)}
    for organ, radii in sizes.items():
        masks = {organ: ball(source, tuple(middle + np.array([1.3, 0.7, 0.4])), radii)}
        spacing = tuple(coarser * v for v in (2.0, 1.6, 1.6))
        first = tuple(float(v) for v in snap(middle - 48, source) + 0.5 * np.array(spacing)[::-1])
        crop = grid(tuple(int(96 / v) for v in spacing), spacing, first)  # type: ignore[arg-type]
        shares = prepare_masks(masks, source, crop, [organ])
        back = restore(probabilities(shares, [organ], crop), crop, source) == 1
        voxels = int(masks[organ].sum())
        assert back.sum() == pytest.approx(voxels, abs=max(0.01 * voxels, 10)), organ
        assert dice(back, masks[organ]) >= (0.96 if coarser < 2 else 0.85), organ
        assert shares[organ][1].dtype == np.uint8
        assert np.isin(shares[organ][1], (0, 255), invert=True).mean() > 0.02


def test_an_organ_cut_by_the_crop_is_whole_up_to_its_edge() -> None:
    source = grid((30, 40, 40), (3.0, 2.0, 2.0))
    masks = {"a": np.zeros(source.size, dtype=np.bool_), "b": np.zeros(source.size, dtype=np.bool_)}
    masks["a"][5:25, 5:35, 5:35] = True
    masks["b"][0, 0, 0] = True
    crop = grid((10, 16, 16), (3.6, 2.4, 2.4), (30.9, 21.0, 38.0))
    shares = prepare_masks(masks, source, crop, ["a", "b", "c"])
    assert set(shares) == {"a"}
    box, values = shares["a"]
    assert box == (slice(0, 10), slice(0, 16), slice(0, 16))
    assert (values[:, :, :-4] == 255).all()


@pytest.mark.parametrize("turn", [np.eye(3), TURNS[5], TURNS[22], OBLIQUE])
def test_image_agrees_with_scipy(turn: npt.NDArray[np.float64]) -> None:
    source = grid((20, 22, 24), (2.5, 2.0, 2.2), (3.0, -8.0, 5.0), turn)
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 3000, source.size), 1.5)
    image = image.astype(np.int16)
    matrix, origin = affine(source)
    middle = matrix @ (np.array(source.size) / 2) + origin
    crop = grid((8, 9, 10), (2.0, 2.2, 1.9), tuple(float(v) for v in middle - 8))
    plan = Preprocess([2.0, 2.2, 1.9], [8, 9, 10], [-150.0, 250.0])
    expected = np.clip(at_crop(image.astype(np.float32), source, crop), -150, 250)
    got = resample_image(image, source, crop, plan)
    assert got.dtype == np.int16
    assert abs(got - expected).max() <= 0.501
    assert got.max() == 250
    assert got.min() == -150


@pytest.mark.parametrize("turn", [np.eye(3), TURNS[9], TURNS[31], OBLIQUE])
def test_restore_agrees_with_scipy(
    turn: npt.NDArray[np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    crop = grid((9, 10, 11), (3.0, 2.0, 2.5), (1.0, 2.0, 3.0))
    probabilities = np.random.default_rng(1).dirichlet(np.ones(5), crop.size).astype(np.float32)
    probabilities = np.moveaxis(probabilities, -1, 0)
    source = grid((17, 30, 19), (1.7, 1.3, 2.1), (-3.0, 1.0, 26.0), turn)
    centre = affine(crop)[0] @ (np.array(crop.size) / 2) + affine(crop)[1]
    matrix, _ = affine(source)
    moved = centre - matrix @ (np.array(source.size) / 2)
    source = grid(source.size, source.spacing_mm, tuple(float(v) for v in moved), turn)
    expected = np.stack([at_crop(p, crop, source) for p in probabilities])
    to_crop, start = index_transform(source, crop)
    index = np.moveaxis(np.indices(source.size), 0, -1) @ to_crop.T + start
    inside = ((index >= -0.5) & (index <= np.array(crop.size) - 0.5)).all(-1)
    assert 0.1 < inside.mean() < 1
    best = np.sort(expected, axis=0)
    clear = (best[-1] - best[-2] > 1e-5) | ~inside
    monkeypatch.setattr(resample, "SLAB_VALUES", 3000)
    got = restore(probabilities, crop, source)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(
        got[clear], np.where(inside, expected.argmax(0), 0).astype(np.uint8)[clear]
    )


def test_restore_far_from_the_crop_is_background() -> None:
    crop = grid((4, 4, 4), (2.0, 2.0, 2.0), (500.0, 0.0, 0.0))
    ones = one_hot(np.ones(crop.size, dtype=np.uint8), 2)
    assert not restore(ones, crop, grid((5, 5, 5), (2.0, 2.0, 2.0))).any()


@pytest.mark.parametrize("turn", TURNS[::7])
def test_the_crop_does_not_depend_on_the_storage_order(turn: npt.NDArray[np.float64]) -> None:
    plan = Preprocess([6.0, 5.0, 4.0], [30, 24, 28], [-200.0, 300.0])
    upright = grid((64, 56, 48), (4.0, 4.0, 4.0), (-90.0, -100.0, -120.0))
    image = head(upright, (5.0, 10.0, 20.0))
    image[20:30, 20:30, 10:14] = 200
    expected, expected_grid = prepare_image(image, upright, plan)
    # The same voxels, stored along other axes.
    matrix = np.array(turn)
    order = [int(np.flatnonzero(matrix[:, a])[0]) for a in range(3)]
    signs = [matrix[order[a], a] for a in range(3)]
    xyz = image.transpose(2, 1, 0).transpose(order)
    corner = np.array([0, 0, 0])
    for a in range(3):
        if signs[a] < 0:
            xyz = np.flip(xyz, a)
            corner[order[a]] = upright.size[::-1][order[a]] - 1
    origin = np.array(upright.origin_mm) + corner * 4.0
    stored = np.ascontiguousarray(xyz.transpose(2, 1, 0))
    turned = grid(stored.shape, (4.0, 4.0, 4.0), tuple(float(v) for v in origin), matrix)
    got, got_grid = prepare_image(stored, turned, plan)
    assert got_grid.close_to(expected_grid, 1e-6)
    assert abs(got.astype(int) - expected).max() <= 1


def test_outside_the_ct_is_the_lower_end_of_the_window() -> None:
    plan = Preprocess([4.0, 4.0, 4.0], [60, 60, 60], [-160.0, 240.0])
    source = grid((30, 40, 40), (4.0, 4.0, 4.0))
    image, crop = prepare_image(np.full(source.size, 1000, dtype=np.int16), source, plan)
    assert image.shape == crop.size == (60, 60, 60)
    assert set(np.unique(image)) == {-160, 240}
    assert (image == 240).sum() == 30 * 40 * 40


def test_the_corner_of_the_crop_is_a_corner_of_a_voxel() -> None:
    source = grid((50, 50, 50), (4.0, 3.7, 4.3), (11.0, -7.3, 2.9), OBLIQUE)
    crop = place_crop(head(source, (80.0, 100.0, 100.0)), source, Preprocess())
    matrix, origin = affine(source)
    corner = np.array(crop.origin_mm) - np.array(crop.spacing_mm)[::-1] / 2
    index = np.linalg.solve(matrix, corner - origin) - 0.5
    np.testing.assert_allclose(index, np.rint(index), atol=1e-6)
    assert crop.direction == grid((1, 1, 1), (1.0, 1.0, 1.0)).direction


def test_smoothed_only_where_the_crop_is_much_coarser() -> None:
    source = grid((12, 12, 40), (1.0, 1.0, 1.0))
    stripes = np.where(np.arange(40) % 2, 100, -100) * np.ones(source.size)
    image = stripes.astype(np.int16)
    inner = (slice(None), slice(None), slice(3, -3))
    wide = grid((12, 12, 20), (1.0, 1.0, 2.0))
    fine = grid((12, 12, 28), (1.0, 1.0, 1.4))
    plan = Preprocess()
    # Every second voxel is the same: without smoothing the crop would be constant -100.
    assert abs(resample_image(image, source, wide, plan)[inner]).max() < 20
    np.testing.assert_allclose(
        resample_image(image, source, fine, plan),
        at_crop(stripes.astype(np.float32), source, fine),
        atol=1,
    )
    smooth = np.full(source.size, 70, dtype=np.int16)
    assert (resample_image(smooth, source, wide, plan) == 70).all()


def test_masks_keep_their_volume() -> None:
    source = grid((40, 40, 40), (2.0, 1.0, 1.0))
    masks = {
        "big": ball(source, (20.0, 20.0, 40.0), (12.0, 12.0, 24.0)),
        "small": ball(source, (22.0, 20.0, 40.0), (5.0, 5.0, 8.0)),
        "unwanted": ball(source, (5.0, 5.0, 10.0), (4.0, 4.0, 4.0)),
    }
    crop = grid((27, 27, 27), (3.0, 1.5, 1.5))
    shares = prepare_masks(masks, source, crop, ["small", "absent", "big"])
    assert set(shares) == {"small", "big"}
    for organ in shares:
        assert voxels_of(shares[organ]) * 6.75 == pytest.approx(2.0 * masks[organ].sum(), rel=0.12)
    with pytest.raises(UserError, match="at most 32"):
        prepare_masks(masks, source, crop, [str(i) for i in range(33)])


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((5, 6, 7)) < 0.02
    box = bounding_box(mask)
    found = ndimage.find_objects(mask.astype(int))
    assert box == (found[0] if mask.any() else None)
    source = grid((5, 6, 7), (2.0, 1.0, 1.5), (1.0, 2.0, 3.0), OBLIQUE)
    if box is not None:
        part = part_of(source, box)
        first = affine(source)[0] @ [b.start for b in box] + affine(source)[1]
        np.testing.assert_allclose(part.origin_mm, first)
        assert inside_fraction(mask, source, part) == 1.0
    part = part_of(source, (slice(1, 4), slice(2, 6), slice(0, 5)))
    kept = mask[1:4, 2:6, :5].sum() / mask.sum() if mask.any() else 1.0
    assert inside_fraction(mask, source, part) == pytest.approx(kept)
    cover = covering_box(source, grid((3, 3, 3), (1.0, 1.0, 1.0), (2.0, 4.0, 6.0)), [0, 0, 0])
    assert cover is not None
    assert all(0 <= b.start < b.stop <= n for b, n in zip(cover, source.size, strict=True))
