"""Synthetic institutions: head-and-neck CTs with contours, written as real PDDCA archives.

The patients are drawn analytically (`phantom_body`, `phantom_head`, `phantom_neck`) and scanned
with a site's habits (`phantom_scan`), so that a demonstration and the tests need no patient data.
Nothing learned on them says anything about real patients.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from core.archives.parallel import PRELOADED, each
from core.errors import UserError
from core.organs.vocabulary import NINE, PCM
from simulations.phantom.scan import Case, SiteSignature, make_case

FORMAT_VERSION = 1
STAMP = "phantom.json"
LOW_NECK = ("Larynx", "Esophagus", "SpinalCord")
PDDCA_NAME = {
    "Brainstem": "BrainStem",
    "OpticChiasm": "Chiasm",
    "Bone_Mandible": "Mandible",
    "OpticNrv_L": "OpticNerve_L",
    "OpticNrv_R": "OpticNerve_R",
    "Glnd_Submand_L": "Submandibular_L",
    "Glnd_Submand_R": "Submandibular_R",
}


SIGNATURES: dict[str, SiteSignature] = {
    "nyu": SiteSignature(
        name="nyu",
        organs=NINE + PCM,
        pcm_share=1.0,
        missing=0.08,
        offset_mm={"": 0.15, "OpticChiasm": 0.95, "Brainstem": 0.3},
        spacing_factor=(0.75, 1.0, 1.0),
        noise_hu=14.0,
        contrast_hu=20.0,
        shift_hu=3.0,
        table=True,
        mask=True,
        metal_share=0.4,
    ),
    "miccai": SiteSignature(
        name="miccai",
        offset_mm={"": -0.1, "OpticChiasm": -0.2},
        spacing_factor=(1.0, 0.92, 0.92),
        fov_mm=340.0,
        noise_hu=8.0,
        contrast_hu=130.0,
        gain=1.05,
        low_start=0.15,
        short=0.4,
        metal_share=0.15,
    ),
    "clinic": SiteSignature(
        name="clinic",
        organs=("Brainstem", "Bone_Mandible", "Parotid_L", "Parotid_R", *LOW_NECK),
        missing=0.05,
        spacing_factor=(0.9, 1.1, 1.1),
        noise_hu=11.0,
        contrast_hu=60.0,
        shift_hu=-4.0,
        table=True,
        low_start=0.5,
        short=0.0,
    ),
}


def case_name(signature: SiteSignature, index: int) -> str:
    """Name of the folder of a site's patient number `index`, counted from 0."""
    return f"{signature.name}_{index:03d}"


@dataclass(frozen=True)
class Cohort:
    """The patients of an institution: the same values give the same voxels.

    Attributes:
        signature: the institution, e.g. `SIGNATURES["nyu"]`.
        cases: number of patients.
        seed: decides the patients, with the signature's name, the site's and the patient's number.
        spacing_mm: voxel size (z, y, x), before the site's own factor.
        splits: case name -> train, val or test; written to `cases.csv` where given. Without it
            there is no `cases.csv`, and the plan splits.
        site: name of the site. Sites of one signature have patients of their own; those of a site
            that is named like its signature are the ones that the signature has without a name.
    """

    signature: SiteSignature
    cases: int
    seed: int
    spacing_mm: Sequence[float] = (4.0, 2.5, 2.5)
    splits: Mapping[str, str] | None = None
    site: str = ""

    @property
    def own(self) -> str:
        """What tells the site's patients from those of the signature; "" for none."""
        return "" if self.site == self.signature.name else self.site

    def rng(self, *of: int) -> np.random.Generator:
        """Random numbers; 256 is no byte, so that no signature's name looks like a site's."""
        own = [256, *self.own.encode()] if self.own else []
        return np.random.default_rng([self.seed, *of, *own])

    def require_usable(self) -> None:
        """Requires values in their range.

        Raises:
            UserError: names the first that is not.
        """
        if self.cases < 1:
            raise UserError("phantom cases", self.cases, "give 1 or more")
        if self.seed < 0:
            raise UserError("phantom seed", self.seed, "give 0 or more")
        if len(self.spacing_mm) != 3 or not all(0.3 <= s <= 10.0 for s in self.spacing_mm):
            raise UserError(
                "phantom spacing_mm", self.spacing_mm, "give three sizes of 0.3 to 10 mm"
            )
        names = {case_name(self.signature, i) for i in range(self.cases)}
        if self.splits is not None and set(self.splits) != names:
            remedy = f"name each of {min(names)} to {max(names)} once"
            raise UserError("phantom splits", sorted(self.splits), remedy)

    def stamp(self) -> str:
        """Everything that decides the archive, as one line of JSON."""
        decides: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "signature": asdict(self.signature),
            "cases": self.cases,
            "seed": self.seed,
            "spacing_mm": [float(s) for s in self.spacing_mm],
            "splits": None if self.splits is None else dict(self.splits),
            **({"site": self.own} if self.own else {}),
        }
        return json.dumps(decides, sort_keys=True)


def write_site(root: Path, cohort: Cohort, *, workers: int = 1) -> None:
    """Writes an institution as a PDDCA archive: `CASE/img.nrrd`, `CASE/structures/NAME.nrrd`.

    The archive appears as a whole (written beside it, then renamed). One of the same cohort is
    kept; that of another is replaced.

    Args:
        root: folder of the archive.
        cohort: its patients.
        workers: processes; the voxels are the same, however many.

    Raises:
        UserError: `root` holds something else, or a value is out of range.
    """
    cohort.require_usable()
    stamp = cohort.stamp()
    if _stamp_of(root) == stamp:
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        lacking = _left_out(cohort)
        job = partial(_write_case, folder, cohort)
        for _ in each(job, list(enumerate(lacking)), workers, preload=[__name__, *PRELOADED]):
            pass
        if cohort.splits is not None:
            _write_splits(folder / "cases.csv", cohort.splits)
        (folder / STAMP).write_text(stamp + "\n", encoding="utf-8")
        folder.chmod(0o755)
        _move(folder, root, stamp)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stamp_of(root: Path) -> str:
    """The stamp of the phantom in `root`; "" where there is nothing; an error for anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return ""
    if not (root / STAMP).is_file():
        problem = "holds files that are no phantom"
        raise UserError(
            "phantom folder", root, "choose another folder, or empty it", problem=problem
        )
    return (root / STAMP).read_text(encoding="utf-8").strip()


def _move(folder: Path, root: Path, stamp: str) -> None:
    """Puts a finished archive in its place; another process may have been faster."""
    if _stamp_of(root) not in ("", stamp):
        shutil.rmtree(root)
    try:
        os.rename(folder, root)
    except OSError:
        if _stamp_of(root) != stamp:
            raise


def _write_case(folder: Path, cohort: Cohort, of: tuple[int, frozenset[str]]) -> None:
    index, lacking = of
    signature, (z, y, x) = cohort.signature, cohort.spacing_mm
    case = make_case(signature, cohort.rng(index, *signature.name.encode()), (z, y, x))
    target = folder / case_name(signature, index)
    (target / "structures").mkdir(parents=True)
    _write(target / "img.nrrd", case.image, case)
    for organ in sorted(set(case.masks) - lacking):
        name = PDDCA_NAME.get(organ, organ)
        _write(target / "structures" / f"{name}.nrrd", case.masks[organ], case)


def _write(path: Path, array: Any, case: Case) -> None:
    image: Any = sitk.GetImageFromArray(array)
    image.SetSpacing(case.spacing_mm[::-1])
    image.SetOrigin(case.origin_mm)
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)


def _write_splits(path: Path, splits: Mapping[str, str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "split"])
        rows.writerows(sorted(splits.items()))


def _left_out(cohort: Cohort) -> list[frozenset[str]]:
    """Decides which organs each case lacks: at most half of its organs, and no organ in most cases.

    The constrictors are drawn all or none, on `pcm_share` of the cases.
    """
    signature, cases, rng = cohort.signature, cohort.cases, cohort.rng(cohort.cases)
    plain = [o for o in signature.organs if o not in PCM]
    lacking: list[set[str]] = [set() for _ in range(cases)]
    pairs = [(c, o) for c in range(cases) for o in plain]
    wanted = math.ceil(signature.missing * len(pairs)) if signature.missing > 0 else 0
    for index in rng.permutation(len(pairs)):
        case, organ = pairs[int(index)]
        if sum(map(len, lacking)) >= wanted:
            break
        gone = sum(organ in one for one in lacking)
        if len(lacking[case]) + 1 <= len(plain) // 2 and (gone + 1) * 2 <= cases:
            lacking[case].add(organ)
    keep = round(signature.pcm_share * cases)
    for case in rng.permutation(cases)[keep:]:
        lacking[int(case)].update(set(PCM) & set(signature.organs))
    return [frozenset(one) for one in lacking]
