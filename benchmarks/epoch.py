"""What a second training epoch costs a case, and what it opens: the cache and nothing else.

python -m benchmarks.epoch [--json FILE]

A body of 512 x 512 x 140 voxels with nine organs, prepared with the default preprocessing; an
epoch is read as training reads it, without augmentation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from benchmarks.measure import AtMost, report, row
from core.archives.archive import open_archive
from core.archives.cache_build import Cache, build_cache
from core.archives.images.volume import write_image, write_mask
from core.data.cache import Recipe
from core.data.dataset import CropDataset
from core.data.geometry import Geometry
from core.organs.vocabulary import NINE
from core.plan.schema import Preprocess

SIZE = (140, 512, 512)
CASES, LIMIT_MS = 2, 50.0


def write_case(folder: Path, seed: int) -> None:
    """A cylinder in air with nine balls in places where those organs may be."""
    geometry = Geometry(SIZE, (2.5, 0.8, 0.8))
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[:140, :512, :512]
    body = ((y - 256) / 120) ** 2 + ((x - 256) / 100) ** 2 + 0 * z < 1
    image = np.where(body, 30, -1000) + rng.integers(-15, 15, SIZE)
    image[:, 250:262, 200:312] = 1200
    write_image(folder / "img.nrrd", image.astype(np.int16), geometry)
    for i, organ in enumerate(NINE):
        side = {"L": 45, "R": -45}.get(organ[-1], 0) if "_" in organ else 0
        height, depth = 100 - 4 * i, 220 + 6 * i
        far = ((z - height) * 2.5) ** 2 + ((y - depth) * 0.8) ** 2 + ((x - 256 - side) * 0.8) ** 2
        write_mask(folder / "structures" / f"{organ}.nrrd", np.asarray(far < 9.0**2), geometry)


def measure() -> list[dict[str, Any]]:
    """Prepares two cases; reads two epochs; watches what the second one opens."""
    opened: list[str] = []
    watching = False

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | bytes):
            opened.append(str(arguments[0]))

    sys.addaudithook(audit)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for i in range(CASES):
            write_case(root / "archive" / f"c{i}", i)
        archive = open_archive(root / "archive")
        settings = Preprocess()
        splits = {ref.case: "train" for ref in archive.cases}
        report = build_cache(archive, splits, Cache(root / "cache"), Recipe(NINE, settings), jobs=1)
        assert len(report.entries) == CASES, report.findings
        data = CropDataset(report.entries, NINE, None, settings.window_hu, seed=0)
        times = []
        for epoch in range(4):
            data.set_epoch(epoch)
            watching = epoch > 0
            start = time.perf_counter()
            for _ in DataLoader(data, batch_size=1):
                pass
            times.append((time.perf_counter() - start) / CASES * 1000)
        watching = False
        inside = str(root / "cache")
        elsewhere = [path for path in opened if str(root) in path and not path.startswith(inside)]
    best, outside = min(times[1:]), len(elsewhere)
    return [
        row(
            "second epoch, a case", best, "ms", "512 x 512 x 140, 9 organs", best, AtMost(LIMIT_MS)
        ),
        row(
            "files opened outside the cache",
            outside,
            "",
            f"{len(opened)} opened",
            outside,
            AtMost(0),
        ),
    ]


def main() -> int:
    """Prints the rows; 1 where a target is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure()
    return report(rows, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
