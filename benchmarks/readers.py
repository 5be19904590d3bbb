"""What other programs read from our RTSTRUCT: volume and Dice by organ and reader.

python -m benchmarks.readers --archive DIR [--cases N] [--venvs DIR] [--json FILE]

rt-utils, platipy, DicomRTTool and dcmrtstruct2nii are installed from the package index, each into a
virtual environment of its own below `--venvs`; plastimatch is taken where it is installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.dicom_example import Series
from benchmarks.measure import AtMost, report, row
from core.archives.archive import open_archive, read_case
from core.archives.dicom.rtstruct import draw
from core.archives.formats import dicom
from core.archives.images.volume import read_image
from core.metrics.scores import dice
from core.organs.vocabulary import BUILT_IN
from hnfed.predict.dicom_references import read_headers
from hnfed.predict.rtstruct_write import Drawn, write_rtstruct

LARGE_ML, VOLUME_SHARE, LEAST_DICE = 1.0, 0.01, 0.995
Mask = npt.NDArray[np.bool_]

# Each gets the CT's folder, the RTSTRUCT and a folder for NAME.npy, bool (Z, Y, X).
SCRIPTS = {
    "rt-utils": """
import sys, numpy as np
from rt_utils import RTStructBuilder
ct, rs, out = sys.argv[1:]
read = RTStructBuilder.create_from(dicom_series_path=ct, rt_struct_path=rs)
for name in read.get_roi_names():
    np.save(f"{out}/{name}.npy", read.get_roi_mask_by_name(name).transpose(2, 0, 1))
""",
    "platipy": """
import sys, numpy as np, pydicom, SimpleITK as sitk
from platipy.dicom.io.rtstruct_to_nifti import transform_point_set_from_dicom_struct as masks_of
ct, rs, out = sys.argv[1:]
image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(ct))
masks, names = masks_of(image, pydicom.dcmread(rs))
for mask, name in zip(masks, names):
    np.save(f"{out}/{name}.npy", sitk.GetArrayFromImage(mask) > 0)
""",
    "DicomRTTool": """
import shutil, sys, tempfile, numpy as np
from DicomRTTool.ReaderWriter import DicomReaderWriter
ct, rs, out = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    shutil.copytree(ct, folder + "/case")
    shutil.copy(rs, folder + "/case/RS.dcm")
    reader = DicomReaderWriter(arg_max=False, verbose=False)
    reader.walk_through_folders(folder, thread_count=1)
    for name in reader.return_rois(print_rois=False):
        reader.set_contour_names_and_associations(contour_names=[name])
        reader.set_index(reader.indexes_with_contours[0])
        reader.get_images_and_mask()
        real = next(n for n in open(out + "/names").read().split() if n.lower() == name.lower())
        np.save(f"{out}/{real}.npy", np.asarray(reader.mask)[..., 1] > 0)
""",
    "dcmrtstruct2nii": """
import glob, os, sys, numpy as np, SimpleITK as sitk
from dcmrtstruct2nii import dcmrtstruct2nii
ct, rs, out = sys.argv[1:]
dcmrtstruct2nii(rs, ct, out, convert_original_dicom=False)
for path in glob.glob(out + "/mask_*.nii.gz"):
    name = os.path.basename(path)[len("mask_"):-len(".nii.gz")]
    np.save(f"{out}/{name}.npy", sitk.GetArrayFromImage(sitk.ReadImage(path)) > 0)
""",
}
NEEDS = {"dcmrtstruct2nii": ["pydicom<3"]}  # beside the reader itself
# What a reader does that no outline can mend: (largest volume change, least Dice, why).
LIMITS = {"platipy": (0.08, 0.96, "fills between the pixels of the corners: loses thin bridges")}


def read_by(reader: str, program: Path, ct: Path, rs: Path) -> dict[str, Mask]:
    """What a reader makes of an RTSTRUCT.

    Args:
        reader: of `SCRIPTS`, or plastimatch.
        program: the Python that has it, or plastimatch itself.
        ct: folder of the CT alone.
        rs: the RTSTRUCT.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if reader == "plastimatch":
            command: list[str | Path] = [program, "convert", "--input", rs, "--referenced-ct", ct]
            command += ["--output-prefix", out, "--prefix-format", "nrrd"]
            subprocess.run(command, check=True, capture_output=True)
            return {p.stem: read_image(p)[0] > 0 for p in out.glob("*.nrrd")}
        (out / "names").write_text("\n".join(BUILT_IN))
        told = subprocess.run(
            [program, "-c", SCRIPTS[reader], ct, rs, out], capture_output=True, text=True
        )
        if told.returncode:
            raise SystemExit(f"{reader} failed:\n{told.stderr[-2000:]}")
        return {p.stem: np.load(p) for p in out.glob("*.npy")}


def readers(venvs: Path) -> dict[str, Path]:
    """The programs by reader; makes the environments that are not there yet."""
    found = {}
    for reader in SCRIPTS:
        python = venvs / reader / "bin" / "python"
        if not python.is_file():
            subprocess.run([sys.executable, "-m", "venv", venvs / reader], check=True)
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", reader, *NEEDS.get(reader, [])],
                check=True,
            )
        found[reader] = python
    plastimatch = shutil.which("plastimatch")
    if plastimatch is None:
        print("plastimatch is not installed: left out")
    else:
        found["plastimatch"] = Path(plastimatch)
    return found


def compare(archive_root: Path, cases: int, programs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Rows of the benchmark: by reader the worst organ of some cases, and our own reader."""
    archive = open_archive(archive_root)
    seen: dict[str, list[tuple[float, float, float, str]]] = {name: [] for name in programs}
    ours_equal = count = 0
    for ref in archive.cases[:cases]:
        volume, _ = read_case(archive, ref, tuple(BUILT_IN))
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            image = _square(np.clip(volume.image, -1024, 3071).astype(np.int16), -1024)
            square = replace(volume.geometry, size=image.shape)
            Series(image, square).write(place / "ct")
            files = sorted((place / "ct").iterdir())
            _, geometry = dicom.read_ct(tuple(files))
            drawn = [
                Drawn(o, _square(m, False), BUILT_IN[o].colour) for o, m in volume.masks.items()
            ]
            path = place / "RS.dcm"
            write_rtstruct(path, drawn, geometry, read_headers(files, geometry), "benchmark")
            for one in drawn:
                ours_equal += np.array_equal(draw(path, one.name, geometry)[0], one.mask)
                count += 1
            for reader, program in programs.items():
                theirs = read_by(reader, program, place / "ct", path)
                for one in drawn:
                    mask = theirs[one.name]
                    volume_ml = one.mask.sum() * geometry.voxel_ml()
                    change = mask.sum() / one.mask.sum() - 1
                    told = f"{one.name}, {int((mask ^ one.mask).sum())} voxels differ"
                    seen[reader].append((volume_ml, change, dice(mask, one.mask), told))
    rows = [row("ours: organs read back bit for bit", ours_equal, "", f"{count} organs",
                ours_equal / max(count, 1), 1.0)]  # fmt: skip
    for reader, values in seen.items():
        large = [v for v in values if v[0] > LARGE_ML]
        worst, lowest = max(large, key=lambda v: abs(v[1])), min(large, key=lambda v: v[2])
        most, least, why = LIMITS.get(reader, (VOLUME_SHARE, LEAST_DICE, ""))
        exact = sum(v[2] == 1.0 for v in values)
        against = f"{exact} of {len(values)} organs exact; worst {worst[3]}"
        change, least_dice = abs(worst[1]), lowest[2]
        rows += [
            row(f"{reader}: largest volume change", worst[1], "", against, change, AtMost(most)),
            row(f"{reader}: lowest Dice", least_dice, "", why or lowest[3], least_dice, least),
        ]
    return rows


def _square(array: npt.NDArray[Any], value: float) -> npt.NDArray[Any]:
    """The array (Z, Y, X) with as many rows as columns: rt-utils confuses them otherwise."""
    side = max(array.shape[1:])
    below = [(0, 0), (0, side - array.shape[1]), (0, side - array.shape[2])]
    return np.pad(array, below, constant_values=value)


def main() -> int:
    """Prints the rows; 1 where a target is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--venvs", type=Path, default=Path("runs/readers"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = compare(options.archive, options.cases, readers(options.venvs))
    return report(rows, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
