from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_surface_dice
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import from_numpy

from core.metrics.scores import NOTHING, Outline, dice, outline, pool_sites, score_case
from core.metrics.scores import organ_sums as sums
from hnfed.evaluate.measures import MEASURES, CaseMeasures, measure, summary, summary_rows

Mask = npt.NDArray[np.bool_]
SPACING = (3.0, 1.0, 1.5)


def ball(centre: tuple[float, float, float], radius: float, size: int = 16) -> Mask:
    grid = np.indices((size, size, size)) - np.array(centre).reshape(3, 1, 1, 1)
    return (grid**2).sum(axis=0) <= radius**2


def masks(seed: int) -> tuple[Mask, Mask]:
    """Two blobs with islands and holes, also at the border of the volume."""
    rng = np.random.default_rng(seed)
    pair = []
    for _ in range(2):
        mask = ball(tuple(rng.uniform(2, 13, 3)), float(rng.uniform(2, 5)))
        mask ^= rng.random(mask.shape) < 0.01
        pair.append(mask)
    return pair[0], pair[1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_surfaces_are_those_of_monai(seed: int) -> None:
    pred, truth = masks(seed)
    told = measure("c", "Larynx", outline(pred), truth, SPACING, 1.0)
    a, b = (from_numpy(m[None, None].astype(np.float32)) for m in (pred, truth))
    msd = compute_average_surface_distance(a, b, symmetric=True, spacing=list(SPACING))
    assert told.msd_mm == pytest.approx(float(msd), abs=1e-4)
    for tolerance, ours in ((1.0, told.surface_dice_1mm), (2.0, told.surface_dice_2mm)):
        theirs = compute_surface_dice(a, b, [tolerance], spacing=list(SPACING))
        assert ours == pytest.approx(float(theirs), abs=1e-6)
    organs, labels = ["Larynx"], pred.astype(np.uint8)
    (score,) = score_case("c", labels, organs, {"Larynx": truth}, SPACING, 1.0)
    assert told.dice == score.dice == dice(pred, truth)
    assert told.hd95_mm == score.hd95_mm


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_surfaces_are_those_of_scipys_distance_maps(seed: int) -> None:
    pred, truth = masks(seed)
    borders = [m & ~binary_erosion(m) for m in (pred, truth)]
    maps = [distance_transform_edt(~edge, sampling=SPACING) for edge in borders]
    every = np.concatenate([maps[1][borders[0]], maps[0][borders[1]]])
    told = measure("c", "Larynx", outline(pred), truth, SPACING, 1.0)
    assert told.msd_mm == pytest.approx(every.mean())
    assert told.surface_dice_1mm == pytest.approx((every <= 1).mean())
    assert told.surface_dice_2mm == pytest.approx((every <= 2).mean())
    assert told.volume_ml == pytest.approx(truth.sum() * 0.0045)
    assert told.predicted_ml == pytest.approx(pred.sum() * 0.0045)


def test_a_prediction_that_is_the_reference() -> None:
    truth = ball((8, 8, 8), 4)
    told = measure("c", "Larynx", outline(truth), truth, SPACING, 9.0)
    assert (told.dice, told.hd95_mm, told.msd_mm) == (1.0, 0.0, 0.0)
    assert (told.surface_dice_1mm, told.surface_dice_2mm) == (1.0, 1.0)
    assert told.predicted_ml == told.volume_ml


@pytest.mark.parametrize("predicted", [NOTHING, outline(np.zeros((16, 16, 16), bool))])
def test_a_miss_has_no_distance_and_no_share(predicted: Outline) -> None:
    told = measure("c", "Larynx", predicted, ball((8, 8, 8), 4), SPACING, 9.0)
    assert (told.dice, told.surface_dice_1mm, told.surface_dice_2mm) == (0.0, 0.0, 0.0)
    assert (told.hd95_mm, told.msd_mm, told.predicted_ml) == (None, None, 0.0)
    assert told.volume_ml > 0


def score(case: str, organ: str, predicted_ml: float, distance: float = 2.0) -> CaseMeasures:
    """An organ of 10 mL; missed where nothing is predicted."""
    if not predicted_ml:
        return CaseMeasures(case, organ, 0.0, None, 100.0, 10.0, 0.0, 0.0, None, 0.0)
    return CaseMeasures(case, organ, 0.8, distance, 100.0, 10.0, predicted_ml, 0.7, 1.0, 0.5)


SCORES = [
    score("a", "Larynx", 11.0),
    score("b", "Larynx", 13.0, 4.0),
    score("c", "Larynx", 0.0),
    score("d", "Larynx", 0.0),
    score("a", "Esophagus", 5.0),
]
ORGANS = ("Larynx", "Esophagus", "Brainstem")


def test_misses_count_where_the_rule_says() -> None:
    content = summary(SCORES, ORGANS)
    larynx = content["organs"]["Larynx"]
    assert (larynx["n"], larynx["missed"], larynx["detection_rate"]) == (4, 2, 0.5)
    assert larynx["dice"] == pytest.approx(0.4)
    assert larynx["surface_dice_1mm"] == pytest.approx(0.25)
    assert larynx["surface_dice_2mm"] == pytest.approx(0.35)
    assert larynx["hd95_mm"] == pytest.approx(3.0)
    assert larynx["hd95_mm_penalised"] == pytest.approx(51.5)
    assert larynx["msd_mm"] == pytest.approx(1.0)
    assert larynx["volume_ml"] == pytest.approx(10.0)
    assert larynx["volume_bias_ml"] == pytest.approx(2.0)
    assert larynx["volume_bias_percent"] == pytest.approx(20.0)
    absent = content["organs"]["Brainstem"]
    assert absent["n"] == 0
    assert all(absent[name] is None for name in MEASURES)


def test_means_weigh_organs_equally_and_are_those_that_are_published() -> None:
    content = summary(SCORES, ORGANS)
    mean = content["mean"]
    assert (mean["n"], mean["missed"]) == (5, 2)
    assert mean["detection_rate"] == pytest.approx(0.75)
    assert mean["volume_bias_percent"] == pytest.approx(-15.0)
    assert "volume_ml" not in mean
    published = pool_sites({"data": sums(SCORES, ORGANS)}, ORGANS, 1)
    for name in ("dice", "hd95_mm", "hd95_mm_penalised"):
        assert mean[name] == published[name]
        for organ in ORGANS:
            assert content["organs"][organ][name] == published["organs"][organ][name]


def test_intervals_hold_the_mean_and_are_left_out_for_one_case() -> None:
    rng = np.random.default_rng(0)
    many = [score(f"c{i}", "Larynx", float(v)) for i, v in enumerate(rng.normal(10, 1, 40))]
    cell = summary([*many, score("c0", "Esophagus", 5.0)], ORGANS)["organs"]
    low, high = cell["Larynx"]["intervals"]["volume_bias_ml"]
    assert low < cell["Larynx"]["volume_bias_ml"] < high
    assert 0.4 < high - low < 0.9  # 2 x 1.96 / sqrt(40) = 0.62
    assert cell["Esophagus"]["intervals"]["dice"] is None


def test_rows_are_complete() -> None:
    header, *rows = summary_rows(summary(SCORES, ORGANS))
    assert [row[0] for row in rows] == [*ORGANS, "mean"]
    assert all(len(row) == len(header) for row in rows)
    assert {f"{name}_low" for name in MEASURES} < set(header)
    assert not any(isinstance(v, float) and math.isnan(v) for row in rows for v in row)
