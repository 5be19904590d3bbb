"""Pictures of contours: 2-D crops round an organ in three planes, never a face (D20)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.data.cached_case import Entry
from core.data.grid import bounding_box, index_transform, patient_axes, turned
from core.identifiers import organ_name
from core.metrics.scores import CaseScore

Bools = npt.NDArray[np.bool_]
Colour = tuple[int, int, int]

MARGIN_MM, FRONT_MM = 18.0, 4.0  # shown about an organ, and in front of it: no skin of a face
LARGEST_MM = 140.0
PANEL, GAP = 220, 4  # pixels of a plane's picture, and between two
GREY_HU = (-160.0, 240.0)
TRUTH = (255, 255, 255)


@dataclass(frozen=True)
class Slice:
    """A slice round an organ: rows to posterior or inferior, columns to the left or posterior.

    Attributes:
        image: float32 (rows, columns) in HU, NaN where nothing is shown.
        truth: the site's own contour, bool (rows, columns).
        prediction: the network's.
        pixel_mm: height and width of a pixel.
    """

    image: npt.NDArray[np.float32]
    truth: Bools
    prediction: Bools
    pixel_mm: tuple[float, float]


def ranked(scores: Sequence[CaseScore], organ: str, count: int) -> dict[str, CaseScore]:
    """Of so many cases of an organ the scores by rank, from the worst Dice evenly to the best."""
    known = sorted((s for s in scores if s.organ == organ), key=lambda s: (s.dice, s.case))
    if not known or not count:
        return {}
    names = {0: "worst", len(known) - 1: "best"} if len(known) > 1 else {0: "only"}
    places = dict.fromkeys(round(i) for i in np.linspace(0, len(known) - 1, count))
    return {names.get(i, "median" if count == 3 else f"{i + 1}th"): known[i] for i in places}


def write_overlay(
    folder: Path,
    name: str,
    entry: Entry,
    prediction: Bools,
    organ: str,
    colour: Colour,
) -> Path:
    """Writes one picture: axial, coronal and sagittal slice, each where the true organ is largest.

    The true contour is white, the predicted one has the organ's colour; the image is the network's
    crop, blank `FRONT_MM` in front of the organ.

    Args:
        folder: where the picture goes; what lies there is kept.
        name: of the file, after a running number and the organ; never the case.
        entry: the prepared case, which annotates the organ.
        prediction: bool (Z, Y, X) on the CT's own grid.
        organ: which.
        colour: red, green, blue, 0 to 255.
    """
    from PIL import Image

    assert prediction.shape == entry.source.size, (prediction.shape, entry.source.size)
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((_number(path) for path in folder.glob("*.png")), default=0)
    path = folder / f"{number:03d}_{organ_name(organ)}_{name}.png"
    strip = np.zeros((PANEL, 3 * PANEL + 2 * GAP, 3), dtype=np.uint8)
    truth = entry.truth([organ])[organ]
    for axis in range(3):
        panel = _panel(cut(axis, entry, truth, prediction), colour)
        strip[:, axis * (PANEL + GAP) :][:, :PANEL] = panel
    Image.fromarray(strip).quantize(128).save(path, optimize=True)
    return path


def cut(axis: int, entry: Entry, truth: Bools, prediction: Bools) -> Slice:
    """Cuts the slice in which an organ is largest out of a case.

    Args:
        axis: across which: 0 gives an axial slice, 1 a coronal, 2 a sagittal one.
        entry: the prepared case.
        truth: original mask (Z, Y, X) of the organ, not empty.
        prediction: the same of the network.

    Returns:
        A square round the true organ with `MARGIN_MM` at the longer sides, at most `LARGEST_MM`
        high and wide.
    """
    source = entry.source
    spacing = [source.spacing_mm[a] for a in patient_axes(source)[0]]
    mask, drawn = turned(truth, source), turned(prediction, source)
    index = int(np.argmax(mask.sum(axis=tuple(a for a in range(3) if a != axis))))
    box = bounding_box(mask)
    assert box is not None
    plane = [a for a in range(3) if a != axis]
    extent = bounding_box(np.take(mask, [index], axis=axis)) or box
    edge_mm = max((extent[a].stop - extent[a].start) * spacing[a] for a in plane)
    edge_mm = min(edge_mm + 2 * MARGIN_MM, LARGEST_MM)
    window = [_around(extent[a], edge_mm / spacing[a], mask.shape[a]) for a in range(3)]
    window[axis] = slice(index, index + 1)
    image = _from_crop(entry, window)
    front = box[1].start - int(FRONT_MM / spacing[1]) - window[1].start
    image[:, : max(front, 0)] = np.nan
    upright = slice(None, None, 1 if axis == 0 else -1)  # superior at the top
    parts = [a[tuple(window)].squeeze(axis)[upright] for a in (mask, drawn)]
    pixel_mm = (spacing[plane[0]], spacing[plane[1]])
    return Slice(image.squeeze(axis)[upright], parts[0], parts[1], pixel_mm)


def _number(path: Path) -> int:
    """The running number at the start of a picture's name, 0 where there is none."""
    found = re.match(r"\d+", path.name)
    return int(found.group()) if found else 0


def _around(part: slice, length: float, size: int) -> slice:
    """So many voxels round the middle of the part, moved and cut to lie inside the array."""
    count = min(max(1, int(length)), size)
    low = min(max((part.start + part.stop - count) // 2, 0), size - count)
    return slice(low, low + count)


def _from_crop(entry: Entry, window: Sequence[slice]) -> npt.NDArray[np.float32]:
    """The voxels of a window of the CT, along the patient's axes, looked up in the crop, in HU."""
    order, flips = patient_axes(entry.source)
    places = np.meshgrid(*(np.arange(p.start, p.stop) for p in window), indexing="ij")
    index = np.empty((3, *places[0].shape))
    for axis, flip, values in zip(order, flips, places, strict=True):
        index[axis] = entry.source.size[axis] - 1 - values if flip else values
    matrix, start = index_transform(entry.source, entry.crop)
    points = np.einsum("ij,j...->i...", matrix, index) + start[:, None, None, None]
    grey: npt.NDArray[np.float32] = ndimage.map_coordinates(
        entry.image(), points, output=np.float32, order=1, mode="constant", cval=np.nan
    )
    return grey


def _panel(piece: Slice, colour: Colour) -> npt.NDArray[np.uint8]:
    """RGB (PANEL, PANEL): the slice, enlarged, with both contours."""
    edges_mm = [n * mm for n, mm in zip(piece.image.shape, piece.pixel_mm, strict=True)]
    size = [max(1, round(PANEL * edge / max(edges_mm))) for edge in edges_mm]
    low, high = GREY_HU
    grey = np.nan_to_num((np.clip(piece.image, low, high) - low) / (high - low) * 255)
    canvas = np.repeat(_enlarged(grey, size)[..., None], 3, axis=2).astype(np.uint8)
    masks = [_enlarged(m.astype(np.float32), size) > 0.5 for m in (piece.truth, piece.prediction)]
    lines = [mask & ~ndimage.binary_erosion(mask, iterations=2) for mask in masks]
    canvas[ndimage.binary_dilation(lines[0] | lines[1])] //= 3  # so that white shows on bone
    for line, tint in zip(lines, (TRUTH, colour), strict=True):
        canvas[line] = tint
    panel = np.zeros((PANEL, PANEL, 3), dtype=np.uint8)
    top, left = ((PANEL - n) // 2 for n in size)
    panel[top : top + size[0], left : left + size[1]] = canvas
    return panel


def _enlarged(values: npt.NDArray[Any], size: Sequence[int]) -> npt.NDArray[Any]:
    """Bilinear, the outer edges of the pixels on those of the result."""
    at = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(size, values.shape, strict=True)]
    grid = np.meshgrid(*at, indexing="ij")
    return np.asarray(ndimage.map_coordinates(values, grid, order=1, mode="nearest"))
