"""One scan of a phantom patient: pose, deformation, painting, the site's habits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from core.organs.vocabulary import NINE
from simulations.phantom.body import Part, Patient, paint_body, soft_tissue
from simulations.phantom.head import brainstem, glands_and_jaw, metal_places, optics, skull
from simulations.phantom.neck import neck, spine
from simulations.phantom.shapes import Canvas, Field, make_canvas, paint


@dataclass(frozen=True)
class SiteSignature:
    """What makes one institution's scans and contours look different from another's.

    Attributes:
        name: first part of the case names.
        organs: organs that the site draws (TG-263).
        pcm_share: share of the cases whose pharyngeal constrictors are drawn, 0 to 1.
        missing: share of (case, organ) pairs not drawn, constrictors aside.
        offset_mm: drawing habit, mm outwards per organ ("" is the default for all others).
        jitter_mm: standard deviation of the outward offset between cases of the site.
        spacing_factor: voxel size (z, y, x) against the size asked for.
        fov_mm: width and depth of the scan.
        noise_hu: standard deviation of the noise.
        contrast_hu: enhancement of vessels (0 = without contrast medium).
        gain, shift_hu: the scanner's scale of soft tissue: HU * gain + shift inside the body.
        table, mask: whether the couch and a thermoplastic mask are in the picture.
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


def anatomy(patient: Patient) -> list[Part]:
    """Everything in the order in which it is painted; later parts cover earlier ones."""
    return [
        *soft_tissue(patient),
        *skull(patient),
        *brainstem(patient),
        *optics(patient),
        *spine(patient),
        *neck(patient),
        *glands_and_jaw(patient),
    ]


def _stretch(values: Field, count: int, axis: int) -> Field:
    """Interpolates an axis smoothly to `count` places between its first and last value."""
    knots = values.shape[axis]
    at = np.linspace(0.0, knots - 1.0, count)
    low = np.minimum(at.astype(np.int64), knots - 2)
    t = at - low
    t = (t * t * (3 - 2 * t)).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    out: Field = np.take(values, low + 1, axis)
    start: Field = np.take(values, low, axis)
    out -= start
    out *= t
    out += start
    return out


def _wave(
    size: Sequence[int],
    spacing_mm: Sequence[float],
    step_mm: float,
    sigma: float,
    rng: np.random.Generator,
) -> Field:
    """A smooth random field (Z, Y, X): normal values on a grid of `step_mm`, at most 2.2 sigma."""
    knots = [math.ceil(n * s / step_mm) + 1 for n, s in zip(size, spacing_mm, strict=True)]
    control = (sigma * rng.standard_normal(knots).clip(-2.2, 2.2)).astype(np.float32)
    return _stretch(_stretch(_stretch(control, size[2], 2), size[1], 1), size[0], 0)


def _pose(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """The patient's size, proportions and tilt of the head: a 3 x 3 matrix over x, y, z."""
    scale = np.clip(rng.normal(1.0, 0.035), 0.92, 1.08) * np.clip(
        rng.normal(1.0, 0.02, 3), 0.95, 1.05
    )
    pitch, roll, yaw = np.deg2rad(rng.normal(0.0, (4.0, 2.0, 2.5)).clip(-8, 8))
    turn = Rotation.from_euler("zxy", (yaw, pitch, roll)).as_matrix()
    return np.asarray(turn / scale[:, None], np.float64)


def _coordinates(
    size: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    top_mm: float,
    rng: np.random.Generator,
) -> tuple[Field, Field, Field]:
    """Patient coordinates (x, y, z) of each voxel: pose, proportions, a smooth deformation.

    Args:
        size: voxels (z, y, x).
        spacing_mm: (z, y, x).
        top_mm: height of the top slice above the ears.
        rng: decides the pose.
    """
    pose = _pose(rng)
    shift = rng.normal(0.0, (5.0, 4.0))
    neck, bend = 1 / rng.uniform(0.92, 1.1) - 1, rng.normal(0.0, 8.0, 2).clip(-14, 14)
    z = top_mm - np.arange(size[0])[::-1] * spacing_mm[0]
    y = (np.arange(size[1]) - (size[1] - 1) / 2) * spacing_mm[1] + shift[1]
    x = (np.arange(size[2]) - (size[2] - 1) / 2) * spacing_mm[2] + shift[0]
    below = (np.minimum(z + 40.0, 0.0) / 150.0) ** 2
    lean = (0.6 * bend[1] * below, bend[0] * below, 0.0 * below)
    fields = []
    for row, extra in zip(pose, lean, strict=True):
        out = _wave(size, spacing_mm, 55.0, 2.0, rng)
        out += (row[0] * x).astype(np.float32)
        out += (row[1] * y).astype(np.float32)[:, None]
        out += (row[2] * z + extra).astype(np.float32)[:, None, None]
        fields.append(out)
    fields[2] += np.float32(neck) * np.minimum(fields[2] + np.float32(40.0), 0.0)
    return fields[0], fields[1], fields[2]


def _streaks(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Adds metal fillings and their streaks, in the slices that hold them."""
    for px, py, pz in metal_places(patient):
        cx, cy, cz = canvas.coarse
        far = (cx - px) ** 2 + (cy - py) ** 2 + (cz - pz) ** 2
        nearest = int(np.argmin(far))
        if far.flat[nearest] > 250.0:
            continue
        row = int(canvas.places[0][np.unravel_index(nearest, far.shape)[0]])
        rows = slice(max(row - 1, 0), row + 2)
        dx, dy = canvas.x[rows] - px, canvas.y[rows] - py
        radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
        phase, power = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.6, 1.2)
        rays = sum(np.cos(k * angle + p) for k, p in zip((6, 11, 17), phase, strict=True))
        inside = canvas.image[rows] > -400.0
        canvas.image[rows] += np.where(inside, power * 90.0 * rays * np.exp(-radius / 45.0), 0.0)
        canvas.image[rows] = np.where(radius < 3.5, 2800.0, canvas.image[rows])


def _furniture(
    canvas: Canvas, signature: SiteSignature, spacing: Sequence[float], skin: Field
) -> None:
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
        for row, hu in [
            (first, -150.0),
            *((first + i, -920.0) for i in range(1, thick)),
            (first + thick, -150.0),
        ]:
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
        edge = habit + jitter * (0.4 if part.organ.startswith("Optic") else 1.0)
        if distance.min() < max(spacing) / 2:  # thinner than a slice: drawn on the nearest one
            edge = max(edge, float(distance.min()) + 0.8)
        drawn = distance < edge
        drawn &= skin[box] < 0.0
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
    outside = np.clip(0.5 + skin / np.float32(canvas.blur_mm), 0.0, 1.0)
    image += outside * (np.float32(-1000.0) - image)
    soft = (image > -300.0) & (image < 300.0)
    texture = _wave(image.shape, spacing, 9.0, 8.0, rng)
    image += np.where(soft, image * (signature.gain - 1) + signature.shift_hu + texture, 0.0)
    _furniture(canvas, signature, spacing, skin)
    _streaks(canvas, patient, rng)
    noise = rng.standard_normal(image.shape, np.float32)
    image += noise * np.where(skin < 6.0, np.float32(signature.noise_hu), np.float32(0))
