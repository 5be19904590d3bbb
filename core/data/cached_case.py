"""One prepared case on disk: its arrays, its geometry, its counts."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.data.geometry import Geometry
from core.data.grid import Box
from core.errors import UserError
from core.plan.schema import Phase, Plan
from core.wire.partition import seed_of

# Raise it with every change of what an entry holds: resampling and region of interest included.
FORMAT = 4
ARRAYS = ("image", "shares", "truth")


@dataclass(frozen=True)
class Entry:
    """One prepared case.

    Attributes:
        case: case id; stays at the site.
        split: train, val or test.
        folder: where the arrays lie.
        organs: organs of the plan, in its order.
        annotated: organs with a mask in this case; the others are unknown here, not absent.
        source: the CT's own grid.
        crop: the network's grid.
        voxels: volume in the crop of each annotated organ in voxels, overlaps not resolved.
        crop_voxels: voxels of the crop.
        overlap_voxels: voxels of the crop of which more than one organ claims half or more.
        image_sha256: `core.archives.duplicates.image_digest` of the CT: equal in two cases of one
            CT.
    """

    case: str
    split: str
    folder: Path
    organs: tuple[str, ...]
    annotated: frozenset[str]
    source: Geometry
    crop: Geometry
    voxels: Mapping[str, int]
    crop_voxels: int
    overlap_voxels: int
    image_sha256: str = ""

    def image(self) -> npt.NDArray[np.int16]:
        """Returns the crop (Z, Y, X) in HU, mapped from disk and read-only."""
        return _load(self.folder / "image.npy", np.int16)

    def shares(self, organs: Collection[str]) -> dict[str, tuple[Box, npt.NDArray[np.uint8]]]:
        """Returns organ -> box of the crop, and the organ's share of each voxel in it, in 255ths.

        Outside of its box an organ has no share; one without a voxel in the crop is left out.
        """
        flat = _load(self.folder / "shares.npy", np.uint8)
        return {organ: (box, flat[i : i + math.prod(shape)].reshape(shape))
                for organ, box, shape, i in self._boxes("shares") if organ in organs}  # fmt: skip

    def truth(self, organs: Collection[str] | None = None) -> dict[str, npt.NDArray[np.bool_]]:
        """Returns organ -> original mask (Z, Y, X) on the CT's own grid.

        Args:
            organs: the organs wanted; all annotated ones by default.
        """
        packed = _load(self.folder / "truth.npy", np.uint8)
        masks = {}
        for organ, box, shape, first in self._boxes("truth"):
            if organs is not None and organ not in organs:
                continue
            size = math.prod(shape)
            piece = np.unpackbits(packed[first : first + -(-size // 8)], count=size)
            masks[organ] = np.zeros(self.source.size, dtype=np.bool_)
            masks[organ][box] = piece.reshape(shape).astype(np.bool_)
        return masks

    def _boxes(self, array: str) -> Iterator[tuple[str, Box, tuple[int, ...], int]]:
        """Of each organ in an array: its box, the box's shape, and where its values begin."""
        for organ, item in read_json(self.folder / "entry.json")[array].items():
            z, y, x = (slice(a, b) for a, b in item["box"])
            yield organ, (z, y, x), tuple(b - a for a, b in item["box"]), item["first"]


def annotating(entries: Sequence[Entry], organ: str) -> list[Entry]:
    """The cases that annotate an organ; [] where none of them has a voxel of it in its crop."""
    cases = [entry for entry in entries if organ in entry.annotated]
    return cases if any(entry.voxels.get(organ, 0) for entry in cases) else []


def open_entry(root: Path, line: Mapping[str, str], organs: Sequence[str]) -> Entry:
    """Opens the entry that a line of the index names. Raises ValueError where it does not fit."""
    folder = root / "entries" / line["key"]
    meta = read_json(folder / "entry.json")
    if meta["format"] != FORMAT or meta["organs"] != list(organs):
        raise ValueError(f"entry {line['key']} is of another format")
    return Entry(
        case=line["case"],
        split=line["split"],
        folder=folder,
        organs=tuple(meta["organs"]),
        annotated=frozenset(meta["annotated"]),
        source=Geometry.of_json(meta["source"]),
        crop=Geometry.of_json(meta["crop"]),
        voxels={organ: int(n) for organ, n in meta["voxels"].items()},
        crop_voxels=int(meta["crop_voxels"]),
        overlap_voxels=int(meta["overlap_voxels"]),
        image_sha256=str(meta["made_of"]["image"]),
    )


def _load(path: Path, dtype: type[Any]) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        remedy = f"delete the folder {path.parent.name} and prepare the archive again"
        raise UserError("cache", path, remedy, problem=f"damaged ({error})") from error
    assert array.dtype == dtype, (path.name, array.dtype)
    return array


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object."""
    value = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(value, dict), path.name
    return value


def cases_of(entries: Sequence[Entry], plan: Plan, phase: Phase, split: str) -> list[Entry]:
    """The cases of a split that annotate an organ of the phase.

    With `phase.max_cases` only so many training cases, those with most of the organs first and
    then by a seeded draw, so that a smaller number is always a part of a larger one.

    Args:
        entries: prepared cases, of any split.
        plan: gives the seed.
        phase: gives the organs and `max_cases`.
        split: train, val or test.
    """
    wanted = set(phase.organs)
    found = [e for e in entries if e.split == split and e.annotated & wanted]
    if split != "train" or phase.max_cases is None:
        return found
    ranked = sorted(
        found,
        key=lambda e: (-len(e.annotated & wanted), seed_of(plan.seed, "max_cases", e.case)),
    )
    chosen = {e.case for e in ranked[: phase.max_cases]}
    return [e for e in found if e.case in chosen]
