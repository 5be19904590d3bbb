"""Is a case what it says: sizes, sides, places and densities of its organs, size of the patient.

An error leaves an organ out wherever cases are prepared; a warning is told and nothing more.
Ranges and orders are those of `core.organs.volumes` and `core.archives.organ_positions`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.archives.hounsfield import clipped
from core.archives.images.volume import Volume
from core.archives.organ_positions import OFFSETS, ORDERS
from core.archives.roi import body_mask
from core.data.grid import affine, bounding_box
from core.errors import Finding
from core.organs.vocabulary import mirrored
from core.organs.volumes import VOLUME_ML

# What runs out of every neck scan at the bottom; a scan that starts low may cut the others.
OPEN_ENDED = ("SpinalCord", "Esophagus")
WRONG_SIDE_MM, WRONG_ORDER_MM, BEYOND_MM = 5.0, 8.0, 30.0
FAR_TOO_LARGE = 4.0
AIR_HU, AIR_SHARE = -500.0, 0.7
BONE_MEDIAN_HU, SOFT_MEDIAN_HU = 150.0, (-200.0, 250.0)
AIRWAY = ("Larynx", "Esophagus")
OVERLAP_SHARE = 0.3
# A thin organ on coarse voxels falls into pieces by itself: few voxels are not looked at.
LARGEST_PIECE, PIECE_VOXELS = 0.7, 200
PLANE_MM, SLICE_MM = 3.0, 6.0
HEAD_MM, HEAD_DIAMETER_MM = 120.0, (110.0, 260.0)
SCALE_ORGANS, SCALE_LIMIT = 4, 1.9

Mask = npt.NDArray[np.bool_]
AXIS_WORDS = (("left", "right"), ("posterior", "anterior"), ("above", "below"))


@dataclass(frozen=True)
class Place:
    """Size and place of one organ's mask: mL, centroid (x, y, z) in mm, extent along z in mm."""

    volume_ml: float
    centre_mm: tuple[float, float, float]
    extent_z_mm: float


def places_of(volume: Volume) -> dict[str, Place]:
    """Measures each mask of a case, in the patient's frame."""
    matrix, origin = affine(volume.geometry)
    found = {}
    for organ, mask in volume.masks.items():
        box = bounding_box(mask)
        assert box is not None, "an annotated organ has voxels"
        index = np.argwhere(mask[box]) + [b.start for b in box]
        x, y, z = matrix @ index.mean(axis=0) + origin
        ml = len(index) * volume.geometry.voxel_ml()
        levels = matrix[2] @ index.T
        extent = float(np.ptp(levels)) + volume.geometry.spacing_mm[0]
        found[organ] = Place(ml, (float(x), float(y), float(z)), extent)
    return found


def judge(volume: Volume, places: Mapping[str, Place] | None = None) -> list[Finding]:
    """Everything that is doubtful about one case that was read.

    Args:
        volume: the case.
        places: from `places_of`, where that was called already.
    """
    places = places_of(volume) if places is None else places
    return [*errors_of(volume, places), *_image(volume, places), *_masks(volume, places)]


def without_errors(volume: Volume) -> tuple[Volume, list[Finding]]:
    """Takes the organs out that are certainly wrong; returns the rest, and why."""
    findings = errors_of(volume, places_of(volume))
    wrong = {f.organ for f in findings}
    kept = {organ: mask for organ, mask in volume.masks.items() if organ not in wrong}
    return dataclasses.replace(volume, masks=kept), findings


def errors_of(volume: Volume, places: Mapping[str, Place]) -> list[Finding]:
    """Organs that are certainly not what they are called: one finding an organ."""
    found: dict[str, Finding] = {}

    def tell(organ: str, code: str, message: str, remedy: str) -> None:
        found.setdefault(organ, Finding(code, "error", volume.case, organ, message, remedy))

    for organ, other in itertools.combinations(volume.masks, 2):
        if np.array_equal(volume.masks[organ], volume.masks[other]):
            for one, two in ((organ, other), (other, organ)):
                tell(one, "E_LABEL_SAME", f"voxel for voxel the mask of {two}", _CONTOUR)
    for organ, place in places.items():
        known = VOLUME_ML.get(organ)
        if known and place.volume_ml > FAR_TOO_LARGE * known.high:
            text = f"{place.volume_ml:.0f} mL where at most {known.high:g} mL are plausible"
            tell(organ, "E_ORGAN_VOLUME", text, _CONTOUR)
        air = float((volume.image[volume.masks[organ]] < AIR_HU).mean())
        if air > AIR_SHARE:
            text = f"{air:.0%} of it lies in air"
            tell(organ, "E_LABEL_OFF_BODY", text, _EXPORT)
    for organ in sorted(_wrong_sides(places)):
        text = "lies on the other side of the patient"
        tell(organ, "E_ORGAN_SIDE", text, _SIDES)
    for organ, text in _wrong_order({o: p for o, p in places.items() if o not in found}).items():
        tell(organ, "E_ORGAN_PLACE", text, _NAMES)
    return list(found.values())


_CONTOUR = "look at the contour in the planning system; correct or remove it"
_EXPORT = "export CT and structures together again: they belong to different grids or scans"
_SIDES = "exchange the names, or correct the orientation of CT and structures"
_NAMES = "check the structure's name, and that the CT is not upside down or turned"


def _wrong_sides(places: Mapping[str, Place]) -> set[str]:
    """Paired organs on the wrong side of each other; a single one, of the organs in the middle."""
    wrong = set()
    middle = [p.centre_mm[0] for o, p in places.items() if mirrored(o) == o]
    for organ, place in places.items():
        other = mirrored(organ)
        if other == organ:
            continue
        sign = 1.0 if organ.endswith("_L") else -1.0
        if other in places:
            across = sign * (place.centre_mm[0] - places[other].centre_mm[0])
        elif middle:
            across = sign * (place.centre_mm[0] - float(np.median(middle)))
        else:
            continue
        if across < -WRONG_SIDE_MM:
            wrong.add(organ)
    return wrong


def _wrong_order(places: Mapping[str, Place]) -> dict[str, str]:
    """Organs that contradict gross anatomy: those in most contradictions, until none is left."""
    against: list[tuple[str, str, str, str]] = []
    for rule in ORDERS:
        if rule.larger in places and rule.smaller in places:
            gap = (
                places[rule.larger].centre_mm[rule.axis] - places[rule.smaller].centre_mm[rule.axis]
            )
            if gap < -WRONG_ORDER_MM:
                more, less = AXIS_WORDS[rule.axis]
                far = f"{-gap:.0f} mm"
                told = f"lies {far} {less} {rule.smaller}: it belongs {more} it"
                told_other = f"lies {far} {more} {rule.larger}: it belongs {less} it"
                against.append((rule.larger, rule.smaller, told, told_other))
    wrong: dict[str, str] = {}
    while against:
        count = {o: sum(o in pair[:2] for pair in against) for pair in against for o in pair[:2]}
        most = max(count.values())
        for organ in [o for o, n in count.items() if n == most]:
            wrong[organ] = next(p[2] if p[0] == organ else p[3] for p in against if organ in p[:2])
        against = [p for p in against if p[0] not in wrong and p[1] not in wrong]
    return wrong


def _image(volume: Volume, places: Mapping[str, Place]) -> list[Finding]:
    """Doubts about the CT: window, voxel size, size of the patient."""
    found = []

    def tell(code: str, message: str, remedy: str) -> None:
        found.append(Finding(code, "warning", volume.case, "", message, remedy))

    top = clipped(volume.image)
    if top is not None:
        tell("W_HU_CLIPPED", f"cut off at {top:g} HU: bone is lost", "export without a window")
    across = sorted(volume.geometry.spacing_mm)
    if across[1] > PLANE_MM or across[2] > SLICE_MM:
        shown = " x ".join(f"{mm:g}" for mm in volume.geometry.spacing_mm)
        text = f"voxels of {shown} mm (z, y, x): small organs are a few voxels"
        tell("W_SPACING_COARSE", text, "export the original series, not a resampled one")
    diameter = _head_diameter_mm(volume)
    low, high = HEAD_DIAMETER_MM
    if diameter is not None and not low <= diameter <= high:
        text = f"the head would be {diameter:.0f} mm wide; {low:g} to {high:g} mm are plausible"
        tell("W_SPACING", text, "correct the spacing in the file's header")
    sizes = [
        math.log(p.volume_ml / VOLUME_ML[o].typical)
        for o, p in places.items()
        if o in VOLUME_ML and o not in (*OPEN_ENDED, *AIRWAY)
    ]
    scale = math.exp(float(np.median(sizes))) if len(sizes) >= SCALE_ORGANS else 1.0
    if not 1 / SCALE_LIMIT <= scale <= SCALE_LIMIT and all(f.code != "W_SPACING" for f in found):
        text = f"all organs are about {scale:.2g} times as large as usual"
        tell("W_SPACING", text, "correct the spacing, above all the distance of slices")
    return found


def _head_diameter_mm(volume: Volume) -> float | None:
    """Diameter of a circle as large as the largest cross-section in the top 60 mm of the head.

    None where the scan is no stack of axial slices, or shows less than that of the body.
    """
    matrix, _ = affine(volume.geometry)
    if abs(matrix[2, 0]) < 0.9 * volume.geometry.spacing_mm[0]:
        return None
    steps = [max(1, round(4.0 / s)) for s in volume.geometry.spacing_mm]
    thin = volume.image[:: steps[0], :: steps[1], :: steps[2]]
    dz, dy, dx = (s * n for s, n in zip(volume.geometry.spacing_mm, steps, strict=True))
    body = body_mask(thin)
    levels = np.flatnonzero(body.any(axis=(1, 2)))
    if levels.size * dz < HEAD_MM:
        return None
    head = body[levels][::-1] if matrix[2, 0] > 0 else body[levels]
    filled = [ndimage.binary_fill_holes(level).sum() for level in head[: max(1, round(60 / dz))]]
    return 2.0 * math.sqrt(float(max(filled)) * dy * dx / math.pi)


def _masks(volume: Volume, places: Mapping[str, Place]) -> list[Finding]:
    """Doubts about each organ's contour."""
    found: list[Finding] = []

    def tell(organ: str, code: str, message: str, remedy: str = _CONTOUR) -> None:
        found.append(Finding(code, "warning", volume.case, organ, message, remedy))

    for organ, place in places.items():
        mask, known = volume.masks[organ], VOLUME_ML.get(organ)
        if known and not known.holds(place.volume_ml):
            text = f"{place.volume_ml:.3g} mL; {known.low:g} to {known.high:g} mL are plausible"
            tell(organ, "W_ORGAN_VOLUME", text)
        _shape(organ, mask, tell)
        median = float(np.median(volume.image[mask]))
        soft = SOFT_MEDIAN_HU[0] <= median <= SOFT_MEDIAN_HU[1]
        if organ == "Bone_Mandible" and median < BONE_MEDIAN_HU:
            tell(organ, "W_ORGAN_DENSITY", f"median {median:.0f} HU: no bone", _EXPORT)
        elif known and organ not in ("Bone_Mandible", *AIRWAY) and not soft:
            tell(organ, "W_ORGAN_DENSITY", f"median {median:.0f} HU: no soft tissue", _EXPORT)
    for one, other in itertools.combinations(volume.masks, 2):
        small, large = sorted((one, other), key=lambda o: places[o].volume_ml)
        both = np.count_nonzero(volume.masks[one] & volume.masks[other])
        share = float(both / np.count_nonzero(volume.masks[small]))
        if OVERLAP_SHARE < share < 1 or (share == 1 and places[small] != places[large]):
            tell(small, "W_ORGAN_OVERLAP", f"{share:.0%} of it lies in {large}")
    told = {f.organ for f in errors_of(volume, places)}
    for rule in OFFSETS:
        if {rule.organ, rule.reference} <= places.keys() - told:
            here, there = places[rule.organ].centre_mm, places[rule.reference].centre_mm
            for axis, (low, high) in enumerate((rule.x, rule.y, rule.z)):
                gap = here[axis] - there[axis]
                if not low - BEYOND_MM <= gap <= high + BEYOND_MM and rule.organ not in told:
                    more, less = AXIS_WORDS[axis]
                    text = f"lies {abs(gap):.0f} mm {more if gap > 0 else less} {rule.reference}"
                    tell(rule.organ, "W_ORGAN_PLACE", f"{text}; usual are {low:g} to {high:g} mm")
                    told.add(rule.organ)
    return found


def _shape(organ: str, mask: Mask, tell: Callable[[str, str, str, str], None]) -> None:
    """Cut at the edge of the scan, missing slices, loose pieces."""
    levels = np.flatnonzero(mask.any(axis=(1, 2)))
    touched = levels[0] == 0 or levels[-1] == mask.shape[0] - 1
    sides = np.asarray(mask.any(axis=0))
    in_plane = sides[0].any() or sides[-1].any() or sides[:, 0].any() or sides[:, -1].any()
    if in_plane or (touched and organ not in OPEN_ENDED):
        tell(organ, "W_ORGAN_TRUNCATED", "reaches the edge of the scan", _TRUNCATED)
    missing = int(levels[-1] - levels[0] + 1 - levels.size)
    if missing:
        tell(organ, "W_LABEL_GAPS", f"{missing} slices inside it have no contour", _CONTOUR)
        return
    box = bounding_box(mask)
    labels, pieces = ndimage.label(mask[box], np.ones((3, 3, 3)))
    if pieces > 1 and np.count_nonzero(mask) >= PIECE_VOXELS:
        share = float(np.bincount(labels.ravel())[1:].max() / np.count_nonzero(mask))
        if share < LARGEST_PIECE:
            tell(organ, "W_LABEL_PIECES", f"{pieces} pieces, the largest {share:.0%}", _CONTOUR)


_TRUNCATED = "nothing to do if the scan ends there; its volume and scores are of a part"
