"""A prepared case written to disk: its crop, its masks, and what was noticed on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.archives.deidentify import replaced
from core.archives.duplicates import image_digest
from core.archives.images.volume import Volume
from core.archives.masks import Shares, inside_fraction, prepare_masks, voxels_of
from core.archives.preprocess import prepare_image
from core.data.cache import Recipe
from core.data.cached_case import ARRAYS, FORMAT, read_json
from core.data.geometry import Geometry
from core.data.grid import bounding_box
from core.errors import Finding
from core.files import flush_folder, write_flushed
from core.provenance import versions

INSIDE_WARNING = 0.99
HALF = 128  # of a voxel, in 255ths


def write_entry(
    folder: Path,
    volume: Volume,
    findings: Sequence[Finding],
    recipe: Recipe,
    hidden: Collection[str],
    source: str,
) -> None:
    """Prepares a case and writes its files; the caller moves the folder into place.

    Args:
        folder: to make.
        volume: the case.
        findings: of reading it.
        recipe: how it is prepared.
        hidden: words of the archive (paths, names) that must not stand in the entry.
        source: SHA-256 of the files that it was made of.
    """
    organs, settings = recipe.organs, recipe.settings
    masks = {organ: mask for organ, mask in volume.masks.items() if organ in organs}
    crop_image, crop = prepare_image(volume.image, volume.geometry, settings)
    shares = prepare_masks(masks, volume.geometry, crop, organs)
    voxels = {o: voxels_of(shares[o]) if o in shares else 0 for o in masks}
    truth, packed = _pack(masks)
    table, flat = _joined(shares)
    notes = [*findings, *_crop_findings(masks, voxels, volume.geometry, crop)]
    folder.mkdir()
    arrays: tuple[npt.NDArray[Any], ...] = (crop_image, flat, packed)
    for name, array in zip(ARRAYS, arrays, strict=True):
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    made_of: dict[str, Any] = {
        "files": source,
        "image": image_digest(volume.image, volume.geometry),
    }
    made_of |= {**dataclasses.asdict(settings), "versions": versions()}
    meta = {
        "format": FORMAT,
        "made_of": made_of,
        "organs": list(organs),
        "annotated": [organ for organ in organs if organ in masks],
        "source": volume.geometry.as_json(),
        "crop": crop.as_json(),
        "voxels": voxels,
        "crop_voxels": int(crop_image.size),
        "overlap_voxels": _overlaps(shares, crop),
        "shares": table,
        "truth": truth,
        "bytes": {name: (folder / f"{name}.npy").stat().st_size for name in ARRAYS},
        "sha256": {name: _digest(folder / f"{name}.npy") for name in ARRAYS},
        "findings": [_scrubbed(note, hidden) for note in notes],
    }
    write_flushed(folder / "entry.json", json.dumps(meta, indent=1))
    flush_folder(folder)


def _pack(
    masks: Mapping[str, npt.NDArray[np.bool_]],
) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """Packs each mask's bounding box to bits, one after another."""
    pieces = {}
    for organ, mask in masks.items():
        box = bounding_box(mask)
        assert box is not None, "an annotated organ has voxels"
        pieces[organ] = box, np.packbits(mask[box])
    return _joined(pieces)


def _joined(pieces: Mapping[str, Shares]) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """What organs have in their boxes, one after another, and where each begins."""
    table: dict[str, Any] = {}
    first = 0
    for organ, (box, values) in pieces.items():
        table[organ] = {"first": first, "box": [[b.start, b.stop] for b in box]}
        first += values.size
    flat = [values.reshape(-1) for _, values in pieces.values()]
    return table, np.concatenate([np.zeros(0, dtype=np.uint8), *flat])


def _overlaps(shares: Mapping[str, Shares], crop: Geometry) -> int:
    """Voxels of which more than one organ claims half or more."""
    claims = np.zeros(crop.size, dtype=np.uint8)
    for box, values in shares.values():
        claims[box] += values >= HALF
    return int(np.count_nonzero(claims > 1))


def _crop_findings(
    masks: Mapping[str, npt.NDArray[np.bool_]],
    voxels: Mapping[str, int],
    source: Geometry,
    crop: Geometry,
) -> list[Finding]:
    """Says which organs the crop cuts or loses."""
    findings = []
    for organ, mask in masks.items():
        inside = inside_fraction(mask, source, crop)
        if voxels[organ] == 0:
            code, text = "W_ORGAN_NOT_IN_CROP", "no voxel in the network's crop"
        elif inside < INSIDE_WARNING:
            code, text = "W_ORGAN_CUT_BY_CROP", f"{inside:.1%} of it inside the network's crop"
        else:
            continue
        remedy = "enlarge preprocess.crop if many cases say so"
        findings.append(Finding(code, "warning", "", organ, text, remedy))
    return findings


def _scrubbed(finding: Finding, hidden: Collection[str]) -> dict[str, str]:
    """Returns a finding for the entry: no case, and no word of where the archive lies."""
    fields: dict[str, str] = dataclasses.asdict(finding)
    del fields["case"]
    return {k: replaced(v, hidden, lambda word: "(hidden)") for k, v in fields.items()}


def stored_findings(root: Path, line: Mapping[str, str]) -> list[Finding]:
    """Returns what was noticed when the entry was built."""
    meta = read_json(root / "entries" / line["key"] / "entry.json")
    return [Finding(case=line["case"], **fields) for fields in meta["findings"]]


def complete(folder: Path) -> bool:
    """Says whether an entry's files are all there, byte for byte as written."""
    try:
        meta = read_json(folder / "entry.json")
        sizes, digests = meta["bytes"], meta["sha256"]
        files = {name: folder / f"{name}.npy" for name in ARRAYS}
        return all(path.stat().st_size == sizes[name] for name, path in files.items()) and all(
            _digest(path) == digests[name] for name, path in files.items()
        )
    except (OSError, ValueError, KeyError, AssertionError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
