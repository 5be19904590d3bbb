"""Contours to voxels and back: analytic shapes, real organs, DICOM studies with known truth, time.

python -m benchmarks.rtstruct [--archive DIR] [--studies DIR] [--json FILE]

`--archive` is any archive with contours; its masks go to RTSTRUCT and back, and plastimatch, where
it is installed, reads the same files. `--studies` holds ``archive``, ``truth``, ``expected.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from benchmarks.contour_shapes import KINDS, random_shape
from benchmarks.dicom_example import Series
from benchmarks.measure import AtMost, report, row, seconds
from core.archives.archive import open_archive, read_case
from core.archives.dicom.contour_raster import rasterise
from core.archives.dicom.rtstruct import draw
from core.archives.formats import dicom
from core.archives.images.volume import read_image
from core.data.geometry import Geometry
from core.metrics.scores import dice
from core.organs.vocabulary import BUILT_IN, resolve, vocabulary
from hnfed.predict.dicom_references import read_headers
from hnfed.predict.rtstruct_write import Drawn, write_rtstruct

SHAPES, SEED, SMALLEST_PX = 200, 0, 3.0
Rows = list[dict[str, Any]]


def shapes() -> Rows:
    """200 shapes of 2 to 30 mm on grids of their own, oblique and reversed ones among them."""
    rng = np.random.default_rng(SEED)
    scores, biases, lost = [], [], 0
    for i in range(SHAPES):
        shape = random_shape(rng, KINDS[i % len(KINDS)])
        drawn = rasterise(shape.contours, shape.geometry)
        scores.append(dice(drawn.mask, shape.voxels))
        volume = drawn.mask.sum() * shape.geometry.voxel_ml() * 1000
        if shape.radius_px >= SMALLEST_PX:
            biases.append(volume / shape.volume_mm3 - 1)
        held = set(np.flatnonzero(drawn.mask.any(axis=(1, 2))).tolist())
        lost += len(set(np.flatnonzero(shape.voxels.any(axis=(1, 2))).tolist()) - held)
        lost += drawn.tilted + drawn.outside + drawn.between
    bias, against = abs(float(np.mean(biases))), f"{len(biases)} shapes of r >= 3 px"
    return [
        row("shapes: lowest Dice", min(scores), "", f"{SHAPES} shapes", min(scores), 0.97),
        row("shapes: mean volume bias", bias, "", against, bias, AtMost(0.02)),
        row("shapes: slices lost", lost, "", f"{SHAPES} shapes", lost, AtMost(0)),
    ]


def round_trip(root: Path) -> Rows:
    """Every organ of an archive to RTSTRUCT and back; volumes beside plastimatch's."""
    archive = open_archive(root)
    lowest, count, volumes = 1.0, 0, []
    for ref in archive.cases:
        volume, _ = read_case(archive, ref, tuple(BUILT_IN))
        if not volume.masks:
            continue
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            image = np.clip(volume.image, -1024, 3071).astype(np.int16)
            Series(image, volume.geometry).write(place / "ct")
            files = sorted((place / "ct").iterdir())
            _, geometry = dicom.read_ct(tuple(files))
            drawn = [Drawn(o, m, BUILT_IN[o].colour) for o, m in volume.masks.items()]
            path = place / "RS.dcm"
            write_rtstruct(path, drawn, geometry, read_headers(files, geometry), "benchmark")
            theirs = _plastimatch(path, place / "ct", place / "out")
            for one in drawn:
                mask, _ = draw(path, one.name, geometry)
                lowest, count = min(lowest, dice(mask, one.mask)), count + 1
                if one.name in theirs:
                    volumes.append(abs(theirs[one.name] / mask.sum() - 1))
    rows = [row("round trip: lowest Dice", lowest, "", f"{count} organs", lowest, 0.99)]
    if volumes:
        worst = float(max(volumes))
        against = f"plastimatch, {len(volumes)} organs; mean {np.mean(volumes):.4f}"
        rows.append(
            row("round trip: largest volume difference", worst, "", against, worst, AtMost(0.03))
        )
    else:
        print("plastimatch is not installed: volumes not compared (pip install plastimatch)")
    return rows


def _plastimatch(path: Path, ct: Path, out: Path) -> Mapping[str, float]:
    """Voxels by organ as plastimatch draws the same file; {} where it is not installed."""
    program = shutil.which("plastimatch")
    if program is None:
        return {}
    subprocess.run(
        [program, "convert", "--input", path, "--referenced-ct", ct, "--output-prefix", out,
         "--prefix-format", "nrrd"], check=True, capture_output=True,
    )  # fmt: skip
    return {p.stem: float((read_image(p)[0] > 0).sum()) for p in out.glob("*.nrrd")}


def studies(root: Path) -> Rows:
    """DICOM studies beside the CT and the masks that a reader should find in them."""
    expected = json.loads((root / "expected.json").read_text())["studies"]
    archive = open_archive(root / "archive")
    equal, mapped, scores = 0, 0, []
    for name, told in expected.items():
        (ref,) = [r for r in archive.cases if r.case == Path(told["folder"]).name]
        wanted = {resolve(o, vocabulary()): roi for roi, o in told["roi_map"].items()}
        mapped += dict(ref.names) == wanted
        volume, _ = read_case(archive, ref, tuple(ref.structures))
        truth = root / "truth" / name
        image, geometry = read_image(truth / "img.nrrd")
        same = np.array_equal(image, volume.image) and geometry.close_to(volume.geometry)
        equal += same
        for path in (truth / "structures").glob("*.nrrd"):
            organ = resolve(path.stem, vocabulary())
            empty = np.zeros(geometry.size, dtype=bool)
            scores.append(dice(volume.masks.get(organ or "", empty), read_image(path)[0] > 0))
    total = len(expected)
    return [
        row("studies: CT equal voxel for voxel", equal, "", f"{total} studies", equal / total, 1),
        row("studies: names mapped as expected", mapped, "", f"{total} studies", mapped / total, 1),
        row("studies: lowest Dice", min(scores), "", f"{len(scores)} organs", min(scores), 1),
    ]


def speed(repeats: int = 3) -> Rows:
    """CT of 512 x 512 x 140 with nine organs, against GDCM reading the pixels of the same files."""
    size = (140, 512, 512)
    geometry = Geometry(size, (2.5, 0.9, 0.9), (-230.0, -230.0, 0.0))
    rng = np.random.default_rng(SEED)
    image: npt.NDArray[np.int16] = rng.integers(-1000, 1500, size).astype(np.int16)
    z, y, x = np.ogrid[:140, :512, :512]
    names = list(BUILT_IN)[:9]
    drawn = []
    for i, name in enumerate(names):
        far = ((z - 40 - 6 * i) / 12) ** 2 + ((y - 250) / 40) ** 2 + ((x - 120 - 30 * i) / 25) ** 2
        drawn.append(Drawn(name, np.asarray(far < 1), (1, 2, 3)))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        Series(image, geometry, name=lambda z: f"{z:03d}.dcm").write(place / "ct")
        files = tuple(sorted((place / "ct").iterdir()))
        headers = read_headers(files, geometry)
        write_rtstruct(place / "ct" / "RS.dcm", drawn, geometry, headers, "benchmark")

        def ours() -> None:
            archive = open_archive(place / "ct", format="dicom")
            volume, _ = read_case(archive, archive.cases[0], names)
            assert len(volume.masks) == len(names)

        series_reader: Any = sitk.ImageSeriesReader

        def pixels() -> None:
            reader = series_reader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileNames([str(path) for path in files])
            reader.Execute()

        took = seconds({"ours": ours, "gdcm": pixels}, repeats)
    ratio = took["ours"] / took["gdcm"]
    against = f"GDCM, pixels alone: {took['gdcm']:.2f} s"
    return [row("read CT and nine organs", took["ours"], "s", against, ratio, AtMost(3))]


def main() -> int:
    """Prints the rows; 1 where a target is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--studies", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = shapes() + speed()
    if options.studies:
        rows += studies(options.studies)
    if options.archive:
        rows += round_trip(options.archive)
    return report(rows, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
