from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon

from core.archives.dicom.contour_plane import Points, combined

SIZE = (40, 50)
CENTRES = np.stack(np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0])), axis=-1).reshape(-1, 2)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def circle(x: float, y: float, radius: float, count: int = 40) -> Points:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.column_stack([x + radius * np.cos(angle), y + radius * np.sin(angle)])


def inside(polygon: Points) -> np.ndarray:
    """By another program: which pixel centres lie inside a polygon."""
    closed = np.vstack([polygon, polygon[:1]])
    return Polygon(closed).contains_points(CENTRES).reshape(SIZE)


A, B = circle(18.3, 20.2, 10.1), circle(26.4, 20.3, 9.9)


def test_contours_that_cross_are_joined_and_told() -> None:
    plane = combined([A, B], SIZE)
    np.testing.assert_array_equal(plane.mask, inside(A) | inside(B))
    assert (plane.doubled, plane.crossing) == (0, 1)


def test_nested_contours_are_holes_and_islands() -> None:
    hole, island = circle(18.3, 20.2, 6.2), circle(18.3, 20.2, 3.3)
    plane = combined([island, A, hole], SIZE)
    np.testing.assert_array_equal(plane.mask, (inside(A) & ~inside(hole)) | inside(island))
    assert plane.crossing == 0


def test_a_hole_of_one_contour_stays_where_another_crosses_it() -> None:
    hole = circle(12.2, 20.1, 2.2)
    plane = combined([A, B, hole], SIZE)
    np.testing.assert_array_equal(plane.mask, (inside(A) | inside(B)) & ~inside(hole))
    beneath = circle(18.3, 20.2, 4.1)  # a hole of A that B covers in part
    plane = combined([A, B, beneath], SIZE)
    expected = (inside(A) & ~inside(beneath)) | inside(B)
    np.testing.assert_array_equal(plane.mask, expected)


def test_a_hole_that_touches_the_border_is_a_hole() -> None:
    outer, hole = box(4.5, 4.5, 30.5, 30.5), box(4.49, 10.5, 12.5, 20.5)
    plane = combined([outer, hole], SIZE)
    np.testing.assert_array_equal(plane.mask, inside(outer) & ~inside(hole))


def test_exclusive_contours_cut_each_other_out() -> None:
    plane = combined([A, B], SIZE, xor=True)
    np.testing.assert_array_equal(plane.mask, inside(A) ^ inside(B))
    assert plane.crossing == 0


@pytest.mark.parametrize(
    "again",
    [
        A,
        A[::-1],
        np.roll(A, 7, axis=0),
        A + 0.03,
        np.round(A, 1),
        np.vstack([A, A[:1]]),
        np.repeat(A, 2, axis=0),
        np.vstack([(A + np.roll(A, -1, axis=0)) / 2, A[0]])[
            np.argsort(np.r_[np.arange(len(A)) + 0.5, 0.0])
        ],
    ],
    ids=["same", "turned", "begun elsewhere", "beside", "rounded", "closed", "thick", "halved"],
)
def test_a_contour_that_is_there_twice_is_drawn_once(again: Points) -> None:
    plane = combined([A, again], SIZE)
    assert plane.doubled == 1
    np.testing.assert_array_equal(plane.mask, inside(A))


def test_a_thin_wall_is_no_doubled_contour() -> None:
    inner = circle(18.3, 20.2, 9.0)
    plane = combined([A, inner], SIZE)
    assert plane.doubled == 0
    np.testing.assert_array_equal(plane.mask, inside(A) & ~inside(inner))


def test_outside_the_picture_nothing_is_drawn() -> None:
    plane = combined([A + 200, B + 200, box(-30, -30, -5, -5)], SIZE)
    assert not plane.mask.any()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.floats(0, 40), st.floats(0.5, 14)), min_size=1, max_size=5
    ),
    st.randoms(use_true_random=False),
)
def test_order_does_not_matter_and_nothing_appears(circles, random) -> None:
    polygons = [circle(x + 0.013, y + 0.007, r) for x, y, r in circles]
    plane = combined(polygons, SIZE)
    shuffled = list(polygons)
    random.shuffle(shuffled)
    again = combined(shuffled, SIZE)
    union = np.any([inside(polygon) for polygon in polygons], axis=0)
    assert not (plane.mask & ~union).any()
    if not plane.doubled:
        np.testing.assert_array_equal(plane.mask, again.mask)
    apart = all(
        np.hypot(a[0] - b[0], a[1] - b[1]) > a[2] + b[2]
        for i, a in enumerate(circles)
        for b in circles[:i]
    )
    if apart:
        np.testing.assert_array_equal(plane.mask, union)
