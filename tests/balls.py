"""A tiny archive on disk: bodies with two bright balls, in PDDCA's layout."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from core.archives.images.volume import write_image, write_mask
from core.data.geometry import Geometry

BALLS = {"Brainstem": ((26, 24, 24), 5.0, 150.0), "Parotid_L": ((20, 22, 32), 4.0, 260.0)}
SPLITS = ("train", "train", "train", "val", "test", "test")


def write_case(folder: Path, seed: int, organs: tuple[str, ...] = tuple(BALLS)) -> None:
    """A cylinder of soft tissue in air; the balls are moved and scaled by the seed."""
    rng = np.random.default_rng(seed)
    size = (40, 48, 48)
    geometry = Geometry(size, (4.0, 4.0, 4.0), (10.0 * seed, -90.0, 5.0))
    z, y, x = np.indices(size)
    body = np.hypot((y - 24) / 16.0, (x - 24) / 18.0) < 1
    image = np.where(body, 20.0, -1000.0) + rng.normal(0, 10, size)
    for organ, (centre, radius, hu) in BALLS.items():
        middle = np.array(centre) + rng.uniform(-2, 2, 3)
        radius *= rng.uniform(0.9, 1.1)
        mask = (z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2 < radius**2
        image[mask] = hu
        if organ in organs:
            write_mask(folder / "structures" / f"{organ}.nrrd", mask, geometry)
    write_image(folder / "img.nrrd", image.astype(np.int16), geometry)


@pytest.fixture(scope="session")
def ball_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases of two sites; case c1 annotates the brainstem only. Do not write into it."""
    root = tmp_path_factory.mktemp("balls")
    with (root / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "split", "site"])
        for i, split in enumerate(SPLITS):
            write_case(root / f"c{i}", i, ("Brainstem",) if i == 1 else tuple(BALLS))
            writer.writerow([f"c{i}", split, "north" if i % 2 else "south"])
    return root
