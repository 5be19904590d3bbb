"""Masks as DICOM SEG, for viewers such as OHIF and 3D Slicer. Written by highdicom.

Codes of the organs are SNOMED CT's as DICOM PS3.16 uses them; an organ without one is coded by its
TG-263 name under ``99HNFED``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from core.errors import CaseError
from core.provenance import hnfed_version
from hnfed.predict.dicom_references import copy_identity, without_identity
from hnfed.predict.rtstruct_write import LONGEST_DESCRIPTION, Drawn

CATEGORY = Code("91723000", "SCT", "Anatomical Structure")
LEFT, RIGHT = Code("7771000", "SCT", "Left"), Code("24028007", "SCT", "Right")
CONSTRICTOR = Code("4866005", "SCT", "Constrictor muscle of pharynx")
CODES: dict[str, tuple[Code, Code | None]] = {
    "Brainstem": (Code("119238007", "SCT", "Brain stem"), None),
    "OpticChiasm": (Code("244453006", "SCT", "Optic chiasm"), None),
    "Bone_Mandible": (Code("91609006", "SCT", "Mandible"), None),
    "OpticNrv_L": (Code("18234004", "SCT", "Optic nerve"), LEFT),
    "OpticNrv_R": (Code("18234004", "SCT", "Optic nerve"), RIGHT),
    "Parotid_L": (Code("45289007", "SCT", "Parotid gland"), LEFT),
    "Parotid_R": (Code("45289007", "SCT", "Parotid gland"), RIGHT),
    "Glnd_Submand_L": (Code("54019009", "SCT", "Submandibular gland"), LEFT),
    "Glnd_Submand_R": (Code("54019009", "SCT", "Submandibular gland"), RIGHT),
    "Musc_Constrict_S": (CONSTRICTOR, Code("264217000", "SCT", "Superior")),
    "Musc_Constrict_M": (CONSTRICTOR, Code("260528009", "SCT", "Middle")),
    "Musc_Constrict_I": (CONSTRICTOR, Code("261089000", "SCT", "Inferior")),
    "Larynx": (Code("4596009", "SCT", "Larynx"), None),
    "Esophagus": (Code("32849002", "SCT", "Esophagus"), None),
    "SpinalCord": (Code("2748008", "SCT", "Spinal cord"), None),
}


def write_dicomseg(path: Path, drawn: Sequence[Drawn], headers: Sequence[Any], model: str) -> None:
    """Writes a binary segmentation of a CT series, a segment an organ.

    Args:
        path: file to write, complete or not at all; its folder exists.
        drawn: the organs; one without voxels is not written.
        headers: of the CT's slices, from `hnfed.predict.dicom_references.read_headers`.
        model: which model drew them, in words.

    Raises:
        CaseError: ``E_IMAGE_UNREADABLE``: the CT's headers lack what a segmentation must repeat;
            ``E_NO_ORGAN``: no organ has a voxel.
    """
    import highdicom

    held = [one for one in drawn if one.mask.any()]
    if not held:
        problem = "a segmentation without a voxel cannot be written"
        raise CaseError("E_NO_ORGAN", "dicomseg", path.name, "look at the CT", problem=problem)
    how = highdicom.AlgorithmIdentificationSequence(
        name="hnfed",
        version=hnfed_version(),
        family=Code("123110", "DCM", "Artificial Intelligence"),
        source=model[:LONGEST_DESCRIPTION],
    )
    segments = [_segment(number, one, how) for number, one in enumerate(held, start=1)]
    part = path.with_name(f".{path.name}.part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = highdicom.seg.Segmentation(
                source_images=[without_identity(header) for header in headers],
                pixel_array=np.stack([one.mask for one in held], axis=-1),
                segmentation_type="BINARY",
                segment_descriptions=segments,
                series_instance_uid=str(generate_uid(prefix=None)),
                series_number=900,
                sop_instance_uid=str(generate_uid(prefix=None)),
                instance_number=1,
                manufacturer="hnfed",
                manufacturer_model_name="hnfed",
                software_versions=hnfed_version(),
                device_serial_number="0",
                content_label="HNFED",
                content_description=f"Not approved: {model}"[:LONGEST_DESCRIPTION],
                series_description="hnfed contours, not approved",
            )
            copy_identity(headers[0], data)
            data.save_as(part, enforce_file_format=True)
            part.replace(path)
        # highdicom's own checks and pydicom's raise many types about what a CT's header lacks.
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problem = f"the CT's headers lack what a segmentation repeats ({type(error).__name__})"
            remedy = "use --format rtstruct or nrrd, or export the CT again"
            raise CaseError(
                "E_IMAGE_UNREADABLE", "dicomseg", path.name, remedy, problem=problem
            ) from error
        finally:
            part.unlink(missing_ok=True)


def _segment(number: int, structure: Drawn, algorithm: Any) -> Any:
    import highdicom

    code, modifier = CODES.get(
        structure.name, (Code(structure.name[:16], "99HNFED", structure.name[:64]), None)
    )
    segment = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=structure.name[:64],
        segmented_property_category=CATEGORY,
        segmented_property_type=code,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=str(generate_uid(prefix=None)),
        tracking_id=structure.name,
    )
    if modifier is not None:
        told: Any = Dataset()
        told.CodeValue, told.CodingSchemeDesignator = modifier.value, modifier.scheme_designator
        told.CodeMeaning = modifier.meaning
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = Items([told])
    segment.RecommendedDisplayCIELabValue = list(
        highdicom.color.CIELabColor.from_rgb(*structure.colour).value
    )
    return segment
