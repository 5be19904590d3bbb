"""A picture of a predicted RTSTRUCT over its CT: a phantom, written as DICOM, contoured by a run.

python -m benchmarks.picture runs/demo ARCHIVE --case CASE --out docs/rtstruct.png
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dicom_example import Series
from core.archives.archive import open_archive, read_case
from core.archives.dicom.rtstruct import read_structure_set
from core.archives.formats import dicom
from core.data.geometry import Geometry
from core.organs.volumes import VOLUME_ML

WINDOW = (-160.0, 240.0)


def draw(run: Path, archive: Path, case: str, phase: str, out: Path) -> None:
    """Contours one case of an archive by way of DICOM, and draws what a viewer would show.

    Args:
        run: run folder with a model.
        archive: any archive; the case's CT is written as DICOM into a temporary folder.
        case: id of the case.
        phase: whose model.
        out: PNG file.
    """
    from matplotlib.figure import Figure

    found = open_archive(archive)
    ref = next(r for r in found.cases if r.case == case)
    volume, _ = read_case(found, ref, tuple(VOLUME_ML))
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        Series(volume.image.astype(np.int16), volume.geometry).write(place / "ct" / "phantom")
        told = ["--model", str(run), "--phase", phase, "--format", "rtstruct"]
        command = [sys.executable, "-P", "-m", "hnfed.cli.main", "predict"]
        where = ["-i", str(place / "ct"), "-o", str(place / "out")]
        subprocess.run([*command, *where, *told], check=True)
        image, geometry = dicom.read_ct(tuple(sorted((place / "ct" / "phantom").iterdir())))
        structures = read_structure_set(place / "out" / "phantom" / "RS.dcm")
    contours = {
        roi.name: [_index(text, geometry) for text in roi.contours] for roi in structures.rois
    }
    figure: Any = Figure(figsize=(9, 5.0), facecolor="#14171c", layout="constrained")
    for axes, organs in zip(figure.subplots(1, 2), _two_levels(contours), strict=True):
        level, names = organs
        _, dy, dx = geometry.spacing_mm
        axes.imshow(image[level], cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], aspect=dy / dx)
        for name in names:
            colour = _colour(name)
            lines = [c for c in contours[name] if round(c[0, 2]) == level]
            for i, line in enumerate(lines):
                closed = np.vstack([line, line[:1]])
                label = name if i == 0 else None
                axes.plot(closed[:, 0], closed[:, 1], color=colour, linewidth=1.4, label=label)
        z = geometry.origin_mm[2] + level * geometry.spacing_mm[0]
        axes.set_title(f"z = {z:.0f} mm", color="white", fontsize=9)
        axes.legend(fontsize=7, loc="lower left", framealpha=0.7)
        axes.set_axis_off()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _index(text: bytes, geometry: Geometry) -> Any:
    points = np.array(text.split(b"\\"), dtype="S").astype(float).reshape(-1, 3)
    return (points - np.array(geometry.origin_mm)) / np.array(geometry.spacing_mm[::-1])


def _two_levels(contours: dict[str, list[Any]]) -> list[tuple[int, list[str]]]:
    """The two slices, some way apart, that show most organs."""
    held: dict[int, set[str]] = {}
    for name, lines in contours.items():
        for line in lines:
            held.setdefault(round(line[0, 2]), set()).add(name)
    best = max(held, key=lambda level: len(held[level]))
    far = [level for level in held if held[level] - held[best]] or list(held)
    other = max(far, key=lambda level: (len(held[level] - held[best]), len(held[level])))
    return [(level, sorted(held[level])) for level in sorted({best, other}, reverse=True)]


def _colour(name: str) -> tuple[float, ...]:
    from core.organs.vocabulary import BUILT_IN

    return tuple(value / 255 for value in BUILT_IN[name].colour)


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--case", required=True)
    parser.add_argument("--phase", default="pretrain")
    parser.add_argument("--out", type=Path, default=Path("docs/rtstruct.png"))
    options = parser.parse_args()
    draw(options.run, options.archive, options.case, options.phase, options.out)


if __name__ == "__main__":
    main()
