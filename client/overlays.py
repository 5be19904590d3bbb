"""Pictures of contours: truth beside prediction in 2-D crops round an organ, never a face (D20)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.data.cached_case import Entry
from core.data.geometry import Geometry
from core.data.grid import bounding_box, index_transform
from core.identifiers import organ_name
from core.metrics.scores import dice

Bools = npt.NDArray[np.bool_]
Colour = tuple[int, int, int]

MARGIN_MM = 18.0
LARGEST_MM = 140.0
ROWS = 6  # pictures of a case at most
GREY_HU = (-160.0, 240.0)
BACKGROUND = "#14171c"


@dataclass(frozen=True)
class Slice:
    """One axial slice round an organ, rows from anterior to posterior, patient's left at the right.

    Attributes:
        image: float32 (rows, columns) in HU, NaN where there is no image.
        truth: contours to draw, bool (rows, columns) by organ.
        prediction: the same of the prediction.
        pixel_mm: height and width of a pixel.
    """

    image: npt.NDArray[np.float32]
    truth: Mapping[str, Bools]
    prediction: Mapping[str, Bools]
    pixel_mm: tuple[float, float]


def write_overlays(
    folder: Path,
    entry: Entry,
    labelmap: npt.NDArray[np.uint8],
    organs: Sequence[str],
    colours: Mapping[str, Colour],
) -> list[Path]:
    """Writes one picture an organ: the CT with true contours beside the CT with predicted ones.

    The slice is the axial one where the true organ is largest, with the network's crop as image. Of
    more than `ROWS` organs so many are drawn, evenly from the worst Dice to the best. File names
    are a running number and the organ, without the case.

    Args:
        folder: where the pictures go; what lies there is kept.
        entry: the prepared case.
        labelmap: uint8 (Z, Y, X) on the CT's own grid, i + 1 = `organs[i]`.
        organs: organs of the phase; those that the case annotates are drawn.
        colours: red, green, blue (0 to 255) by organ; others are white.

    Returns:
        The files, in the order of `organs`.
    """
    assert labelmap.shape == entry.source.size, (labelmap.shape, entry.source.size)
    truth = entry.truth(organs)
    scores = {o: dice(labelmap == i + 1, truth[o]) for i, o in enumerate(organs) if o in truth}
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((_number(path) for path in folder.glob("*.png")), default=0)
    paths = []
    for organ in _chosen(scores):
        piece = cut(organ, entry, labelmap, truth, organs)
        path = folder / f"{number:03d}_{organ_name(organ)}.png"
        missed = not (labelmap == organs.index(organ) + 1).any()
        _draw(path, piece, organ, scores[organ], missed, colours)
        paths.append(path)
        number += 1
    return paths


def cut(
    organ: str,
    entry: Entry,
    labelmap: npt.NDArray[np.uint8],
    truth: Mapping[str, Bools],
    organs: Sequence[str],
) -> Slice:
    """Cuts the slice of one organ out of a case.

    Args:
        organ: which.
        entry: the prepared case.
        labelmap: as of `write_overlays`.
        truth: original masks (Z, Y, X) of the annotated organs on the same grid.
        organs: organs of the phase.

    Returns:
        A square round the true organ with `MARGIN_MM` at the longer sides, at most `LARGEST_MM`
        high and wide.
    """
    order, flips = _axes(entry.source)
    spacing = tuple(entry.source.spacing_mm[axis] for axis in order)
    mask = _turned(truth[organ], order, flips)
    index = int(np.argmax(mask.sum(axis=(1, 2))))
    box = bounding_box(mask[index][None])
    assert box is not None
    extent = (p.stop - p.start for p in box[1:])
    edge_mm = max(n * mm for n, mm in zip(extent, spacing[1:], strict=True)) + 2 * MARGIN_MM
    edge_mm = min(edge_mm, LARGEST_MM)
    window = (
        index,
        _around(box[1], edge_mm / spacing[1], mask.shape[1]),
        _around(box[2], edge_mm / spacing[2], mask.shape[2]),
    )
    label = _turned(labelmap, order, flips)[window]
    others = {name: _turned(array, order, flips)[window] for name, array in truth.items()}
    return Slice(
        image=_from_crop(entry, order, flips, window),
        truth={name: others[name] for name in organs if name in others and others[name].any()},
        prediction={n: label == i + 1 for i, n in enumerate(organs) if (label == i + 1).any()},
        pixel_mm=(spacing[1], spacing[2]),
    )


def _number(path: Path) -> int:
    """The running number at the start of a picture's name, 0 where there is none."""
    found = re.match(r"\d+", path.name)
    return int(found.group()) if found else 0


def _chosen(scores: Mapping[str, float]) -> list[str]:
    """At most `ROWS` organs, evenly from the worst to the best score, in the given order."""
    ranked = sorted(scores, key=lambda organ: scores[organ])
    if len(ranked) > ROWS:
        ranked = [ranked[round(i)] for i in np.linspace(0, len(ranked) - 1, ROWS)]
    return [organ for organ in scores if organ in ranked]


def _axes(geometry: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Array axes that run along z, y, x of the patient, and which of them run backwards."""
    direction = np.array(geometry.direction).reshape(3, 3)[::-1, ::-1]
    order: list[int] = []
    for row in np.abs(direction):
        order.append(next(int(i) for i in np.argsort(-row) if i not in order))
    flips = [bool(direction[i, axis] < 0) for i, axis in enumerate(order)]
    return (order[0], order[1], order[2]), (flips[0], flips[1], flips[2])


def _turned(
    array: npt.NDArray[Any], order: Sequence[int], flips: Sequence[bool]
) -> npt.NDArray[Any]:
    """A view of the array with axes superior, posterior, left."""
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    return np.transpose(array, order)[steps]


def _around(part: slice, length: float, size: int) -> slice:
    """So many voxels round the middle of the part, moved and cut to lie inside the array."""
    count = min(max(1, int(length)), size)
    low = min(max((part.start + part.stop - count) // 2, 0), size - count)
    return slice(low, low + count)


def _from_crop(
    entry: Entry, order: Sequence[int], flips: Sequence[bool], window: tuple[int, slice, slice]
) -> npt.NDArray[np.float32]:
    """The slice (rows, columns) in HU, looked up in the network's crop."""
    parts = (slice(window[0], window[0] + 1), *window[1:])
    turned = np.meshgrid(*(np.arange(p.start, p.stop) for p in parts), indexing="ij")
    index = np.empty((3, *turned[0].shape))
    for axis, flip, values in zip(order, flips, turned, strict=True):
        index[axis] = entry.source.size[axis] - 1 - values if flip else values
    matrix, start = index_transform(entry.source, entry.crop)
    points = np.einsum("ij,j...->i...", matrix, index) + start[:, None, None, None]
    grey = ndimage.map_coordinates(
        entry.image(), points, output=np.float32, order=1, mode="constant", cval=np.nan
    )
    return np.asarray(grey[0], dtype=np.float32)


def _draw(
    path: Path,
    piece: Slice,
    organ: str,
    score: float,
    missed: bool,
    colours: Mapping[str, Colour],
) -> None:
    """Draws both halves of a picture, in the same place for every size of organ."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 2.88), dpi=110, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    verdict = "missed, Dice 0" if missed else f"Dice {score:.2f}"
    figure.text(0.014, 0.925, organ, color="white", size=10, weight="bold")
    figure.text(0.986, 0.925, verdict, color="white", size=10, ha="right")
    figure.text(0.014, 0.845, "truth", color="#aab3bc", size=8)
    figure.text(0.506, 0.845, "prediction", color="#aab3bc", size=8)
    for column, masks in enumerate((piece.truth, piece.prediction)):
        axes = figure.add_axes((0.012 + 0.492 * column, 0.012, 0.484, 0.816))
        axes.set_facecolor("black")
        axes.set_xticks([])
        axes.set_yticks([])
        height, width = piece.image.shape
        aspect = piece.pixel_mm[0] / piece.pixel_mm[1]
        axes.imshow(piece.image, cmap="gray", vmin=GREY_HU[0], vmax=GREY_HU[1], aspect=aspect)
        for name, mask in masks.items():
            colour = tuple(value / 255 for value in colours.get(name, (255, 255, 255)))
            line = 1.6 if name == organ else 0.7
            padded = np.pad(mask, 1).astype(np.float32)
            rows, columns = np.arange(-1, height + 1), np.arange(-1, width + 1)
            axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=line)
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
    figure.savefig(path, facecolor=BACKGROUND, metadata={"Software": None})
