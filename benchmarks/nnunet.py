"""Our pooled model against nnU-Net v2: same cases, same CPU time, scored on the same grids.

nnU-Net is installed by the user into a venv of its own (``pip install nnunetv2``). Both train on
the cases of train and val that annotate all four organs, and are scored on the archive's test
cases by `hnfed evaluate`. nnU-Net plans its own patches and network; it trains without mirroring
(left and right are different organs) for as many short epochs as fit our run's CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.measure import report, row
from core.archives.archive import Archive, CaseRef, open_archive, read_case
from core.archives.images.volume import Volume, write_image, write_labelmap

ORGANS = ("Brainstem", "Bone_Mandible", "Parotid_L", "Parotid_R")
NAME = "Dataset501_hnfed"
PLANS = "nnUNetPlansSmall"
PHASE = (
    "{name: pretrain, sites: [site_a, site_b], organs: ["
    + ", ".join(ORGANS)
    + "], local_epochs: 4, init: scratch, average_mirrored: true"
)
BEGUN = 0.1  # mean Dice below which a budget is too small to tell one network from another
ITERATIONS = 10  # of nnU-Net's epoch: 250 by default, for budgets of days
TRAINER = '''"""nnU-Net's trainer for a short budget."""
import os

from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)


class HnfedTrainer(nnUNetTrainerNoMirroring):
    def initialize(self):
        self.num_epochs = int(os.environ["HNFED_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["HNFED_ITERATIONS"])
        self.num_val_iterations_per_epoch = 1
        super().initialize()

    def perform_actual_validation(self, save_probabilities=False):
        pass
'''


@dataclass(frozen=True)
class Peer:
    """nnU-Net in its own venv, working below one folder."""

    binaries: Path
    work: Path

    def run(self, command: str, *arguments: str, **settings: str) -> float:
        """Runs one of its commands; returns the CPU seconds of all its processes.

        Raises:
            SystemExit: the command failed.
        """
        folders = {f"nnUNet_{n}": str(self.work / n) for n in ("raw", "preprocessed", "results")}
        extra = {
            "nnUNet_extTrainer": str(self.work / "trainer"),
            "nnUNet_compile": "f",
            "nnUNet_n_proc_DA": "1",
            "PATH": f"{self.binaries}{os.pathsep}{os.environ['PATH']}",
        }
        line = [str(self.binaries / f"nnUNetv2_{command}"), *arguments]
        return timed(line, os.environ | folders | extra | settings)

    def train(self, epochs: int, iterations: int) -> float:
        """Trains fold 0 from scratch; returns CPU seconds."""
        return self.run(
            *("train", "501", "3d_fullres", "0", "-tr", "HnfedTrainer", "-p", PLANS),
            *("-device", "cpu"),
            HNFED_EPOCHS=str(epochs),
            HNFED_ITERATIONS=str(iterations),
        )


def timed(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Runs a command and returns the CPU seconds that it and its children took.

    Raises:
        SystemExit: the command failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def fitting_epochs(budget_s: float, short_s: float, long_s: float, more: int) -> int:
    """How many epochs of `ITERATIONS` (and one of validation) fit a budget of CPU seconds.

    Args:
        budget_s: in all.
        short_s: of a trial.
        long_s: of a trial that had `more` iterations than the other.
        more: their difference.
    """
    step = max(long_s - short_s, 1e-3) / more
    return max(1, int((budget_s - short_s) / (step * (ITERATIONS + 1))))


def complete(archive: Archive, split: str) -> list[CaseRef]:
    """Cases of a split that annotate all four organs."""
    cases = (c for c in archive.cases if c.split == split)
    return [c for c in cases if set(ORGANS) <= set(c.structures)]


def label_map(volume: Volume) -> npt.NDArray[np.uint8]:
    """Numbers 1, 2, ... in the order of `ORGANS`; overlaps go to the smaller organ (D16)."""
    labels = np.zeros(volume.geometry.size, np.uint8)
    for organ in sorted(ORGANS, key=lambda o: -int(volume.masks[o].sum())):
        labels[volume.masks[organ]] = ORGANS.index(organ) + 1
    return labels


def write_raw(archive: Archive, work: Path) -> None:
    """The archive as nnU-Net's raw data set, with our split as its fold 0."""
    raw = work / "raw" / NAME
    split = {"train": complete(archive, "train"), "val": complete(archive, "val")}
    test = [c for c in archive.cases if c.split == "test"]
    for ref in [*split["train"], *split["val"], *test]:
        volume, _ = read_case(archive, ref, ORGANS)
        folder = "Ts" if ref.split == "test" else "Tr"
        image = raw / f"images{folder}" / f"{ref.case}_0000.nii.gz"
        write_image(image, volume.image, volume.geometry)
        if folder == "Tr":
            path = raw / "labelsTr" / f"{ref.case}.nii.gz"
            write_labelmap(path, label_map(volume), volume.geometry)
    about = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {o: i for i, o in enumerate(ORGANS, start=1)},
        "numTraining": len(split["train"]) + len(split["val"]),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(about))
    folds = [{name: [c.case for c in cases] for name, cases in split.items()}]
    prepared = work / "preprocessed" / NAME
    prepared.mkdir(parents=True, exist_ok=True)
    (prepared / "splits_final.json").write_text(json.dumps(folds))
    (work / "trainer").mkdir(exist_ok=True)
    (work / "trainer" / "hnfed_trainer.py").write_text(TRAINER)


def hnfed(*arguments: str) -> float:
    """Runs a command of ours; returns its CPU seconds."""
    return timed([sys.executable, "-m", "hnfed.cli.main", *arguments])


def scored(data: Path, out: Path, *what: str) -> tuple[float, float]:
    """Mean test Dice and HD95 (mm; NaN where every organ is missed) of a model or of contours."""
    hnfed("evaluate", *what, "--data", str(data), "--organs", *ORGANS, "--json", str(out))
    mean = json.loads(out.read_text())["mean"]
    distance = mean["hd95_mm"]
    return float(mean["dice"]), float("nan") if distance is None else float(distance)


def dice_row(ours: float, theirs: float) -> dict[str, Any]:
    """The row of Dice; without ratio and target where nnU-Net has not begun to find organs."""
    name, unit = "pooled test Dice", "Dice"
    if theirs < BEGUN:
        return row(name, ours, unit, f"no comparison: nnU-Net v2 has learnt nothing, {theirs:.3f}")
    return row(name, ours, unit, f"nnU-Net v2: {theirs:.3f}", ours / theirs, 1.0)


def main() -> None:
    """Trains both, scores both, prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="OpenKBP cases with cases.csv")
    parser.add_argument("--venv", type=Path, required=True, help="venv that holds nnunetv2")
    parser.add_argument("--out", type=Path, default=Path("runs/nnunet"), help="a new folder")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of 4 epochs of our run")
    parser.add_argument(
        "--memory-gb",
        type=float,
        default=1.0,
        help="nnU-Net plans its patch for this much GPU memory (its default of 8 takes minutes a "
        "step on a CPU)",
    )
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    options = parser.parse_args()
    work = options.out.resolve()
    archive = open_archive(options.data)
    kept = {c.case for split in ("train", "val") for c in complete(archive, split)}
    partial = [c for c in archive.cases if c.split in ("train", "val") and c.case not in kept]
    write_raw(archive, work)
    sites = sorted({str(c.site) for c in partial})
    ours_s = hnfed(
        *("simulate", "openkbp", f"simulation.data={options.data}", "simulation.engine=inline"),
        *("simulation.baseline=pooled", f"phases=[{PHASE}, rounds: {options.rounds}}}]"),
        *("--out", str(work / "ours")),
        *(
            f"simulation.sites.{s}.exclude=[{', '.join(c.case for c in partial if c.site == s)}]"
            for s in sites
        ),
    )
    peer = Peer(options.venv.resolve() / "bin", work)
    peer.run(
        *("plan_and_preprocess", "-d", "501", "-c", "3d_fullres", "-np", "2", "-npfp", "2"),
        *("-gpu_memory_target", str(options.memory_gb), "-overwrite_plans_name", PLANS),
    )
    short, long = peer.train(1, 2), peer.train(1, 6)
    epochs = fitting_epochs(ours_s, short, long, 4)
    theirs_s = peer.train(epochs, ITERATIONS)
    raw, contours = work / "raw" / NAME, work / "contours"
    peer.run(
        *("predict", "-i", str(raw / "imagesTs"), "-o", str(contours), "-d", "501"),
        *("-c", "3d_fullres", "-f", "0", "-tr", "HnfedTrainer", "-p", PLANS, "-device", "cpu"),
    )
    model = ("--model", str(work / "ours"), "--phase", "pretrain")
    ours, ours_mm = scored(options.data, work / "ours.json", *model)
    theirs, theirs_mm = scored(options.data, work / "theirs.json", "--pred", str(contours))
    rows = [
        dice_row(ours, theirs),
        row("pooled test HD95", ours_mm, "mm", f"nnU-Net v2: {theirs_mm:.1f} mm"),
        row(
            "CPU time of training, nnU-Net's",
            theirs_s,
            "s",
            f"ours: {ours_s:.0f} s; {epochs} epochs of {ITERATIONS} steps",
            theirs_s / ours_s,
        ),
    ]
    report(rows, options.json)


if __name__ == "__main__":
    main()
