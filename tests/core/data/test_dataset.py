from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils.data import DataLoader

from core.data.cached_case import Entry
from core.data.dataset import CropDataset, load_label, mirror, scale_image
from core.data.geometry import Geometry
from core.errors import UserError
from core.plan.schema import Augment

ORGANS = ("Brainstem", "Parotid_L", "Parotid_R")
WINDOW = (-200.0, 300.0)


def entry(folder: Path, case: int) -> Entry:
    """A prepared case with a small organ inside a large one, whose border voxels it shares."""
    folder = folder / str(case)
    folder.mkdir()
    image = np.random.default_rng(case).integers(-200, 301, (8, 10, 12)).astype(np.int16)
    large, small = drawn(case)
    boxes = {"Brainstem": [[2, 6], [2, 8], [2, 8]], "Parotid_R": [[3, 5], [3, 5], [3, 6]]}
    table = {o: {"first": first, "box": boxes[o]} for o, first in zip(boxes, (0, 144), strict=True)}
    flat = [large[2:6, 2:8, 2:8].ravel(), small[3:5, 3:5, 3:6].ravel()]
    np.save(folder / "image.npy", image)
    np.save(folder / "shares.npy", np.concatenate(flat))
    (folder / "entry.json").write_text(json.dumps({"shares": table}))
    grid = Geometry(image.shape, (3.0, 2.0, 2.0))
    voxels = {"Brainstem": 144, "Parotid_R": round(small.sum() / 255)}
    known = frozenset(voxels)
    return Entry(str(case), "train", folder, ORGANS, known, grid, grid, voxels, image.size, 0)


def drawn(case: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Shares of Brainstem and Parotid_R, as drawn."""
    large, small = np.zeros((2, 8, 10, 12), dtype=np.uint8)
    large[2:6, 2:8, 2:8] = 255
    large[2, 2:8, 2:8] = 100
    small[3:5, 3:5, 3 : 5 + case % 2] = 255
    small[3:5, 3:5, 5] = 90
    return large, small


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    return [entry(tmp_path, case) for case in range(5)]


def test_a_sample_without_augmentation_is_the_cached_case(entries: list[Entry]) -> None:
    dataset = CropDataset(entries, ("Parotid_R", "Brainstem", "Parotid_L"), None, WINDOW, 3, 1)
    assert len(dataset) == 5
    assert sorted(dataset.order) == list(range(5))
    for position, case in enumerate(dataset.order):
        sample = dataset[position]
        assert set(sample) == {"image", "label", "annotated"}
        hu = np.array(entries[case].image(), dtype=float)
        np.testing.assert_allclose(sample["image"].numpy()[0], (hu + 200) / 250 - 1, atol=1e-6)
        large, small = drawn(case)
        expected = [small, np.minimum(large, 255 - small), np.zeros_like(small)]
        np.testing.assert_array_equal(sample["label"].numpy(), np.stack(expected))
        assert sample["image"].dtype == torch.float32
        assert sample["label"].dtype == torch.uint8
        assert sample["annotated"].tolist() == [True, True, False]


def test_mirroring_exchanges_sides_and_keeps_what_is_annotated_together_with_its_organ() -> None:
    organs = ("Parotid_L", "Brainstem", "Parotid_R", "OpticNrv_L")
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    label = torch.randint(0, 64, (4, 2, 3, 4), generator=torch.Generator().manual_seed(0)).byte()
    known = torch.tensor([True, True, False, True])
    moved, other, told = mirror(image, label, known, organs)
    assert torch.equal(moved, image.flip(-1))
    for before, after in ((0, 2), (1, 1), (2, 0)):
        assert torch.equal(other[after], label[before].flip(-1))
    assert not other[3].any()  # an optic nerve has no partner here
    assert told.tolist() == [False, True, True, False]
    back = mirror(moved, other, told, organs)
    assert torch.equal(back[0], image)
    assert torch.equal(back[1][:3], label[:3])


def test_the_share_of_mirrored_samples_is_that_of_the_plan(entries: list[Entry]) -> None:
    still = Augment(probability=0.0, intensity_probability=0.0, mirror=0.3)
    count = 0
    for epoch in range(60):
        plain = CropDataset(entries, ORGANS, None, WINDOW, 3, epoch)
        drawn = CropDataset(entries, ORGANS, still, WINDOW, 3, epoch)
        for i in range(len(entries)):
            same = torch.equal(plain[i]["image"], drawn[i]["image"])
            count += not same
            turned = torch.equal(plain[i]["image"].flip(-1), drawn[i]["image"])
            assert same or turned
    assert 0.2 < count / 300 < 0.4


def test_the_window_is_mapped_to_one() -> None:
    scaled = scale_image(np.array([[[-200, 50, 300, 400, -900]]], dtype=np.int16), WINDOW)
    assert scaled.shape == (1, 1, 1, 5)
    assert scaled.flatten().tolist() == [-1.0, 0.0, 1.0, 1.0, -1.0]


def test_overlaps_go_to_the_smaller_organ_of_the_plan(entries: list[Entry]) -> None:
    """Two organs may share a voxel, and never have more than all of it (D16)."""
    label = load_label(entries[0], ORGANS)
    large, small = drawn(0)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label[2], small)
    np.testing.assert_array_equal(label[0], large - np.minimum(large, small))
    assert ((label[0] == 165) & (label[2] == 90)).sum() == 4
    assert label.sum(axis=0).max() == 255
    assert not label[1].any()
    cut_short = replace(entries[0], voxels={"Brainstem": 1, "Parotid_R": 2})
    assert np.array_equal(load_label(cut_short, ORGANS), label)
    assert np.array_equal(load_label(entries[0], ("Parotid_R", "Brainstem")), label[[2, 0]])
    assert np.array_equal(load_label(entries[0], ("Brainstem",))[0], large)


def test_order_and_augmentation_follow_seed_and_epoch(entries: list[Entry]) -> None:
    def images(seed: int, epoch: int) -> list[torch.Tensor]:
        dataset = CropDataset(entries, ORGANS, Augment(probability=1.0), WINDOW, seed, epoch)
        return [dataset[i]["image"] for i in range(5)]

    first, again = images(1, 2), images(1, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for seed, epoch in ((1, 3), (2, 2)):
        other = images(seed, epoch)
        assert not any(torch.equal(a, b) for a in first for b in other)
    orders = {CropDataset(entries, ORGANS, None, WINDOW, 1, epoch).order for epoch in range(8)}
    assert len(orders) > 4
    dataset = CropDataset(entries, ORGANS, None, WINDOW, 1, 0)
    seeds = set()
    for epoch in range(4):
        dataset.set_epoch(epoch)
        assert dataset.order == CropDataset(entries, ORGANS, None, WINDOW, 1, epoch).order
        seeds |= {dataset.sample_seed(case) for case in range(5)}
    assert len(seeds) == 20
    assert CropDataset(entries, ORGANS, None, WINDOW, -7, 0).order


def test_augmentation_can_be_switched_off(entries: list[Entry]) -> None:
    off = CropDataset(entries, ORGANS, Augment(enabled=False), WINDOW, 1, 0)
    none = CropDataset(entries, ORGANS, None, WINDOW, 1, 0)
    on = CropDataset(entries, ORGANS, Augment(probability=1.0), WINDOW, 1, 0)
    assert torch.equal(off[0]["image"], none[0]["image"])
    assert not torch.equal(on[0]["image"], none[0]["image"])


def test_it_feeds_a_loader(entries: list[Entry]) -> None:
    loader = DataLoader(CropDataset(entries, ORGANS, Augment(), WINDOW, 1, 0), batch_size=2)
    batches = list(loader)
    assert [len(b["image"]) for b in batches] == [2, 2, 1]
    assert batches[0]["image"].shape == (2, 1, 8, 10, 12)
    assert batches[0]["annotated"].shape == (2, 3)


def test_organs_that_are_not_prepared_are_said(entries: list[Entry]) -> None:
    with pytest.raises(UserError, match="Larynx"):
        CropDataset(entries, ("Brainstem", "Larynx"), None, WINDOW, 1, 0)
