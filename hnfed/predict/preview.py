"""One HTML page a CT: its slices in three planes, the predicted contours, uncertain slices marked.

The page opens from disk: voxels, contours and script are inside it, and its content security policy
forbids every request. Soft tissue outside the organs' box, in front of it and under the skin of the
face is made air before it is written, so no face can be rendered from the page. It is no means of
anonymisation: teeth and bones stay, and so does the name of the case.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from scipy import ndimage

from core.archives.preprocess import AIR_HU
from core.archives.roi import COARSE_MM, body_mask
from core.data.grid import affine, bounding_box, grow, patient_axes, turned
from core.organs.vocabulary import BUILT_IN
from hnfed.predict.contours import OTHER_COLOUR, Contours
from hnfed.predict.inference import Doubt
from hnfed.report.page import page

ENDING = ".preview.html"
MOST_VOXELS = 512 * 512 * 200
MOST_BYTES = 39_000_000  # of voxels and contours as text; the rest of the page is below 100 kB
BONE_HU = 200.0
MARGIN_MM = 20.0  # about the organs' box, to all sides but the front
SKIN_MM = 15.0  # hidden behind the front of the body
# Grey levels: 2 HU in soft tissue, coarser in air and bone, so that one byte a voxel is enough.
CODES, CODED_HU = (0.0, 20.0, 220.0, 255.0), (-1024.0, -200.0, 200.0, 3000.0)

Image = npt.NDArray[Any]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scan:
    """A CT and its contours, with axes to superior, posterior and the patient's left.

    Attributes:
        image: (Z, Y, X) in HU.
        labels: uint8 (Z, Y, X), i + 1 = organ i.
        spacing_mm: (z, y, x).
        z_mm: of the slices' centres, in the patient.
    """

    image: Image
    labels: Labels
    spacing_mm: tuple[float, float, float]
    z_mm: npt.NDArray[np.float64]

    def halved(self) -> Scan:
        """The same with half as many rows and columns, or slices where those are few already."""
        thin = self.image.shape[1] * self.image.shape[2] <= 256 * 256
        steps = (2, 1, 1) if thin else (1, 2, 2)
        size = [n - n % s for n, s in zip(self.image.shape, steps, strict=True)]
        whole = self.image[: size[0], : size[1], : size[2]].astype(np.float32)
        blocks = whole.reshape([v for n, s in zip(size, steps, strict=True) for v in (n // s, s)])
        spacing = [mm * s for mm, s in zip(self.spacing_mm, steps, strict=True)]
        return Scan(
            blocks.mean(axis=(1, 3, 5)),
            self.labels[: size[0] : steps[0], : size[1] : steps[1], : size[2] : steps[2]],
            (spacing[0], spacing[1], spacing[2]),
            self.z_mm[: size[0]].reshape(-1, steps[0]).mean(axis=1),
        )


def preview(
    image: Image, drawn: Contours, doubts: Sequence[Doubt], *, doubt_mm: float, with_face: bool
) -> str:
    """Makes the page.

    Args:
        image: (Z, Y, X) in HU on the CT's own grid.
        drawn: its contours.
        doubts: slices in which the model is not sure.
        doubt_mm: thickness of these slices, that of the network's crop.
        with_face: keeps the soft tissue that is masked else.

    Returns:
        HTML, at most 40 MB. A larger CT is shown with fewer voxels, and the page says so.
    """
    scan = scan_of(image, drawn)
    full = scan.image.shape
    if not with_face:
        scan = replace(scan, image=without_face(scan))
    while scan.image.size > MOST_VOXELS:
        scan = scan.halved()
    voxels, contours = _packed(coded(scan.image)), _packed(scan.labels)
    while len(voxels) + len(contours) > MOST_BYTES:
        scan = scan.halved()
        voxels, contours = _packed(coded(scan.image)), _packed(scan.labels)
    script = Path(__file__).with_name("preview.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    facts = {
        "size": scan.image.shape,
        "spacing": scan.spacing_mm,
        "z_mm": [round(float(z), 2) for z in scan.z_mm],
        "hu": [round(float(v), 1) for v in np.interp(np.arange(256), CODES, CODED_HU)],
        "organs": organs_of(drawn, scan, doubts, doubt_mm),
    }
    content = {
        "case": drawn.case,
        "model": drawn.model,
        "doubt": drawn.doubt,
        "organs": facts["organs"],
        "with_face": with_face,
        "full": full,
        "shown": scan.image.shape,
        "spacing": scan.spacing_mm,
        "facts": Markup(json.dumps(facts, allow_nan=False).replace("<", "\\u003c")),
        "voxels": Markup(voxels),
        "contours": Markup(contours),
        "script": Markup(script),
        "digest": digest,
    }
    return page(Path(__file__).with_name("preview.html.j2"), content)


def scan_of(image: Image, drawn: Contours) -> Scan:
    """A CT and its contours along the patient's axes; a tilted grid is shown as it lies."""
    geometry = drawn.geometry
    order, flips = patient_axes(geometry)
    matrix, origin = affine(geometry)
    index = (np.array(geometry.size)[:, None] - 1) / 2 * np.ones(geometry.size[order[0]])
    levels = np.arange(geometry.size[order[0]], dtype=float)
    index[order[0]] = levels[::-1] if flips[0] else levels
    spacing = [geometry.spacing_mm[axis] for axis in order]
    return Scan(
        turned(image, geometry),
        turned(drawn.labels, geometry),
        (spacing[0], spacing[1], spacing[2]),
        (matrix @ index + origin[:, None])[2],
    )


def without_face(scan: Scan) -> Image:
    """The CT with air instead of soft tissue outside the organs' box and at the face.

    What stays: bone, the organs, and within their box (with `MARGIN_MM` to all sides but the front)
    what lies more than `SKIN_MM` behind the front of the body.
    """
    image, labels = scan.image, scan.labels
    shown = np.where(image >= BONE_HU, image, image.dtype.type(AIR_HU))
    box = bounding_box(labels > 0)
    if box is None:
        return shown
    margin = [math.ceil(MARGIN_MM / mm) for mm in scan.spacing_mm]
    sides = [grow(box, m, image.shape)[axis] for axis, m in enumerate(margin)]
    inside = (sides[0], slice(box[1].start, sides[1].stop), sides[2])
    shown[inside] = image[inside]
    steps = [max(1, int(COARSE_MM / mm)) for mm in scan.spacing_mm]
    body = body_mask(image[:: steps[0], :: steps[1], :: steps[2]])
    first = np.where(body.any(axis=1), body.argmax(axis=1), body.shape[1])
    behind = ndimage.maximum_filter(first, size=3) * steps[1] + SKIN_MM / scan.spacing_mm[1]
    rows = np.arange(image.shape[1])[:, None]
    columns = np.arange(image.shape[2]) // steps[2]
    for z in range(image.shape[0]):
        skin = (rows < behind[z // steps[0]][columns]) & (image[z] < BONE_HU) & (labels[z] == 0)
        shown[z][skin] = AIR_HU
    return shown


def coded(image: Image) -> npt.NDArray[np.uint8]:
    """HU as one byte a voxel, finest where soft tissue lies."""
    low, high = round(CODED_HU[0]), round(CODED_HU[-1])
    table = np.rint(np.interp(np.arange(low, high + 1), CODED_HU, CODES)).astype(np.uint8)
    codes: npt.NDArray[np.uint8] = table[np.rint(np.clip(image, low, high)).astype(np.int32) - low]
    return codes


def organs_of(
    drawn: Contours, scan: Scan, doubts: Sequence[Doubt], doubt_mm: float
) -> list[dict[str, Any]]:
    """By organ: name, colour, mL, the slice where it is largest, uncertain slices, a remark."""
    counts = np.bincount(drawn.labels.reshape(-1), minlength=len(drawn.organs) + 1)
    found = []
    for value, organ in enumerate(drawn.organs, start=1):
        levels = (scan.labels == value).sum(axis=(1, 2))
        sure: dict[int, float] = {}
        for doubt in (d for d in doubts if d.organ == organ):
            away = np.abs(scan.z_mm - doubt.z_mm)
            near = np.flatnonzero((away <= doubt_mm / 2) & (levels > 0))
            for level in near if near.size else [int(away.argmin())]:
                sure[int(level)] = min(doubt.probability, sure.get(int(level), 1.0))
        known = BUILT_IN.get(organ)
        note = str(drawn.notes.get(organ, ""))
        found.append(
            {
                "name": organ,
                "colour": "#%02x%02x%02x" % (OTHER_COLOUR if known is None else known.colour),
                "ml": round(float(counts[value]) * drawn.geometry.voxel_ml(), 2),
                "level": int(levels.argmax()),
                "uncertain": [[k, round(p, 3)] for k, p in sorted(sure.items())],
                "doubt": note.partition("; uncertain at")[0] if "doubtful" in note else "",
            }
        )
    return found


def _packed(array: npt.NDArray[np.uint8]) -> str:
    data = gzip.compress(np.ascontiguousarray(array).tobytes(), compresslevel=6, mtime=0)
    return base64.b64encode(data).decode("ascii")
