from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Polygon

from benchmarks.contour_shapes import KINDS, random_shape
from core.archives.dicom.contour_raster import INSET_PIXELS, rasterise, trace
from core.data.geometry import Geometry

GRID = Geometry((6, 20, 24), (3.0, 1.0, 1.5), (-10.0, 5.0, 40.0))


def square(low: float, high: float, z: float) -> np.ndarray:
    """A square in pixels of `GRID` on slice `z`, in mm."""
    index = np.array([[low, low], [high, low], [high, high], [low, high]])
    return np.column_stack([index[:, 0] * 1.5 - 10, index[:, 1] + 5, np.full(4, z * 3.0 + 40)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_analytic_shapes(kind: str, seed: int) -> None:
    shape = random_shape(np.random.default_rng(seed), kind)
    drawn = rasterise(shape.contours, shape.geometry)
    both = (drawn.mask & shape.voxels).sum()
    assert 2 * both / (drawn.mask.sum() + shape.voxels.sum()) >= 0.97
    assert (drawn.points, drawn.tilted, drawn.outside, drawn.between) == (0, 0, 0, 0)
    found = frozenset(np.flatnonzero(shape.voxels.any(axis=(1, 2))).tolist())
    assert found == frozenset(np.flatnonzero(drawn.mask.any(axis=(1, 2))).tolist())


def test_a_voxel_belongs_where_its_centre_lies_inside() -> None:
    mask = rasterise([square(2.5, 5.5, 1)], GRID).mask
    expected = np.zeros(GRID.size, dtype=bool)
    expected[1, 3:6, 3:6] = True
    np.testing.assert_array_equal(mask, expected)


def test_holes_and_islands_by_the_even_odd_rule() -> None:
    mask = rasterise([square(1.5, 12.5, 2), square(4.5, 8.5, 2), square(5.5, 6.5, 2)], GRID).mask
    assert mask[2, 3, 3]
    assert not mask[2, 7, 7]
    assert mask[2, 6, 6]


def test_neighbours_that_share_an_edge_share_no_voxel() -> None:
    left, right = square(2, 8, 1), square(8, 14, 1)
    right[:, 1] = left[:, 1]
    one, other = (rasterise([c], GRID).mask for c in (left, right))
    assert not (one & other).any()
    np.testing.assert_array_equal(one | other, rasterise([left, right], GRID).mask)


def test_what_is_not_drawn_is_counted() -> None:
    tilted = square(2.5, 8.5, 2)
    tilted[:2, 2] += 2.0
    contours = [
        square(2.5, 8.5, 1)[:1],
        square(2.5, 8.5, 1)[:2],
        tilted,
        square(2.5, 8.5, -0.6),
        square(2.5, 8.5, 5.6),
        square(2.5, 8.5, 3),
        square(1.5, 9.5, 3.3),
    ]
    drawn = rasterise(contours, GRID)
    assert (drawn.points, drawn.tilted, drawn.outside, drawn.between) == (2, 1, 2, 1)
    np.testing.assert_array_equal(drawn.mask, rasterise([square(2.5, 8.5, 3)], GRID).mask)


def test_a_contour_between_slices_goes_to_the_nearest() -> None:
    levels = (0.6, 2.4, 5.4, -0.4)
    drawn = rasterise([square(2.5, 8.5, z) for z in levels], GRID)
    assert np.flatnonzero(drawn.mask.any(axis=(1, 2))).tolist() == [0, 1, 2, 5]


def test_contours_that_reach_beyond_the_picture_are_cut() -> None:
    mask = rasterise([square(-40, 40, 1)], GRID).mask
    assert mask[1].all()
    assert mask.sum() == mask[1].sum()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 26), st.floats(-3, 23)), min_size=3, max_size=12))
def test_as_matplotlib_judges_points(corners: list[tuple[float, float]]) -> None:
    points = np.array(corners) + np.array([1e-3, 2e-3])  # no corner on a centre
    contour = np.column_stack([points[:, 0] * 1.5 - 10, points[:, 1] + 5, np.full(len(points), 40)])
    mask = rasterise([contour], GRID).mask[0]
    y, x = np.mgrid[:20, :24]
    centres = np.column_stack([x.ravel(), y.ravel()])
    near = np.zeros(len(centres), dtype=bool)
    crossings = np.zeros(len(centres), dtype=int)
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        triangle = Polygon(np.array([[-50.0, -50.0], a, b, [-50.0, -50.0]]), closed=True)
        crossings += triangle.contains_points(centres)
        near |= _distance(centres, a, b) < 1e-2
        for corner in (a, b):
            near |= _distance(centres, np.array([-50.0, -50.0]), corner) < 1e-2
    # Even-odd: a polygon is the sum, modulo two, of the triangles of its edges with any point.
    expected = (crossings % 2).astype(bool)
    np.testing.assert_array_equal(mask.ravel()[~near], expected[~near])


def _distance(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    along = b - a
    length = float(along @ along)
    t = np.clip((points - a) @ along / length, 0, 1) if length else np.zeros(len(points))
    return np.linalg.norm(points - a - t[:, None] * along, axis=1)


@settings(max_examples=150, deadline=None)
@given(arrays(np.bool_, (3, 7, 6)), st.booleans())
def test_traced_and_drawn_again_a_mask_is_the_same(mask: np.ndarray, oblique: bool) -> None:
    direction = np.eye(3)
    if oblique:
        direction, _ = np.linalg.qr(np.array([[1.0, 0.2, 0.1], [-0.2, 1.0, 0.3], [0.0, -0.3, 1.0]]))
    geometry = Geometry((3, 7, 6), (2.5, 0.9, 1.1), (-31.7, 12.3, 9.1), tuple(direction.ravel()))
    contours = trace(mask, geometry)
    assert all(len(c) >= 4 for c in contours)
    np.testing.assert_array_equal(rasterise(contours, geometry).mask, mask)


def test_traced_outlines_lie_inside_the_edges_of_the_pixels() -> None:
    mask = np.zeros((1, 8, 8), dtype=bool)
    mask[0, 1:6, 1:6] = True
    mask[0, 3, 3] = False
    geometry = Geometry((1, 8, 8), (1.0, 1.0, 1.0))
    outlines = trace(mask, geometry)
    assert len(outlines) == 2
    areas = [
        abs(np.dot(c[:, 0], np.roll(c[:, 1], 1)) - np.dot(c[:, 1], np.roll(c[:, 0], 1))) / 2
        for c in outlines
    ]
    inset = 2 * INSET_PIXELS  # the structure shrinks on both sides: its hole grows
    assert sorted(areas) == pytest.approx([(1 + inset) ** 2, (5 - inset) ** 2])
    assert sorted(len(c) for c in outlines) == [4, 4]


def test_planes_halfway_between_slices_fill_every_slice_once() -> None:
    drawn = rasterise([square(2.5, 8.5, z + 0.5) for z in range(5)], GRID)
    assert np.flatnonzero(drawn.mask.any(axis=(1, 2))).tolist() == [1, 2, 3, 4, 5]
    assert drawn.between == 0


def test_a_contour_that_is_there_twice_counts_once() -> None:
    one = square(2.5, 8.5, 2)
    again = np.roll(one, 2, axis=0)[::-1]
    drawn = rasterise([one, again], GRID)
    assert drawn.doubled == 1
    np.testing.assert_array_equal(drawn.mask, rasterise([one], GRID).mask)
