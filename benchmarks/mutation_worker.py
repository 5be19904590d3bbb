"""Damages and reads files, one a line of output; `mutations` starts it, and again if it dies."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.mutate import mutated
from core.archives.archive import FORMATS, open_archive
from core.archives.images.volume import write_image, write_mask
from core.data.geometry import Geometry
from core.errors import UserError
from core.plan.load import load
from hnfed.check.archive_check import check_archive
from hnfed.deploy.site_file import site_from_file

SIZE = (24, 40, 40)
GRID = Geometry(SIZE, (5.0, 5.0, 5.0), (-100.0, -90.0, 5.0))
HEADROOM = 6 << 30

Reader = Callable[[Path], str]


def patient() -> tuple[np.ndarray, np.ndarray]:
    """A head of soft tissue in air, and a brainstem in it."""
    z, y, x = np.indices(SIZE)
    body = np.hypot((y - 20) / 15.0, (x - 20) / 14.0) < 1
    noise = np.random.default_rng(0).normal(0, 10, SIZE)
    mask = (z - 14) ** 2 + (y - 22) ** 2 + (x - 20) ** 2 < 4**2
    return (np.where(body, 30.0, -1000.0) + noise).astype(np.int16), mask


def _pddca(folder: Path) -> None:
    image, mask = patient()
    write_image(folder / "c1" / "img.nrrd", image, GRID)
    write_mask(folder / "c1" / "structures" / "BrainStem.nrrd", mask, GRID)
    (folder / "cases.csv").write_text("case,split,site,path\nc1,train,north,c1\n")


def _openkbp(folder: Path) -> None:
    row, column, level = np.indices((24, 24, 20)).reshape(3, -1)
    index = ((row + 50) * 128 + column + 50) * 128 + level + 60
    case = folder / "pt_1"
    case.mkdir(parents=True)
    lines = [f"{i},{1000 + i % 70}.0" for i in index]
    (case / "ct.csv").write_text("\n".join([",data", *lines]) + "\n")
    (case / "voxel_dimensions.csv").write_text("3.9\n3.9\n2.5\n")
    (case / "Brainstem.csv").write_text("\n".join([",data", *(f"{i}," for i in index[:900])]))


def _dicom(folder: Path) -> None:
    from benchmarks.dicom_example import write_patient

    image, _ = patient()
    write_patient(folder / "p1", image, (11, 17, 17, 22))


def _plain(folder: Path) -> None:
    image, _ = patient()
    write_image(folder / "c1.nii", image, GRID)
    write_image(folder / "c1.nii.gz", image, GRID)


PLAN = """\
organs: {Cochlea_L: {aliases: [cochlea left], colour: [10, 20, 30]}}
preprocess: {spacing_mm: [3.0, 1.5, 1.25], crop: [96, 128, 224], window_hu: [-200, 300]}
augment: {mirror: 0.5, noise: 0.05}
model: {name: res3dunet, channels: [8, 16]}
loss: {ce: 1.0, dice: 1.0}
train: {lr: 0.001, batch: 2}
phases:
  - {name: pretrain, sites: [nyu, miccai], organs: [Brainstem, Parotid_L], rounds: 4, init: scratch}
  - {name: own, sites: [nyu], organs: [Larynx], init: pretrain, freeze: encoder, share: none}
simulation: {sites: {nyu: {phantom: nyu}, miccai: {phantom: miccai}}}
federation: {min_sites: 1}
seed: 3
"""
SITE = """\
name: nyu
format: pddca
root: /data/archive
aliases: {Parotid_L: ["Lt Parotid", parotid_gl_l]}
split: {train: 0.64, val: 0.16, test: 0.20, seed: 0}
device: auto
cache: cache
state: state
"""


def _yaml(folder: Path) -> None:
    (folder / "plan.yaml").write_text(PLAN)
    (folder / "site.yaml").write_text(SITE)
    rows = [f"c{i},{part}" for i, part in enumerate(("train", "val", "test", "train"))]
    (folder / "splits.csv").write_text("\n".join(["case,split", *rows]))


def _archive(folder: Path) -> str:
    report = check_archive(open_archive(folder), ("Brainstem",))
    return next((f.code for f in report.findings if f.severity == "error"), "")


def _image(folder: Path) -> str:
    from core.archives.archive import read_image_of
    from hnfed.predict.contours import find_cts

    path = next(p for p in folder.iterdir())
    archive = find_cts(path)
    read_image_of(archive, archive.cases[0])
    return ""


def _plan(folder: Path) -> str:
    load(str(folder / "plan.yaml"))
    return ""


def _site(folder: Path) -> str:
    text = (
        (folder / "site.yaml")
        .read_bytes()
        .replace(b"state: state", b"state: %s" % bytes(folder / "state"))
    )
    (folder / "site.yaml").write_bytes(text)
    site_from_file(folder / "site.yaml", "run")
    return ""


def _splits(folder: Path) -> str:
    text = SITE.replace("state: state", f"state: {folder / 'state'}").replace(
        "split: {", "split: {file: splits.csv, "
    )
    (folder / "site.yaml").write_text(text)
    site_from_file(folder / "site.yaml", "run")
    return ""


# kind: what is written, which of it is damaged, whether it is text, how it is read
KINDS: dict[str, tuple[Callable[[Path], None], str, bool, Reader]] = {
    "nrrd image": (_pddca, "c1/img.nrrd", False, _archive),
    "nrrd mask": (_pddca, "c1/structures/BrainStem.nrrd", False, _archive),
    "nifti": (_plain, "c1.nii", False, _image),
    "nifti gz": (_plain, "c1.nii.gz", False, _image),
    "cases.csv": (_pddca, "cases.csv", True, _archive),
    "ct.csv": (_openkbp, "pt_1/ct.csv", True, _archive),
    "mask csv": (_openkbp, "pt_1/Brainstem.csv", True, _archive),
    "voxels csv": (_openkbp, "pt_1/voxel_dimensions.csv", True, _archive),
    "plan yaml": (_yaml, "plan.yaml", True, _plan),
    "site yaml": (_yaml, "site.yaml", True, _site),
    "splits csv": (_yaml, "splits.csv", True, _splits),
}
if "dicom" in FORMATS:
    KINDS |= {
        "dicom ct": (_dicom, "p1/CT12.dcm", False, _archive),
        "rtstruct": (_dicom, "p1/RS.dcm", False, _archive),
    }


def read_one(kind: str, seed: int, clean: Path, work: Path) -> dict[str, object]:
    """Damages one file by its seed, reads it, and says what became of it."""
    _, name, text, read = KINDS[kind]
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    data = mutated((clean / kind / name).read_bytes(), seed, text=text)
    if kind.startswith("nifti"):
        (work / name).write_bytes(data)
    else:
        shutil.copytree(clean / kind, work, dirs_exist_ok=True)
        (work / name).write_bytes(data)
    before = _memory(reset=True)
    start = time.perf_counter()
    outcome, detail = "refused", ""
    try:
        detail = read(work)
        outcome = "refused" if detail else "read"
    except UserError as error:
        detail = getattr(error, "code", "") or error.field[:40]
    except Exception as error:
        outcome, detail = "unhandled", f"{type(error).__name__}: {error}"[:200]
    return {
        "kind": kind,
        "seed": seed,
        "outcome": outcome,
        "detail": detail,
        "seconds": round(time.perf_counter() - start, 3),
        "megabytes": round(_memory() - before, 1),
    }


def write_clean(folder: Path) -> None:
    """Writes an undamaged file of each kind; all of them can be read."""
    for kind, (write, *_) in KINDS.items():
        if not (folder / kind).is_dir():
            (folder / kind).mkdir(parents=True)
            write(folder / kind)


def _memory(*, reset: bool = False) -> float:
    """Peak of resident memory since the last reset, in MB."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1000


def main() -> None:
    """Reads the range of seeds that the command line names."""
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    kinds = sys.argv[4:]
    os.chdir(folder)  # a damaged site file may name a folder relative to here
    write_clean(folder / "clean")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + HEADROOM, hard))
    for seed in range(first, first + count):
        result = read_one(kinds[seed % len(kinds)], seed, folder / "clean", folder / "work")
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
