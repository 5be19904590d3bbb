"""Both ways to contour a whole CT see all of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from benchmarks.inference import Case, rows, slid, untrained, whole
from core.data.geometry import Geometry
from core.data.grid import affine, outer_corners
from core.plan.schema import Preprocess

CT = Geometry((30, 50, 44), (2.5, 1.5, 1.5), (-20.0, 13.0, -400.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))


class Bright(nn.Module):
    """Organ 1 where the image is bright, whatever the window."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of background and one organ."""
        return torch.cat((-9 * x, 9 * x), dim=1)


def test_the_grid_of_the_sliding_window_holds_the_whole_ct() -> None:
    grid = whole(CT, (3.0, 2.0, 2.0))
    ends = []
    for geometry in (CT, grid):
        matrix, origin = affine(geometry)
        points = outer_corners(geometry) @ matrix.T + origin
        ends.append((points.min(0), points.max(0)))
    assert (ends[1][0] <= ends[0][0] + 1e-6).all()
    assert (ends[1][1] >= ends[0][1] - 1e-6).all()
    assert np.prod(grid.size) < 1.2 * 30 * 50 * 44 * (2.5 * 1.5 * 1.5) / (3.0 * 2.0 * 2.0)


def test_the_sliding_window_draws_on_the_cts_own_grid() -> None:
    image = np.full(CT.size, -800.0, np.float32)
    image[4:20, 8:40, 3:30] = 250.0
    settings = Preprocess([2.5, 1.5, 1.5], [16, 16, 16], [-200.0, 300.0])
    drawn = slid(Bright().eval(), settings, Case(image, CT, {}))
    assert np.array_equal(drawn, image > 0)


def test_a_ct_has_seconds_of_both_and_their_dice() -> None:
    models, metas = untrained(small=True, amp="off")
    rng = np.random.default_rng(0)
    image = rng.normal(-900, 20, CT.size)
    image[3:27, 10:40, 8:36] += 950
    mask = np.zeros(CT.size, bool)
    mask[10:14, 20:26, 15:22] = True
    found = rows(models, metas, iter([Case(image, CT, {"Brainstem": mask})]))
    assert found[0]["value"] > 0
    assert found[0]["ratio"] > 0
    assert {row["unit"] for row in found} <= {"CPU s", ""}
