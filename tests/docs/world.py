"""A folder in which the documented commands run: its ARCHIVE, runs/demo, hn and so on."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from core.archives.formats.openkbp import SIDE
from core.archives.images.volume import read_image
from core.plan.load import load, plan_hash, to_yaml
from hnfed.cli.main import main
from hnfed.report.page import write_report
from simulations.phantom.cases import SIGNATURES, Cohort, write_site
from simulations.run import simulate
from tests.docs.commands import ROOT, Command, blocks
from tests.simulations.conftest import TINY

SPLITS = ("train", "train", "train", "val", "test")
PLACES = {
    "/data/archive": "ARCHIVE",
    "archive": "ARCHIVE",
    "KIT": "hn",
    "root=/data/archive": "root=ARCHIVE",
}
OPENKBP_NAMES = {
    "BrainStem": "Brainstem",
    "Mandible": "Mandible",
    "Parotid_L": "LeftParotid",
    "Parotid_R": "RightParotid",
}
TOTALSEGMENTATOR_NAMES = {"Mandible": "mandible", "Parotid_L": "parotid_gland_left"}
# What a page's reader gets by mail.
MAILED = {"hn/request.pem": "request.pem", "kits/answers/nyu.json": "nyu.json"}
SITE = "name: nyu\nroot: {root}/ARCHIVE\ncache: {root}/cache\nstate: {root}/state\n"
JOINED = (
    "hnfed provision federation.yaml -o kits",
    "hnfed join hn --name nyu",
    "hnfed provision federation.yaml -o kits --sign request.pem",
    "hnfed join hn --answer nyu.json",
)


def build(root: Path, cache: Path) -> None:
    """Fills `root`: an archive of five phantoms, runs of a plan of seconds, its plan."""
    archive = root / "ARCHIVE"
    write_site(archive, Cohort(SIGNATURES["nyu"], 5, 0, (8.0, 6.0, 6.0)))
    cases = sorted(path.parent for path in archive.glob("*/img.nrrd"))
    with (archive / "cases.csv").open("w", newline="") as file:
        rows = zip((case.name for case in cases), SPLITS, strict=True)
        csv.writer(file).writerows([("case", "split"), *rows])
    for name in ("CT", "CT.nrrd", "ct.nrrd"):
        target = root / name / "img.nrrd" if name == "CT" else root / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(cases[-1] / "img.nrrd", target)
    plan = [*TINY, f"simulation.cache={cache}", "phases.pretrain.rounds=1"]
    plan += ["phases.personalise.rounds=1", "tracking.mode=disabled"]
    assert simulate("smoke", plan, root / "runs" / "demo", report=write_report) == 0
    for name in ("alone", "joined", "openkbp", "seed0", "seed1", "other", "all", "without_nyu"):
        shutil.copytree(root / "runs" / "demo", root / "runs" / name)
    for name in ("alone", "other", "without_nyu"):  # of another plan
        path = root / "runs" / name / "config.yaml"
        path.write_text(path.read_text().replace("patience: 50", "patience: 49"))
    choice = "phases.personalise.candidates=[local,frozen]"
    assert simulate("smoke", [*plan, choice], root / "runs" / "choice", report=write_report) == 0
    for name in ("site_a", "site_b"):
        shutil.copytree(archive, root / "DIR" / name)
    for case in cases:
        as_totalsegmentator(case, root / "other" / case.name / "segmentations")
        as_openkbp(
            case, root / "open-kbp" / "provided-data" / "train-pats" / f"pt_{case.name[-3:]}"
        )
    for name in ("a", "b"):
        for end in ("safetensors", "json"):
            weights = root / "runs" / "demo" / "checkpoints" / "pretrain" / f"best.{end}"
            shutil.copy(weights, root / f"{name}.{end}")
    for name in ("plan.yaml", "my-plan.yaml"):
        (root / name).write_text(to_yaml(load("smoke", plan)[0]))
    deployment = blocks(ROOT / "docs" / "deployment.md", "yaml")
    text = next(text for text in deployment if text.startswith("# federation.yaml"))
    (root / "federation.yaml").write_text(text)


def as_totalsegmentator(case: Path, folder: Path) -> None:
    """The contours of a case of a PDDCA archive as another tool would have drawn and named them."""
    folder.mkdir(parents=True)
    for name, theirs in TOTALSEGMENTATOR_NAMES.items():
        path = case / "structures" / f"{name}.nrrd"
        if path.is_file():
            sitk.WriteImage(sitk.ReadImage(str(path)), str(folder / f"{theirs}.nii.gz"))


def as_openkbp(case: Path, folder: Path) -> None:
    """A case of a PDDCA archive in OpenKBP's layout: sparse CSV, slices counted downwards."""
    image, geometry = read_image(case / "img.nrrd")
    folder.mkdir(parents=True)
    z, y, x = geometry.spacing_mm
    (folder / "voxel_dimensions.csv").write_text(f"{y}\n{x}\n{z}\n")
    arrays = {"ct": image.astype(int) + 1000}
    for name, theirs in OPENKBP_NAMES.items():
        path = case / "structures" / f"{name}.nrrd"
        if path.is_file():
            arrays[theirs] = read_image(path)[0]
    for name, array in arrays.items():
        at = array.nonzero()
        index = (at[1] * SIDE + at[2]) * SIDE + SIDE - 1 - at[0]
        values = array[at].tolist() if name == "ct" else [""] * len(index)
        rows = (f"{i},{value}\n" for i, value in zip(index.tolist(), values, strict=True))
        (folder / f"{name}.csv").write_text(",data\n" + "".join(rows))


@dataclass
class World:
    """A copy of what `build` made, for the commands of one page; `root` is where they are typed."""

    root: Path

    def begin(self, page: str) -> None:
        """What the page takes for granted."""
        for name in ("site.yaml", "nyu.yaml"):
            (self.root / name).write_text(SITE.format(root=self.root))
        if page.startswith("docs/examples/"):  # it has its own files, named in their first lines
            for text in blocks(ROOT / page, "yaml"):
                Path(text.splitlines()[0].removeprefix("# ")).write_text(text)
        if page == "docs/deployment.md":
            for text in JOINED:
                assert self.run(Command(page, text)) == 0
        if page == "docs/compare.md":
            scored = "evaluate --model runs/demo --phase pretrain --data ARCHIVE --per-case"
            assert main([*scored.split(), "--json", "nyu.json"]) == 0

    def run(self, command: Command, shorter: Sequence[str] = ()) -> int:
        """Runs a command, one of hnfed in this process, and returns its exit code.

        Args:
            command: of the page.
            shorter: overrides of a simulation.
        """
        words = command.words
        if words[0] == "cd":
            shutil.copy("ct.nrrd", words[1])
            os.chdir(words[1])
            return 0
        if words[0] == "python":
            return subprocess.run([sys.executable, *words[1:]], check=False).returncode
        if words[0] == "eval":
            words = words[1].removeprefix("$(").removesuffix(")").split()
        assert words[0] == "hnfed", command
        if "--answer" in words and not Path("nyu.json").exists():
            for text in (JOINED[0], JOINED[2]):  # meanwhile, at the coordinator's
                assert self.run(Command(command.page, text)) == 0
        sha = plan_hash(load("plan.yaml")[0].plan)
        replaced = {**PLACES, "SHA256": sha, "ct.nii.gz": "ct.nrrd"}
        if words[1] == "advise" and not (shorter and command.page == "docs/advisor.md"):
            replaced["runs/demo"] = "runs/choice"
        if words[1] == "simulate":
            shutil.rmtree(Path("runs", words[2]), ignore_errors=True)
        typed = [replaced.get(word, word) for word in words[1:]]
        code = main([*typed, *(shorter if words[1] == "simulate" else ())])
        for source, target in MAILED.items():
            if Path(source).is_file() and not Path(target).exists():
                shutil.copy(source, target)
        return code
