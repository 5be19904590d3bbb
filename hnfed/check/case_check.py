"""One case of an archive, read and judged; of its voxels only a small fingerprint is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.archives.archive import Archive, CaseRef, read_case
from core.archives.contour_qa import Place, judge, places_of
from core.archives.duplicates import image_digest
from core.archives.preprocess import prepare_image
from core.errors import CaseError, Finding
from core.plan.schema import Preprocess

FINGERPRINT = Preprocess([12.0, 12.0, 12.0], [16, 14, 16])


@dataclass(frozen=True)
class CaseFacts:
    """What one case has to say about itself; no voxel of it is kept.

    Attributes:
        case: its id.
        places: size and place of each organ that can be used.
        findings: of this case alone.
        image: `core.archives.duplicates.image_digest`; "" where the image cannot be read.
        fingerprint: the CT at 12 mm, to find the same scan in another export; or None.
    """

    case: str
    places: Mapping[str, Place]
    findings: tuple[Finding, ...]
    image: str = ""
    fingerprint: npt.NDArray[np.int16] | None = None


def examine(archive: Archive, organs: Sequence[str], ref: CaseRef) -> CaseFacts:
    """Reads one case and judges it; whatever is wrong with it is a finding."""
    try:
        volume, found = read_case(archive, ref, organs)
        small, _ = prepare_image(volume.image, volume.geometry, FINGERPRINT)
    except CaseError as error:
        message = f"{error.field}: {error.problem or error.value}"
        finding = Finding(error.code, "error", ref.case, "", message, error.remedy)
        return CaseFacts(ref.case, {}, (finding,))
    places = places_of(volume)
    findings = [*found, *judge(volume, places)]
    wrong = {f.organ for f in findings if f.severity == "error"}
    good = {organ: place for organ, place in places.items() if organ not in wrong}
    if not good:
        message, remedy = "no organ can be used", "see what is said of its organs"
        if not ref.structures:
            remedy = "add aliases for the organ names used here, or exclude the case"
            if not ref.unmapped:
                message = "no contours belong to this CT"
                remedy = "put its structure set or masks beside it, or exclude the case"
        findings.append(Finding("E_NO_ORGAN", "error", ref.case, "", message, remedy))
    digest = image_digest(volume.image, volume.geometry)
    return CaseFacts(ref.case, good, tuple(findings), digest, small)
