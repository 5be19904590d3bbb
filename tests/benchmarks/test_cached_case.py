"""A cached case beside MONAI's: seconds and bytes of each user, and another image ends it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from benchmarks import cached_case
from benchmarks.cached_case import label_map, rows

CROP, CT = (12, 18, 24), (20, 48, 64)
USERS = ("the same tensors", "one label map", "cropped last")


def test_every_user_has_seconds_and_bytes() -> None:
    found = {r["name"]: r for r in rows(CROP, CT, 1)}
    assert list(found) == [
        name
        for user in USERS
        for name in (f"cached case 12x18x24 against {user}", f"its bytes against {user}")
    ]
    assert all(r["ratio"] > 0 for r in found.values())
    voxels = 12 * 18 * 24
    mine, *theirs = [found[f"its bytes against {user}"] for user in USERS]
    assert mine["value"] * 1e6 > 2 * voxels  # an image of two bytes a voxel
    bytes_ = [r["ratio"] * r["value"] * 1e6 for r in (mine, *theirs)]
    assert bytes_[0] > (4 + 9) * voxels
    assert (4 + 4) * voxels < bytes_[1] < bytes_[0]
    assert bytes_[2] > (4 + 4) * 20 * 48 * 64  # the whole CT


def test_another_image_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(crop: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        whole = torch.zeros((1, *size))
        whole[:, : crop.shape[1], : crop.shape[2], 1 : crop.shape[3]] = crop[..., 1:]
        return whole

    monkeypatch.setattr(cached_case, "in_a_ct", shifted)
    with pytest.raises(AssertionError, match="image"):
        rows(CROP, CT, 1)


def test_a_voxel_is_of_the_organ_with_the_largest_share() -> None:
    shares = torch.tensor([[0, 255, 100, 60], [0, 0, 155, 70]], dtype=torch.uint8)
    assert label_map(shares.reshape(2, 1, 1, 4)).flatten().tolist() == [0.0, 1.0, 2.0, 0.0]
