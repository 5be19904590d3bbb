"""Is a CT one that a model can contour: head and neck, and fine enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from core.data.preprocess import coarse_lps
from core.data.roi import COARSE_MM, HEAD_MM, HEAD_WIDTH_MM, body_mask, head_slices
from core.data.volume import Geometry
from core.errors import CaseError
from core.organ_volumes import VOLUME_ML
from core.plan import Preprocess

# Of 63 head-and-neck CTs none has less than 108 mm; cut off at the shoulders none has more than 16.
LEAST_MM = 40.0
COARSEST = 2.0
# A contour may be that much smaller or larger than the published range and still be an organ.
TOLERANCE = 3.0


def require_suitable(image: npt.NDArray[Any], geometry: Geometry, settings: Preprocess) -> None:
    """Refuses a CT that the model was not made for.

    A head and its neck are narrower than 220 mm over at least 40 of the body's uppermost 120 mm;
    shoulders, chest, abdomen and pelvis are not. The CT's voxels may be twice as large as those
    that the model was trained with.

    Args:
        image: (Z, Y, X) in HU.
        geometry: its grid.
        settings: the model's preprocessing.

    Raises:
        CaseError: ``E_NOT_HEAD_NECK``, ``E_SPACING``, or ``E_NO_BODY``.
    """
    matrix = np.abs(np.array(geometry.direction).reshape(3, 3))
    # Voxel size along the patient's axes (x, y, z).
    along = (matrix * np.array(geometry.spacing_mm[::-1])).max(axis=1)[::-1]
    if (along > COARSEST * np.array(settings.spacing_mm) + 1e-3).any():
        shown = " x ".join(f"{v:.3g}" for v in along)
        wanted = " x ".join(f"{v:.3g}" for v in settings.spacing_mm)
        problem = f"voxels of {shown} mm (z, y, x); the model was trained at {wanted} mm"
        remedy = "give a finer reconstruction of the scan"
        raise CaseError("E_SPACING", "image", "CT", remedy, problem=problem)
    body = body_mask(coarse_lps(image, geometry)[0])
    levels = np.flatnonzero(body.any(axis=(1, 2)))
    remedy = "give a CT of head and neck"
    if levels.size == 0:
        raise CaseError("E_NO_BODY", "image", "CT", remedy, problem="no body found in the CT")
    upper = body[: levels[-1] + 1][::-1][: round(HEAD_MM / COARSE_MM)]
    narrow = float(head_slices(upper, COARSE_MM).sum()) * COARSE_MM
    if narrow < LEAST_MM:
        problem = (
            f"no head: of the body's uppermost {HEAD_MM:g} mm, {narrow:.0f} mm are narrower than "
            f"{HEAD_WIDTH_MM:g} mm"
        )
        raise CaseError("E_NOT_HEAD_NECK", "image", "CT", remedy, problem=problem)


def implausible(volumes_ml: Mapping[str, float]) -> str:
    """A warning where no contour has the size of its organ; else "".

    That is within a third of the smallest and three times the largest published volume.

    Args:
        volumes_ml: volume of each organ as predicted, 0 where it was not found.
    """
    known = {organ: ml for organ, ml in volumes_ml.items() if organ in VOLUME_ML}
    for organ, ml in known.items():
        if VOLUME_ML[organ].low / TOLERANCE <= ml <= VOLUME_ML[organ].high * TOLERANCE:
            return ""
    return "no organ of a plausible size; is it a CT of head and neck, in HU?" if known else ""
