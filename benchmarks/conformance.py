"""Reads the public conformance test for readers of RTSTRUCT, and holds our masks to its limits.

python -m benchmarks.conformance FOLDER [--json FILE]

FOLDER is what ``rtmask-conformance generate FOLDER`` of RTMaskConformanceTest writes (B. Anderson,
https://github.com/brianmanderson/RTMaskConformanceTest, Apache-2.0; the author's DicomRTTool is
checked with it): a CT of 512 x 512 x 200 voxels, seven solids as contours, and masks computed from
their formulas, not by another reader. Nothing of it is part of this project. Its generator wants
`trimesh`, which is easily missed: without it, it samples the whole CT for each solid, in 9.5 GB.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.measure import AtMost, report, row
from core.archives.archive import open_archive, read_image_of
from core.archives.dicom.rtstruct import draw
from core.archives.images.volume import read_on_grid
from core.data.geometry import Geometry
from core.errors import UserError
from core.metrics.scores import outline, score_organ

Mask = npt.NDArray[np.bool_]
TOLERANCE_MM = 1.0  # of the surface Dice
MEASURES = ("dice", "surface_dice", "hd95_mm", "msd_mm", "volume")
AT_LEAST = ("dice", "surface_dice")  # the others: at most
# The test's own limits (its data/default_thresholds.yaml, schema 1), and those of its solids.
LIMITS = dict(zip(MEASURES, (0.95, 0.95, 2.0, 0.5, 0.03), strict=True))
LIMITS_OF: dict[str, dict[str, float]] = {
    "sphere": {"dice": 0.98, "hd95_mm": 1.5},
    "cube": {"dice": 0.99, "hd95_mm": 1.0},
    "cylinder": {"dice": 0.97, "hd95_mm": 1.5},
    "ellipsoid": {"dice": 0.97},
    "torus": {"dice": 0.93, "hd95_mm": 2.5, "surface_dice": 0.90},
    "hollow_sphere": {"dice": 0.92, "hd95_mm": 2.5, "volume": 0.05},
    "straw": {"dice": 0.92, "hd95_mm": 2.5, "volume": 0.05},
}


def measured(ours: Mask, truth: Mask, geometry: Geometry) -> dict[str, float]:
    """The five measures of the test, by the definitions of this project.

    Args:
        ours: (Z, Y, X); may be empty, whose distances are infinite.
        truth: (Z, Y, X), not empty.
        geometry: the CT's grid.
    """
    score, directed = score_organ("", "", outline(ours), truth, geometry.spacing_mm, np.inf)
    away = np.full(1, np.inf) if directed is None else np.concatenate(directed)
    near = float((away <= TOLERANCE_MM).mean())
    farthest = np.inf if score.hd95_mm is None else score.hd95_mm
    change = abs(score.predicted_ml / score.volume_ml - 1)
    values = score.dice, near, farthest, float(away.mean()), change
    return dict(zip(MEASURES, values, strict=True))


def compare(folder: Path) -> list[dict[str, Any]]:
    """One row for each solid and measure.

    Raises:
        UserError: the folder is not one of the test's.
    """
    told = _manifest(folder)
    archive = open_archive(folder, format="dicom")
    _, geometry = read_image_of(archive, archive.cases[0])
    rows = []
    for name in told["rois"]:
        ours, left_out = draw(folder / told["rtstruct_path"], name, geometry)
        path = folder / told["groundtruth_dir"] / f"{name}.nii.gz"
        values = measured(ours, read_on_grid(path, geometry) > 0, geometry)
        for measure, limit in (LIMITS | LIMITS_OF.get(name, {})).items():
            value = values[measure]
            bound = limit if measure in AT_LEAST else AtMost(limit)
            rows.append(row(f"{name}: {measure}", value, "", left_out, value, bound))
    return rows


def _manifest(folder: Path) -> dict[str, Any]:
    remedy = "give the folder that `rtmask-conformance generate FOLDER` wrote"
    try:
        told = json.loads((folder / "manifest.json").read_text("utf-8"))
        if {"rois", "rtstruct_path", "groundtruth_dir"} <= told.keys():
            return dict(told)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError("FOLDER", folder, remedy, problem=f"no manifest.json: {error}") from error
    raise UserError("FOLDER", folder, remedy, problem="its manifest.json names no solids")


def main() -> int:
    """Prints the rows; 1 where a limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        rows = compare(options.folder)
    except UserError as error:
        parser.error(str(error))
    return report(rows, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
