"""Is a CT one that a model can contour, and do its contours look like a patient's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from core.archives.contour_qa import errors_of, places_of
from core.archives.images.volume import Volume
from core.archives.preprocess import coarse_lps
from core.archives.roi import COARSE_MM, HEAD_MM, HEAD_WIDTH_MM, body_mask, head_slices
from core.data.geometry import Geometry
from core.errors import CaseError
from core.organs.volumes import VOLUME_ML
from core.plan.schema import Preprocess
from hnfed.predict.posture import doubts_of, posture_of

# Of 63 head-and-neck CTs none has less than 108 mm; cut off at the shoulders none has more than 16.
LEAST_MM = 40.0
COARSEST = 2.0
# A contour may be that much smaller or larger than the published range and still be an organ.
TOLERANCE = 3.0
FORCE = "--force contours it all the same, with the doubt in the files"


def require_suitable(
    image: npt.NDArray[Any], geometry: Geometry, settings: Preprocess, *, force: bool = False
) -> list[str]:
    """Refuses a CT that the model was not made for, or that lies as no patient does.

    A head and its neck are narrower than 220 mm over at least 40 of the body's uppermost 120 mm;
    shoulders, chest, abdomen and pelvis are not. The CT's voxels may be twice as large as those
    that the model was trained with.

    Args:
        image: (Z, Y, X) in HU.
        geometry: its grid.
        settings: the model's preprocessing.
        force: take it with its doubts, unless it cannot be contoured at all.

    Returns:
        The doubts, in words; [] where there is none.

    Raises:
        CaseError: ``E_SPACING`` or ``E_NO_BODY``; unless forced also ``E_POSTURE``
            (`hnfed.predict.posture`) or ``E_NOT_HEAD_NECK``.
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
    coarse = coarse_lps(image, geometry)[0]
    body = body_mask(coarse)
    levels = np.flatnonzero(body.any(axis=(1, 2)))
    remedy = "give a CT of head and neck"
    posture = posture_of(coarse, body)
    if posture is None:
        raise CaseError("E_NO_BODY", "image", "CT", remedy, problem="no body found in the CT")
    doubts = doubts_of(posture)
    if doubts and not force:
        mend = f"correct orientation and spacing in the file, or export it again; {FORCE}"
        raise CaseError("E_POSTURE", "image", "CT", mend, problem="; ".join(doubts))
    upper = body[: levels[-1] + 1][::-1][: round(HEAD_MM / COARSE_MM)]
    narrow = float(head_slices(upper, COARSE_MM).sum()) * COARSE_MM
    if narrow < LEAST_MM:
        problem = (
            f"no head: of the body's uppermost {HEAD_MM:g} mm, {narrow:.0f} mm are narrower than "
            f"{HEAD_WIDTH_MM:g} mm"
        )
        if not force:
            raise CaseError("E_NOT_HEAD_NECK", "image", "CT", f"{remedy}; {FORCE}", problem=problem)
        doubts.append(problem)
    return doubts


def doubts_by_organ(volume: Volume) -> dict[str, str]:
    """What is wrong with the size or place of predicted organs, in words, by organ.

    Args:
        volume: CT and masks; an organ that was not found has none.
    """
    places = places_of(volume)
    found = {f.organ: f.message for f in errors_of(volume, places)}
    for organ, place in places.items():
        known = VOLUME_ML.get(organ)
        if known and not known.low / TOLERANCE <= place.volume_ml <= known.high * TOLERANCE:
            text = f"{place.volume_ml:.3g} mL; {known.low:g} to {known.high:g} mL are plausible"
            found.setdefault(organ, text)
    return found


def implausible(doubts: Mapping[str, str], organs: Sequence[str]) -> str:
    """A warning where no contour has the size and place of its organ; "" otherwise.

    It does not refuse them: a model may be poor, and its CT sound.

    Args:
        doubts: from `doubts_by_organ`.
        organs: that were found; those whose size is not published are not judged.
    """
    judged = [organ for organ in organs if organ in VOLUME_ML]
    if organs and (len(judged) < len(organs) or set(judged) - doubts.keys()):
        return ""
    return "no organ of a plausible size and place; is it a CT of head and neck, in HU?"
