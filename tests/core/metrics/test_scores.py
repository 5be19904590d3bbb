"""Dice and HD95 against MONAI, and what may be published of them."""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy.ndimage import gaussian_filter

from core.metrics.scores import (
    MEASURES,
    SUM_FIELDS,
    SUPPRESSED,
    CaseScore,
    OrganSum,
    dice,
    organ_sums,
    outline,
    outlines,
    overlap_case,
    pool_sites,
    score_case,
    without_distances,
)

SPACING = (3.0, 1.5, 1.25)
SHAPE = (14, 18, 22)


def monai_hd95(pred, truth, spacing=SPACING):
    stack = [torch.from_numpy(np.stack([np.zeros_like(m), m]))[None] for m in (pred, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI about its own deprecated argument
        return compute_hausdorff_distance(*stack, percentile=95, spacing=spacing).item()


def blob(seed, shape=SHAPE, level=0.75):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5, mode="nearest")
    return noise > np.quantile(noise, level)


def box(*bounds, shape=SHAPE):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in bounds)] = True
    return mask


def hd95_mm(pred, truth, spacing):
    (score,) = score_case("", pred.astype(np.uint8), ["A"], {"A": truth}, spacing, 0.0)
    return score.hd95_mm


# --- HD95 and Dice -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_hd95_equals_monai_on_random_shapes_with_islands_that_touch_the_edge(seed):
    pred, truth = blob(seed), blob(seed + 100)
    assert pred[0].any()
    assert truth[:, :, -1].any()  # they do touch
    assert hd95_mm(pred, truth, SPACING) == pytest.approx(monai_hd95(pred, truth), abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_hd95_equals_monai_for_near_predictions_with_a_far_island(seed):
    truth = blob(seed, level=0.9)
    pred = np.roll(truth, (1, 0, -1), (0, 1, 2))
    pred[-1, -1, -1] = True
    assert hd95_mm(pred, truth, SPACING) == pytest.approx(monai_hd95(pred, truth), abs=1e-3)


@pytest.mark.parametrize(
    ("pred", "truth"),
    [
        (box((0, 14), (0, 18), (0, 22)), box((3, 5), (3, 5), (3, 5))),  # the whole volume
        (box((0, 1), (0, 1), (0, 1)), box((13, 14), (17, 18), (21, 22))),  # opposite corners
        (box((0, 6), (0, 6), (0, 6)), box((0, 6), (0, 6), (0, 7))),
        (box((5, 6), (5, 6), (5, 6)), box((5, 6), (5, 6), (5, 6))),  # one voxel, hit
        (box((2, 9), (2, 9), (2, 9)), box((4, 7), (4, 7), (4, 7))),  # nested
    ],
)
def test_hd95_equals_monai_at_the_volumes_edge(pred, truth):
    assert hd95_mm(pred, truth, SPACING) == pytest.approx(monai_hd95(pred, truth), abs=1e-3)


@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=4, max_dims=4, min_side=2, max_side=6)),
    st.tuples(*[st.floats(0.3, 5.0)] * 3),
)
@settings(max_examples=60, deadline=None)
def test_hd95_equals_monai_on_anything(masks, spacing):
    pred, truth = masks[0], masks[1]
    assume(pred.any() and truth.any())
    assert hd95_mm(pred, truth, spacing) == pytest.approx(
        monai_hd95(pred, truth, spacing), abs=1e-3
    )


def test_hd95_is_the_larger_directed_percentile_not_the_pooled_one():
    truth = box((4, 5), (4, 5), (0, 20))
    pred = box((4, 5), (4, 5), (0, 10))
    # directed: truth -> pred has distances 1..10 on half its voxels, pred -> truth has none
    away = np.concatenate([np.zeros(10), np.arange(1, 11)])
    assert hd95_mm(pred, truth, (1, 1, 1)) == pytest.approx(np.percentile(away, 95))
    pooled = np.percentile(np.concatenate([away, np.zeros(10)]), 95)
    assert hd95_mm(pred, truth, (1, 1, 1)) > pooled


def test_hd95_uses_the_spacing_of_each_axis():
    truth, pred = box((5, 6), (5, 6), (5, 6)), box((6, 7), (7, 8), (8, 9))
    assert hd95_mm(pred, truth, SPACING) == pytest.approx(math.hypot(3.0, 2 * 1.5, 3 * 1.25))


def test_empty_prediction_is_missed_not_zero():
    truth, nothing = box((5, 8), (5, 8), (5, 8)), np.zeros(SHAPE, dtype=bool)
    assert hd95_mm(nothing, truth, SPACING) is None
    assert dice(nothing, truth) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_dice_equals_monai(seed):
    pred, truth = blob(seed), blob(seed + 50)
    stacks = [torch.from_numpy(m)[None, None] for m in (pred, truth)]
    assert dice(pred, truth) == pytest.approx(compute_dice(*stacks).item(), abs=1e-6)


# --- a case --------------------------------------------------------------------------------


def labelled_case():
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[blob(1)] = 1
    labels[blob(2)] = 2
    labels[blob(3, level=0.95)] = 4
    truth = {"A": blob(4), "B": blob(2), "C": blob(5), "E": blob(7)}
    return labels, ["A", "B", "C", "D"], truth


def test_score_case_scores_the_annotated_organs_of_the_phase_with_their_original_masks():
    labels, organs, truth = labelled_case()
    scores = score_case("pt_1", labels, organs, truth, SPACING, 400.0)
    assert [s.organ for s in scores] == ["A", "B", "C"]  # D is not annotated, E not in the phase
    for s in scores:
        pred = labels == organs.index(s.organ) + 1
        assert (s.case, s.penalty_mm) == ("pt_1", 400.0)
        assert s.dice == pytest.approx(dice(pred, truth[s.organ]))
        assert s.hd95_mm == hd95_mm(pred, truth[s.organ], SPACING)
        assert s.volume_ml == pytest.approx(truth[s.organ].sum() * math.prod(SPACING) / 1000)
        assert s.predicted_ml == pytest.approx(pred.sum() * math.prod(SPACING) / 1000)
    assert (scores[2].hd95_mm, scores[2].predicted_ml) == (None, 0.0)  # C is missed
    assert scores[1].hd95_mm == pytest.approx(monai_hd95(labels == 2, truth["B"]), abs=1e-3)


def test_outlines_of_a_label_map_are_those_of_its_organs_masks():
    labels, organs, _ = labelled_case()
    drawn = outlines(labels, organs)
    assert list(drawn) == organs
    for position, organ in enumerate(organs, start=1):
        alone = outline(labels == position)
        np.testing.assert_array_equal(drawn[organ].voxels, alone.voxels)
        np.testing.assert_array_equal(drawn[organ].border, alone.border)
    assert drawn["C"].voxels.size == 0
    assert 0 < drawn["A"].border.size < drawn["A"].voxels.size


def test_score_case_takes_arrays_in_any_memory_order():
    labels, organs, truth = labelled_case()
    turned = {k: np.asfortranarray(v) for k, v in truth.items()}
    a = score_case("x", labels, organs, truth, SPACING, 1.0)
    assert a == score_case("x", np.asfortranarray(labels), organs, turned, SPACING, 1.0)


def test_score_case_of_an_empty_prediction():
    _, organs, truth = labelled_case()
    scores = score_case("x", np.zeros(SHAPE, np.uint8), organs, truth, SPACING, 400.0)
    assert [(s.dice, s.hd95_mm) for s in scores] == [(0.0, None)] * 3


def test_dice_alone_is_the_dice_of_all_scores():
    labels, organs, truth = labelled_case()
    whole = score_case("x", labels, organs, truth, SPACING, 400.0)
    alone = overlap_case("x", np.asfortranarray(labels), organs, truth, SPACING, 400.0)
    for a, b in zip(whole, alone, strict=True):
        assert (a.organ, a.dice, a.volume_ml, a.predicted_ml) == (
            b.organ, b.dice, b.volume_ml, b.predicted_ml,
        )  # fmt: skip
        assert b.hd95_mm is None if a.hd95_mm is None else math.isnan(b.hd95_mm)
    sums = organ_sums(alone, organs)
    assert {o: (s.n, s.detected) for o, s in sums.items()} == {
        o: (s.n, s.detected) for o, s in organ_sums(whole, organs).items()
    }
    shown = pool_sites(without_distances({"s": sums}), organs, 1)
    assert shown["hd95_mm"] is None
    assert shown["hd95_mm_penalised"] is None
    assert shown["dice"] == pool_sites({"s": organ_sums(whole, organs)}, organs, 1)["dice"]


# --- summaries -----------------------------------------------------------------------------


def summarise(scores, organs, min_cell):
    """What is published of the only site."""
    return pool_sites({"a": organ_sums(scores, organs)}, organs, min_cell)["organs"]


def scores_of(organ, values, penalty=100.0):
    return [
        CaseScore(f"{organ}{i}", organ, d, None if h is None else float(h), penalty, 1.0, d, 0.5)
        for i, (d, h) in enumerate(values)
    ]


def test_summary_counts_missed_organs_and_never_averages_them_in_as_zero():
    scores = scores_of("A", [(0.8, 2.0), (0.6, 4.0), (0.0, None)])
    assert summarise(scores, ["A", "B"], 1) == {
        "A": {
            "n": 3,
            "missed": 1,
            "dice": pytest.approx(1.4 / 3),
            "hd95_mm": pytest.approx(3.0),
            "hd95_mm_penalised": pytest.approx(106 / 3),
        },
        "B": {"n": 0, "missed": 0, "dice": None, "hd95_mm": None, "hd95_mm_penalised": None},
    }


def test_organ_that_is_always_missed_has_no_hd95():
    cell = summarise(scores_of("A", [(0.0, None)] * 2), ["A"], 1)["A"]
    assert (cell["dice"], cell["hd95_mm"], cell["hd95_mm_penalised"]) == (0.0, None, 100.0)


def test_summary_below_min_cell_is_suppressed():
    scores = scores_of("A", [(0.8, 2.0)] * 10) + scores_of("B", [(0.8, 2.0)] * 11)
    cells = summarise(scores, ["A", "B", "C"], 11)
    assert cells["A"] == {
        "n": None,
        "missed": None,
        "dice": None,
        "hd95_mm": None,
        "hd95_mm_penalised": None,
        "suppressed": True,
    }
    assert cells["B"]["n"] == 11
    assert cells["C"]["n"] == 0


def site(**organs):
    """Sums of a site: organ = list of (dice, hd95)."""
    scores = [s for organ, values in organs.items() for s in scores_of(organ, values)]
    return organ_sums(scores, ["A", "B", "C"])


def test_pooling_is_over_cases_and_means_over_organs():
    sites = {
        "x": site(A=[(0.9, 1.0)] * 3, B=[(0.5, 10.0)]),
        "y": site(A=[(0.5, 3.0), (0.0, None)], B=[(0.0, None)]),
    }
    got = pool_sites(sites, ["A", "B", "C"], 1)
    assert got["organs"]["A"]["dice"] == pytest.approx(3.2 / 5)  # cases, not sites
    assert got["organs"]["A"]["hd95_mm"] == pytest.approx(6 / 4)
    assert got["organs"]["B"]["dice"] == pytest.approx(0.25)
    assert got["organs"]["C"]["n"] == 0
    assert got["dice"] == pytest.approx((0.64 + 0.25) / 2)  # C does not count
    assert got["hd95_mm"] == pytest.approx((1.5 + 10) / 2)
    assert got["hd95_mm_penalised"] == pytest.approx((106 / 5 + 110 / 2) / 2)
    assert (got["n"], got["missed"]) == (7, 2)


def test_missing_more_organs_cannot_improve_the_penalised_hd95():
    good = pool_sites({"x": site(A=[(0.8, 3.0), (0.3, 9.0)])}, ["A"], 1)
    worse = pool_sites({"x": site(A=[(0.8, 3.0), (0.0, None)])}, ["A"], 1)
    assert worse["hd95_mm"] < good["hd95_mm"]  # which is why it never stands alone
    assert worse["hd95_mm_penalised"] > good["hd95_mm_penalised"]
    assert (worse["missed"], good["missed"]) == (1, 0)


def test_one_suppressed_site_is_left_out_of_the_pool():
    sites = {"x": site(A=[(0.9, 1.0)] * 20), "y": site(A=[(0.1, 9.0)] * 5)}
    got = pool_sites(sites, ["A"], 11)["organs"]["A"]
    assert (got["n"], got["dice"]) == (20, pytest.approx(0.9))


def test_two_suppressed_sites_count_only_if_they_reach_min_cell_together():
    big = site(A=[(0.9, 1.0)] * 20)
    small = {"y": site(A=[(0.1, 9.0)] * 5), "z": site(A=[(0.2, 9.0)] * 5)}
    assert pool_sites({"x": big} | small, ["A"], 11)["organs"]["A"]["n"] == 20
    assert pool_sites({"x": big} | small, ["A"], 10)["organs"]["A"]["n"] == 30
    assert pool_sites(small, ["A"], 11)["organs"]["A"] == SUPPRESSED
    assert pool_sites(small, ["A"], 10)["organs"]["A"]["dice"] == pytest.approx(0.15)


def test_what_few_found_cases_alone_would_tell_is_not_published():
    rare = site(A=[(0.4, 17.25)] * 3 + [(0.0, None)] * 17)
    cell = pool_sites({"x": rare}, ["A"], 11)["organs"]["A"]
    unsaid = {"missed": None, "hd95_mm": None, "hd95_mm_penalised": None}
    assert cell == {"n": 20, "dice": pytest.approx(1.2 / 20)} | unsaid
    often = site(A=[(0.9, 2.0)] * 20)
    both = pool_sites({"x": rare, "y": often}, ["A"], 11)
    pooled = both["organs"]["A"]
    assert pooled["dice"] == pytest.approx(19.2 / 40)
    assert pooled["hd95_mm"] == pytest.approx(2.0), "less the other site's, nothing is left of one"
    assert (pooled["missed"], pooled["hd95_mm_penalised"]) == (None, None)
    assert (both["n"], both["missed"]) == (40, None)
    few = {s: site(A=[(0.4, 17.25)] + [(0.0, None)] * 9) for s in ("v", "w")}
    assert pool_sites(few, ["A"], 11)["organs"]["A"]["missed"] is None


def test_no_organ_published_gives_no_mean():
    got = pool_sites({"x": site(A=[(0.9, 1.0)])}, ["A", "B"], 11)
    assert (got["dice"], got["hd95_mm"], got["n"], got["missed"]) == (None, None, 0, 0)


@given(
    st.lists(
        st.lists(st.one_of(st.none(), st.floats(0.1, 50)), max_size=14), min_size=1, max_size=5
    ),
    st.integers(1, 12),
)
@settings(deadline=None)
def test_no_suppressed_cell_follows_by_subtraction(hd95s, min_cell):
    """From all that is published, at most a sum over two sites and min_cell cases is left over."""
    rows = [[(0.0 if h is None else 0.5, h) for h in values] for values in hd95s]
    sites = {str(i): site(A=values) for i, values in enumerate(rows)}
    scores = {str(i): scores_of("A", values) for i, values in enumerate(rows)}
    cells = {name: summarise(s, ["A"], min_cell)["A"] for name, s in scores.items()}
    pooled = pool_sites(sites, ["A"], min_cell)["organs"]["A"]
    hidden = {name: sites[name]["A"] for name, cell in cells.items() if cell.get("suppressed")}
    for name, cell in cells.items():
        assert (name in hidden) == (0 < len(scores[name]) < min_cell)
        assert name not in hidden or set(cell.values()) == {None, True}
    shown = [cell["n"] for cell in cells.values() if cell["n"]]
    if pooled["n"] is None:
        assert hidden
        assert not shown
        return
    left = pooled["n"] - sum(shown)
    assert left in (0, sum(s.n for s in hidden.values()))
    assert left == 0 or (len(hidden) >= 2 and left >= min_cell)
    if left == 0 and pooled["n"]:  # nothing of a hidden site is in the other numbers either
        total = sum(cell["dice"] * cell["n"] for cell in cells.values() if cell["n"])
        assert pooled["dice"] * pooled["n"] == pytest.approx(total)
        missed = [cell["missed"] for cell in cells.values() if cell["n"]]
        assert pooled["missed"] == (None if None in missed else sum(missed))
        told = [c for c in cells.values() if c["n"] and c["missed"] is not None]
        found = [(c["hd95_mm"], c["n"] - c["missed"]) for c in told if c["hd95_mm"] is not None]
        distance = sum(mean * n for mean, n in found)
        assert (pooled["hd95_mm"] or 0.0) * sum(n for _, n in found) == pytest.approx(distance)


def test_what_a_site_withholds_is_suppressed_and_pooled_without_it():
    sites = {"x": site(A=[(0.9, 1.0)] * 4), "y": {"A": OrganSum(n=-1)}}
    assert pool_sites(sites, ["A"], 3)["organs"]["A"]["n"] == 4
    assert pool_sites({"y": sites["y"]}, ["A"], 3)["organs"]["A"] == SUPPRESSED


def test_sums_add_up():
    a, b = OrganSum(2, 1, 0.5, 3.0, 103.0), OrganSum(1, 1, 0.7, 1.0, 1.0)
    assert a.plus(b) == OrganSum(3, 2, 1.2, 4.0, 104.0)


def test_the_measures_are_the_fields_of_a_sum_in_order() -> None:
    """`plus` and the messages go by the table; a field without its row would be lost."""
    assert tuple(f.name for f in dataclasses.fields(OrganSum)) == SUM_FIELDS
    assert set(SUPPRESSED) == {"n", "missed", *MEASURES, "suppressed"}
