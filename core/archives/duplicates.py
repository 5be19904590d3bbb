"""The same CT under two ids: which of them is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from core.data.geometry import Geometry
from core.errors import Finding
from core.plan.schema import SPLITS

TRAINED_ON = "trained_on"  # of a checkpoint's JSON: `image_digest` of each CT


def image_digest(image: npt.NDArray[Any], geometry: Geometry) -> str:
    """SHA-256 of a CT's voxels (Z, Y, X) in whole HU and voxel size in whole micrometres.

    Wherever its origin lies, and whatever format holds it: a copy may have floats, and a voxel size
    that was rounded to some digits.
    """
    spacing = tuple(round(1000 * float(s)) for s in geometry.spacing_mm)
    digest = hashlib.sha256(repr((image.shape, spacing)).encode())
    whole = image if image.dtype == np.int16 else np.rint(image).clip(-32768, 32767)
    digest.update(np.ascontiguousarray(whole, dtype="<i2").data)
    return digest.hexdigest()


def trained_on(meta: Mapping[str, Any]) -> frozenset[str]:
    """Digests of the CTs that a model was trained or chosen on; empty where it does not say."""
    return frozenset(str(digest) for digest in meta.get(TRAINED_ON, ()))


def copies_of(images: Mapping[str, str], splits: Mapping[str, str]) -> list[Finding]:
    """A finding for each case whose CT is, voxel for voxel, that of another one which is kept.

    Of copies in several splits the one in test is kept, else the one in val, so that no tested
    patient was trained on; else the first by id.

    Args:
        images: `image_digest` by case id; "" where there is none.
        splits: split by case id, where known.
    """
    found = []
    kept: dict[str, str] = {}
    for case in sorted((c for c in images if images[c]), key=lambda c: _rank(c, splits)):
        first = kept.setdefault(images[case], case)
        if first != case:
            here, there = splits.get(case), splits.get(first)
            where = f" (this one in {here}, that one in {there})" if here != there else ""
            message = f"its CT is that of another case, voxel for voxel{where}"
            remedy = "remove one of the two"
            found.append(Finding("E_DUPLICATE", "error", case, "", message, remedy))
    return found


def _rank(case: str, splits: Mapping[str, str]) -> tuple[int, str]:
    split = splits.get(case)
    return (-SPLITS.index(split) if split in SPLITS else 1, case)
