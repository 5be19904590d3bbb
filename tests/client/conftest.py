"""A tiny institution on disk: a cylinder in air with two bright balls, in PDDCA's layout."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.site import Site, Source
from core.data.volume import Geometry, write_image, write_mask
from core.plan import Augment, Federation, Model, Phase, Plan, Preprocess, Train

BALLS = {"Brainstem": ((13, 12, 12), 3.0, 150.0), "Parotid_L": ((10, 11, 16), 2.5, 260.0)}
SPLITS = ("train", "train", "train", "val", "test")
PATIENT = "DOE_Jane_1950"


def write_case(folder: Path, seed: int, organs: tuple[str, ...]) -> None:
    rng = np.random.default_rng(seed)
    size = (20, 24, 24)
    geometry = Geometry(size, (8.0, 8.0, 8.0), (10.0 * seed, -90.0, 5.0))
    z, y, x = np.indices(size)
    body = np.hypot((y - 12) / 8.0, (x - 12) / 9.0) < 1
    image = np.where(body, 20.0, -1000.0) + rng.normal(0, 10, size)
    for organ, (centre, radius, hu) in BALLS.items():
        middle = np.array(centre) + rng.uniform(-1, 1, 3)
        mask = (z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2 < radius**2
        image[mask] = hu
        if organ in organs:
            write_mask(folder / "structures" / f"{organ}.nrrd", mask, geometry)
    write_image(folder / "img.nrrd", image.astype(np.int16), geometry)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five patients named after `PATIENT`; the second annotates the brainstem only. Read only."""
    root = tmp_path_factory.mktemp("archive")
    with (root / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "split"])
        for i, split in enumerate(SPLITS):
            organs = ("Brainstem",) if i == 1 else tuple(BALLS)
            write_case(root / f"{PATIENT}_{i}", i, organs)
            writer.writerow([f"{PATIENT}_{i}", split])
    return root


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def site(tmp_path: Path, archive: Path, shared_cache: Path) -> Site:
    """A site with a fresh state; the cache is shared, and filled once."""
    return Site(
        name="north",
        sources=(Source(root=str(archive)),),
        device="cpu",
        cache=shared_cache,
        run_folder=tmp_path / "state" / "run",
        base_folder=tmp_path / "state" / "base",
        secret=b"secret",
    )


@pytest.fixture
def prepared(site: Site, make_plan: Callable[..., Plan]) -> Site:
    site.prepare(make_plan())
    return site


def tiny_plan(*phases: Phase, **changes: Any) -> Plan:
    plan = Plan(
        preprocess=Preprocess(spacing_mm=[8.0, 8.0, 8.0], crop=[16, 16, 16]),
        augment=Augment(enabled=False),
        model=Model(channels=[4, 8]),
        train=Train(threads=1, deterministic=True, lr=0.01),
        federation=Federation(min_cell=1),
        phases=list(phases) or [tiny_phase()],
    )
    return replace(plan, **changes)


def tiny_phase(name: str = "p", **changes: Any) -> Phase:
    values = {"name": name, "sites": ["north"], "organs": list(BALLS), "rounds": 3}
    return Phase(**(values | changes))


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    return tiny_plan


@pytest.fixture(scope="session")
def make_phase() -> Callable[..., Phase]:
    return tiny_phase
