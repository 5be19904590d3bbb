from __future__ import annotations

import pytest

from core.metrics.scores import SUPPRESSED, OrganSum, pool_sites
from hnfed.compare.runs import _pooled

SUMS = {
    "x": {"A": OrganSum(4, 3, 2.3, 6.0, 106.0)},
    "y": {"A": OrganSum(4, 4, 2.0, 16.0, 16.0)},
    "z": {"A": OrganSum(1, 1, 0.1, 9.0, 9.0)},
}


def test_published_cells_pool_like_the_sums_behind_them() -> None:
    cells = {s: pool_sites({s: sums}, ["A"], 3)["organs"] for s, sums in SUMS.items()}
    assert cells["z"]["A"] == SUPPRESSED
    exact = pool_sites(SUMS, ["A"], 3)
    assert _pooled(cells, ["A"])["organs"]["A"] == pytest.approx(exact["organs"]["A"])
    assert _pooled({"z": cells["z"]}, ["A"])["organs"]["A"] == SUPPRESSED


def test_misses_that_one_site_does_not_publish_are_of_no_pool() -> None:
    cells = {s: pool_sites({s: sums}, ["A"], 4)["organs"] for s, sums in SUMS.items()}
    assert cells["x"]["A"]["missed"] is None
    pooled = _pooled(cells, ["A"])
    assert (pooled["n"], pooled["missed"], pooled["hd95_mm"]) == (8, None, None)
    assert pooled["dice"] == pytest.approx(4.3 / 8)
