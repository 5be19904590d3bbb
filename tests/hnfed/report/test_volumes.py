"""The chart of predicted against true volumes: places, sites, phases, ratios."""

from __future__ import annotations

import re

import pytest

from hnfed.report.volumes import Tests, volume_charts, without_volumes

CHIASM = "OpticChiasm"
TESTS: Tests = {
    ("miccai", "pretrained"): {
        CHIASM: {"z": (0.2, 0.4), "a": (0.6, 0.9), "m": (0.4, 0.0)},
        "Brainstem": {"z": (20.0, 21.0)},
    },
    ("miccai", "mixed"): {CHIASM: {"a": (0.6, 0.6), "z": (0.2, 0.2)}},
    ("nyu", "pretrain"): {CHIASM: {"a": (0.5, 0.5)}},
    ("nyu", "mixed"): {CHIASM: {"a": (0.5, 0.75)}},
}
PHASES = ["pretrain", "pretrained", "mixed"]


def dots(chart: str, style: str) -> list[tuple[float, float]]:
    found = re.findall(rf'class="dot {style}" cx="([\d.]+)" cy="([\d.]+)"', chart)
    return [(float(x), float(y)) for x, y in found]


def test_a_chart_a_site_with_the_phases_that_tested_there() -> None:
    miccai, nyu = volume_charts([CHIASM], PHASES, TESTS)
    assert (miccai["organ"], miccai["site"], nyu["site"]) == (CHIASM, "miccai", "nyu")
    assert [p["name"] for p in miccai["phases"]] == ["pretrained", "mixed"]
    assert [p["name"] for p in nyu["phases"]] == ["pretrain", "mixed"]
    assert miccai["phases"][1]["style"] == nyu["phases"][1]["style"]
    assert len({p["style"] for e in (miccai, nyu) for p in e["phases"]}) == 3
    assert volume_charts([], PHASES, TESTS) == []
    assert volume_charts(["Parotid_L"], PHASES, TESTS) == []


def test_a_missed_organ_counts_0_in_the_mean_ratio() -> None:
    miccai, nyu = volume_charts([CHIASM], PHASES, TESTS)
    pretrained, mixed = miccai["phases"]
    assert pretrained["ratio"] == pytest.approx((2.0 + 1.5 + 0.0) / 3)
    assert (pretrained["n"], pretrained["missed"]) == (3, 1)
    assert (mixed["ratio"], mixed["n"], mixed["missed"]) == (pytest.approx(1.0), 2, 0)
    assert [p["ratio"] for p in nyu["phases"]] == [1.0, 1.5]


def test_cases_stand_by_true_volume_and_a_miss_stands_at_0() -> None:
    miccai, _ = volume_charts([CHIASM], PHASES, TESTS)
    chart = str(miccai["chart"])
    true = dots(chart, "c0")
    assert len(true) == 3
    assert true == sorted(true, key=lambda at: (at[0], -at[1]))
    pretrained, mixed = (dots(chart, p["style"]) for p in miccai["phases"])
    (x1, y1), (x2, y2), (x3, y3) = pretrained  # z, m, a
    zero = max(float(y) for y in re.findall(r'class="grid".*? y1="([\d.]+)"', chart))
    assert y2 == zero
    assert (y1 - zero) / (true[0][1] - zero) == pytest.approx(2.0, abs=0.01)
    assert (y3 - zero) / (true[2][1] - zero) == pytest.approx(1.5, abs=0.01)
    assert [y for _, y in mixed] == [true[0][1], true[2][1]]  # without m, the others stay in place
    step = true[1][0] - true[0][0]
    assert [x - t for (x, _), (t, _) in zip(pretrained, true, strict=True)] == pytest.approx(
        [-0.09 * step] * 3, abs=0.11
    )
    assert mixed[1][0] - true[2][0] == pytest.approx(0.09 * step, abs=0.11)
    assert chart.count('class="line') == 1  # the truth; a prediction is dots alone
    assert x1 < x2 < x3


def test_no_case_is_named() -> None:
    tests: Tests = {("s", "p"): {CHIASM: {"canary-7": (0.5, 0.4), "canary-2": (0.3, 0.4)}}}
    assert "canary" not in str(volume_charts([CHIASM], ["p"], tests))


def test_one_case_stands_in_the_middle() -> None:
    _, nyu = volume_charts([CHIASM], PHASES, TESTS)
    ((true, _),) = dots(str(nyu["chart"]), "c0")
    sides = [dots(str(nyu["chart"]), p["style"])[0][0] - true for p in nyu["phases"]]
    assert sides[0] == pytest.approx(-sides[1], abs=0.11)
    assert 0 < sides[1] < 60


def test_what_is_no_volume_is_left_out() -> None:
    nan, inf = float("nan"), float("inf")
    wrong = {"a": (nan, 1.0), "b": (1.0, nan), "c": (0.0, 1.0), "d": (inf, 1.0), "e": (1.0, -1.0)}
    assert volume_charts([CHIASM], ["p"], {("s", "p"): {CHIASM: wrong}}) == []
    (entry,) = volume_charts([CHIASM], ["p"], {("s", "p"): {CHIASM: wrong | {"f": (1.0, 2.0)}}})
    assert (entry["phases"][0]["n"], entry["phases"][0]["ratio"]) == (1, 2.0)


def test_tests_without_volumes_are_named() -> None:
    scored = {("s", "p"): {CHIASM}, ("s", "q"): {CHIASM}, ("s", "r"): {"X"}}
    (sentence,) = without_volumes([CHIASM], {("s", "q"): {CHIASM: {"c": (1.0, 1.0)}}}, scored)
    assert sentence.startswith("s/p/cases.csv has no volumes")
    assert without_volumes([], {}, scored) == []
