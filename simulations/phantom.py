"""Synthetic institutions: head-and-neck CTs with contours, written as real PDDCA archives.

The patients are drawn analytically (`phantom_anatomy`), so that a demonstration and the tests need no patient data.
The pictures look like a planning CT at the coarse voxels that are used; they prove nothing about real patients.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from core.errors import UserError
from simulations.phantom_anatomy import Patient, anatomy, metal_places, paint_body
from simulations.phantom_shapes import Canvas, Field, make_canvas, paint

FORMAT_VERSION = 1
STAMP = "phantom.json"
NINE = (
    "Brainstem", "OpticChiasm", "Bone_Mandible", "OpticNrv_L", "OpticNrv_R",
    "Parotid_L", "Parotid_R", "Glnd_Submand_L", "Glnd_Submand_R",
)  # fmt: skip
PCM = ("Musc_Constrict_S", "Musc_Constrict_M", "Musc_Constrict_I")
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


@dataclass(frozen=True)
class SiteSignature:
    """What makes one institution's scans and contours look different from another's.

    Attributes:
        name: written to `cases.csv` and used in case names.
        organs: organs that the site draws (TG-263).
        pcm_share: share of the cases whose pharyngeal constrictors are drawn, 0 to 1.
        missing: share of (case, organ) pairs left out, among the organs other than the constrictors.
        offset_mm: drawing habit, mm outwards per organ ("" is the default for all others).
        jitter_mm: standard deviation of the outward offset between cases of the site.
        spacing_factor: voxel size (z, y, x) against the size asked for.
        fov_mm: width and depth of the scan in plane; 0 keeps 150 columns.
        noise_hu: standard deviation of the noise.
        contrast_hu: enhancement of vessels (0 = without contrast medium).
        gain, shift_hu: the scanner's scale of soft tissue: HU * gain + shift inside the body.
        table: whether the couch is in the picture.
        mask: whether a thermoplastic mask is.
        metal_share: share of patients with metal fillings (streaks).
        low_start: share of scans that begin below the top of the head.
        short: share of scans that end above the shoulders.
    """

    name: str
    organs: tuple[str, ...] = NINE
    pcm_share: float = 0.0
    missing: float = 0.0
    offset_mm: Mapping[str, float] = field(default_factory=dict)
    jitter_mm: float = 0.15
    spacing_factor: tuple[float, float, float] = (1.0, 1.0, 1.0)
    fov_mm: float = 370.0
    noise_hu: float = 12.0
    contrast_hu: float = 0.0
    gain: float = 1.0
    shift_hu: float = 0.0
    table: bool = False
    mask: bool = False
    metal_share: float = 0.0
    low_start: float = 0.3
    short: float = 0.3


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


@dataclass(frozen=True)
class Case:
    """One synthetic patient in memory.

    Attributes:
        image: int16 HU (Z, Y, X).
        masks: organ (TG-263) -> uint8 0/1 (Z, Y, X); organs outside the scan are absent.
        spacing_mm: (z, y, x).
        origin_mm: (x, y, z) LPS of voxel (0, 0, 0); direction is the identity.
    """

    image: npt.NDArray[np.int16]
    masks: dict[str, npt.NDArray[np.uint8]]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]


def _patient(signature: SiteSignature, rng: np.random.Generator) -> Patient:
    both, own = rng.normal(0, 0.05, 2), rng.normal(0, 0.025, 4)
    sizes = np.clip(1 + np.repeat(both, 2) + own, 0.82, 1.18)
    metal = tuple(float(m) for m in rng.uniform(-1, 1, int(rng.integers(1, 4))))
    return Patient(
        fat_mm=float(rng.uniform(4.5, 10.0)),
        girth=float(rng.uniform(0.92, 1.12)),
        jaw=float(np.clip(rng.normal(1.0, 0.035), 0.9, 1.07)),
        open_mm=float(rng.uniform(0.0, 6.0)),
        gland=(float(sizes[0]), float(sizes[1]), float(sizes[2]), float(sizes[3])),
        parotid_hu=float(np.clip(rng.normal(-12.0, 12.0), -35.0, 12.0)),
        submandibular_hu=float(rng.normal(42.0, 4.0)),
        nerve=float(np.clip(rng.normal(1.0, 0.05), 0.88, 1.12)),
        larynx_mm=float(rng.uniform(-5.0, 8.0)),
        constrictor_mm=float(rng.uniform(2.9, 3.7)),
        contrast_hu=max(0.0, float(rng.normal(signature.contrast_hu, signature.contrast_hu / 5))),
        metal=metal if rng.random() < signature.metal_share else (),
    )


def _upsample(control: Field, places: Sequence[Field]) -> Field:
    """Interpolates a (3, 3, 3)-or-larger control grid at grid lines `places` (in control units), smoothly."""
    out = control
    for axis, at in enumerate(places):
        n = control.shape[axis]
        low = np.clip(np.floor(at).astype(np.int64), 0, n - 2)
        t = at - low
        t = t * t * (3 - 2 * t)
        weight = np.zeros((at.size, n), np.float32)
        weight[np.arange(at.size), low] = 1 - t
        weight[np.arange(at.size), low + 1] = t
        out = np.moveaxis(np.tensordot(weight, out, axes=(1, axis)), 0, axis)
    return np.asarray(out, np.float32)


def _coordinates(
    size: tuple[int, int, int], spacing_mm: tuple[float, float, float], top_mm: float, rng: np.random.Generator
) -> tuple[Field, Field, Field]:
    """Patient coordinates (x, y, z) of each voxel: pose, proportions and a smooth random deformation.

    Args:
        size: voxels (z, y, x).
        spacing_mm: (z, y, x).
        top_mm: height of the top slice above the ears.
        rng: decides the pose.
    """
    scale = 1 / (np.clip(rng.normal(1.0, 0.035), 0.92, 1.08) * np.clip(rng.normal(1.0, 0.02, 3), 0.95, 1.05))
    pitch, roll, yaw = np.deg2rad(rng.normal(0.0, (4.0, 2.0, 2.5)).clip(-8, 8))
    shift = rng.normal(0.0, (0.0, 4.0, 5.0))
    neck, bend = 1 / rng.uniform(0.92, 1.1), rng.normal(0.0, 8.0, 2).clip(-14, 14)
    axes = [
        top_mm - (np.arange(size[0])[::-1]) * spacing_mm[0],
        (np.arange(size[1]) - (size[1] - 1) / 2) * spacing_mm[1] + shift[1],
        (np.arange(size[2]) - (size[2] - 1) / 2) * spacing_mm[2] + shift[2],
    ]
    lz, ly, lx = (a.astype(np.float32) for a in axes)
    knots = [math.ceil(n * s / 55.0) + 1 for n, s in zip(size, spacing_mm, strict=True)]
    places = [np.linspace(0, k - 1.001, n).astype(np.float32) for k, n in zip(knots, size, strict=True)]
    wave = rng.normal(0.0, 2.0, (3, *knots)).clip(-4.5, 4.5).astype(np.float32)
    warp = [_upsample(wave[i], places) for i in range(3)]
    z, y, x = lz[:, None, None], ly[None, :, None], lx[None, None, :]
    below = np.minimum(z + 40.0, 0.0) / 150.0
    y, x = y + bend[0] * below * below, x + bend[1] * below * below * 0.6
    cp, sp, cr, sr, cy, sy = (
        np.float32(f(a)) for a in (pitch, roll, yaw) for f in (np.cos, np.sin)
    )  # fmt: skip
    x, y = cy * x - sy * y, sy * x + cy * y
    y, z = cp * y - sp * z, sp * y + cp * z
    x, z = cr * x - sr * z, sr * x + cr * z
    z = np.where(z < -40.0, (z + 40.0) * np.float32(neck) - 40.0, z)
    out = [(v * np.float32(k) + w).astype(np.float32) for v, k, w in zip((x, y, z), scale, warp, strict=True)]
    return out[0], out[1], out[2]


def _streaks(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Adds metal fillings and their streaks, in the slices that hold them."""
    for px, py, pz in metal_places(patient):
        far = (canvas.x - px) ** 2 + (canvas.y - py) ** 2 + (canvas.z - pz) ** 2
        index = np.unravel_index(int(np.argmin(far)), far.shape)
        if far[index] > 100.0:
            continue
        rows = slice(max(int(index[0]) - 1, 0), int(index[0]) + 2)
        dx, dy = canvas.x[rows] - px, canvas.y[rows] - py
        radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
        phase, power = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.6, 1.2)
        rays = sum(np.cos(k * angle + p) for k, p in zip((6, 11, 17), phase, strict=True))
        inside = canvas.image[rows] > -400.0
        canvas.image[rows] += np.where(inside, power * 90.0 * rays * np.exp(-radius / 45.0), 0.0)
        canvas.image[rows] = np.where(radius < 3.5, 2800.0, canvas.image[rows])


def _furniture(canvas: Canvas, signature: SiteSignature, spacing: Sequence[float], skin: Field) -> None:
    """Adds the couch below the patient and the thermoplastic mask round the face."""
    if signature.mask:
        shell = np.clip(1.0 - np.abs(skin - 3.0) / 2.5, 0.0, 1.0)
        shell *= (canvas.y < 40.0) & (canvas.z > -150.0)
        image = canvas.image
        image += shell * (-450.0 - image)
    if signature.table:
        body_rows = np.flatnonzero((skin < 0).any(axis=(0, 2)))
        first = int(body_rows[-1]) + max(1, round(6.0 / spacing[1]))
        thick = max(2, round(45.0 / spacing[1]))
        half = canvas.image.shape[2] // 2
        width = slice(max(half - round(210 / spacing[2]), 0), half + round(210 / spacing[2]))
        for row, hu in [(first, -150.0), *((first + i, -920.0) for i in range(1, thick)), (first + thick, -150.0)]:
            if row < canvas.image.shape[1]:
                canvas.image[:, row, width] = hu


def make_case(
    signature: SiteSignature,
    rng: np.random.Generator,
    spacing_mm: tuple[float, float, float] = (4.0, 2.5, 2.5),
) -> Case:
    """Makes one patient of a site.

    Args:
        signature: the site.
        rng: decides everything that differs between patients.
        spacing_mm: voxel size (z, y, x) before the site's own factor.
    """
    s = [a * b for a, b in zip(spacing_mm, signature.spacing_factor, strict=True)]
    plane = float(rng.uniform(0.95, 1.05))
    spacing = (round(s[0], 3), round(s[1] * plane, 3), round(s[2] * plane, 3))
    patient = _patient(signature, rng)
    low_start, short = rng.random(2) < (signature.low_start, signature.short)
    top = float(rng.uniform(42.0, 75.0) if low_start else rng.uniform(95.0, 125.0))
    bottom = float(rng.uniform(-190.0, -172.0) if short else rng.uniform(-245.0, -215.0))
    size = (
        math.ceil((top - bottom) / spacing[0]),
        math.ceil(signature.fov_mm / spacing[1]),
        math.ceil(signature.fov_mm / spacing[2]),
    )
    canvas = make_canvas(*_coordinates(size, spacing, top, rng), spacing)
    jitter = float(rng.normal(0.0, signature.jitter_mm))
    skin = paint_body(canvas, patient)
    masks: dict[str, npt.NDArray[np.uint8]] = {}
    for part in anatomy(patient):
        painted = paint(canvas, part.shape, part.hu)
        if painted is None or part.organ not in signature.organs:
            continue
        box, distance = painted
        habit = signature.offset_mm.get(part.organ, signature.offset_mm.get("", 0.0))
        drawn = distance < habit + jitter * (0.4 if part.organ.startswith("Optic") else 1.0)
        if drawn.any():
            masks[part.organ] = np.zeros(size, np.uint8)
            masks[part.organ][box] = drawn
    _finish(canvas, skin, signature, patient, spacing, rng)
    origin = tuple(round(float(v), 2) for v in rng.uniform(-260.0, 260.0, 3))
    image = np.clip(np.rint(canvas.image), -1024, 3071).astype(np.int16)
    return Case(image, masks, spacing, (origin[0], origin[1], origin[2]))


def _finish(
    canvas: Canvas,
    skin: Field,
    signature: SiteSignature,
    patient: Patient,
    spacing: Sequence[float],
    rng: np.random.Generator,
) -> None:
    """Adds what the scanner adds: its scale, texture, furniture, streaks, blur and noise."""
    image = canvas.image
    soft = (image > -300.0) & (image < 300.0)
    texture = gaussian_filter(rng.standard_normal(image.shape, np.float32), 1.0) * np.float32(40)
    image += np.where(soft, image * (signature.gain - 1) + signature.shift_hu + texture, 0.0)
    _furniture(canvas, signature, spacing, skin)
    _streaks(canvas, patient, rng)
    noise = rng.standard_normal(image.shape, np.float32)
    image += noise * np.where(skin < 6.0, np.float32(signature.noise_hu), np.float32(0))


def _left_out(signature: SiteSignature, cases: int, rng: np.random.Generator) -> list[frozenset[str]]:
    """Decides which organs each case lacks; no case loses more than half of its organs."""
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
        lacking[int(case)].update(PCM)
    return [frozenset(one) for one in lacking]


def _write_case(
    index: int,
    folder: Path,
    signature: SiteSignature,
    seed: int,
    spacing_mm: tuple[float, float, float],
    lacking: Sequence[frozenset[str]],
) -> None:
    rng = np.random.default_rng([seed, index, *signature.name.encode()])
    case = make_case(signature, rng, spacing_mm)
    target = folder / case_name(signature, index)
    (target / "structures").mkdir(parents=True)
    _write(target / "img.nrrd", case.image, case)
    for organ, mask in case.masks.items():
        if organ not in lacking[index]:
            _write(target / "structures" / f"{PDDCA_NAME.get(organ, organ)}.nrrd", mask, case)


def _write(path: Path, array: npt.NDArray[np.int16] | npt.NDArray[np.uint8], case: Case) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(case.spacing_mm[::-1])
    image.SetOrigin(case.origin_mm)
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)


def case_name(signature: SiteSignature, index: int) -> str:
    """Name of a site's case folder."""
    return f"{signature.name}_{index:03d}"


def write_site(
    root: Path,
    signature: SiteSignature,
    cases: int,
    seed: int,
    spacing_mm: tuple[float, float, float] = (4.0, 2.5, 2.5),
    *,
    workers: int = 1,
    splits: Mapping[str, str] | None = None,
) -> None:
    """Writes an institution as a PDDCA archive: `CASE/img.nrrd`, `CASE/structures/NAME.nrrd`.

    The archive appears as a whole (written beside it, then renamed). One that was written with the same arguments is
    kept. The same arguments give the same voxels, whatever `workers` is.

    Args:
        root: folder of the archive.
        signature: the institution, e.g. `SIGNATURES["nyu"]`.
        cases: number of patients.
        seed: decides the patients, with the site's name and the patient's number.
        spacing_mm: voxel size (z, y, x), before the site's own factor.
        workers: processes.
        splits: case name -> train, val or test; written to `cases.csv` where given. Without it there is no
            `cases.csv`, and the plan splits.

    Raises:
        UserError: `root` holds something else, or an argument is out of range.
    """
    if cases < 1 or len(spacing_mm) != 3 or not all(0.3 <= s <= 10.0 for s in spacing_mm):
        raise UserError("phantom", f"cases {cases}, spacing {spacing_mm}", "give 1 or more cases, 0.3 to 10 mm")
    spacing = (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2]))
    stamp = json.dumps(
        {
            "version": FORMAT_VERSION, "signature": dataclasses.asdict(signature), "cases": cases,
            "seed": seed, "spacing_mm": spacing, "splits": dict(splits) if splits is not None else None,
        },
        sort_keys=True,
    )  # fmt: skip
    if _is_reusable(root, stamp):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        lacking = _left_out(signature, cases, np.random.default_rng([seed, cases]))
        job = partial(
            _write_case, folder=folder, signature=signature, seed=seed, spacing_mm=spacing, lacking=lacking
        )  # fmt: skip
        if workers > 1:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                list(pool.map(job, range(cases)))
        else:
            for index in range(cases):
                job(index)
        if splits is not None:
            _write_splits(folder / "cases.csv", signature, cases, splits)
        (folder / STAMP).write_text(stamp + "\n", encoding="utf-8")
        folder.chmod(0o755)
        os.rename(folder, root)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if _is_reusable(root, stamp):
            return
        raise


def _is_reusable(root: Path, stamp: str) -> bool:
    """Tells whether `root` is this very archive; removes a phantom of other parameters."""
    if not root.exists() or not any(root.iterdir()):
        return False
    if not (root / STAMP).is_file():
        raise UserError(str(root), "holds files that are no phantom", "choose another folder, or empty it")
    if (root / STAMP).read_text(encoding="utf-8").strip() == stamp:
        return True
    shutil.rmtree(root)
    return False


def _write_splits(path: Path, signature: SiteSignature, cases: int, splits: Mapping[str, str]) -> None:
    names = [case_name(signature, i) for i in range(cases)]
    if set(splits) != set(names):
        raise UserError("splits", sorted(splits), f"name each of {names[0]} to {names[-1]} once")
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "split", "site", "path"])
        rows.writerows([name, splits[name], signature.name, name] for name in names)
