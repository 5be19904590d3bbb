from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
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
    """A prepared case with a small organ inside a large one."""
    folder = folder / str(case)
    folder.mkdir()
    image = np.random.default_rng(case).integers(-200, 301, (8, 10, 12)).astype(np.int16)
    bits = np.zeros(image.shape, dtype=np.uint32)
    bits[2:6, 2:8, 2:8] |= 1
    bits[3:5, 3:5, 3 : 5 + case % 2] |= 4
    np.save(folder / "image.npy", image)
    np.save(folder / "bits.npy", bits)
    grid = Geometry(image.shape, (3.0, 2.0, 2.0))
    voxels = {"Brainstem": int((bits & 1 > 0).sum()), "Parotid_R": int((bits & 4 > 0).sum())}
    return Entry(
        str(case), "train", folder, ORGANS, frozenset(voxels), grid, grid, voxels, bits.size, 0
    )


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
        bits = entries[case].bits()
        expected = np.where(bits & 4, 1, np.where(bits & 1, 2, 0))
        np.testing.assert_array_equal(sample["label"].numpy(), expected)
        assert sample["image"].dtype == torch.float32
        assert sample["label"].dtype == torch.uint8
        assert sample["annotated"].tolist() == [True, True, False]


def test_mirroring_exchanges_sides_and_keeps_what_is_annotated_together_with_its_organ() -> None:
    organs = ("Parotid_L", "Brainstem", "Parotid_R", "OpticNrv_L")
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    label = torch.randint(0, 5, (2, 3, 4), generator=torch.Generator().manual_seed(0)).byte()
    known = torch.tensor([True, True, False, True])
    moved, other, told = mirror(image, label, known, organs)
    assert torch.equal(moved, image.flip(-1))
    for before, after in ((0, 0), (1, 3), (2, 2), (3, 1)):
        assert torch.equal(
            other.flip(-1)[label == before],
            label.new_full((), after).expand((label == before).sum()),
        )
    assert not (other == 4).any()  # an optic nerve has no partner here
    assert (other.flip(-1)[label == 4] == 0).all()
    assert told.tolist() == [False, True, True, False]
    back = mirror(moved, other, told, organs)
    assert torch.equal(back[0], image)
    assert torch.equal(back[1], torch.where(label == 4, 0, label))


def test_the_share_of_mirrored_samples_is_that_of_the_plan(entries: list[Entry]) -> None:
    still = Augment(probability=0.0, mirror=0.3)
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
    label, overlaps = load_label(entries[0], ORGANS)
    assert overlaps == 8
    assert (label == 3).sum() == 8
    cut_short = replace(entries[0], voxels={"Brainstem": 1, "Parotid_R": 2})
    assert np.array_equal(load_label(cut_short, ORGANS)[0], label)


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
