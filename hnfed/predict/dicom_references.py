"""The CT that contours refer to: headers of its slices in order, and what goes into new objects."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from core.data.geometry import Geometry
from core.errors import CaseError
from core.processes import leave_if_told

# Patient and study of the CT: an object about a patient belongs to that patient.
COPIED = (
    "SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "StudyDescription",
)  # fmt: skip
REQUIRED = (
    "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID",
)  # fmt: skip


def read_headers(files: Sequence[Path], geometry: Geometry) -> list[Any]:
    """Headers of a CT's slices, without pixels, in the order of the volume.

    Args:
        files: of the case, in any order.
        geometry: grid of the volume, from `core.archives.dicom.series.read_series`.

    Returns:
        One pydicom data set a slice; number i is slice i of the volume.

    Raises:
        CaseError: ``E_IMAGE_UNREADABLE``: a header cannot be read, or lacks an id that contours
            must repeat.
    """
    if len(files) != geometry.size[0]:
        remedy = "use nrrd, nifti or segnrrd, or export the CT as single-frame images"
        problem = "one multi-frame file: its frames cannot be referred to"
        raise CaseError("E_IMAGE_SHAPE", "series", "CT", remedy, problem=problem)
    normal = np.array(geometry.direction).reshape(3, 3)[:, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            headers = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in files]
            headers.sort(
                key=lambda h: float(np.dot(normal, [float(v) for v in h.ImagePositionPatient]))
            )
            absent = [
                name
                for name in REQUIRED
                if not all(str(header.get(name) or "").strip(" \0") for header in headers)
            ]
        # pydicom raises half a dozen types for damaged files; each means the same here.
        except Exception as error:
            leave_if_told()
            problem = f"a header cannot be referred to ({type(error).__name__})"
            remedy = "export the series again"
            raise CaseError(
                "E_IMAGE_UNREADABLE", "series", "CT", remedy, problem=problem
            ) from error
    if absent:
        problem = f"the CT has no {', '.join(absent)}: contours could not be told to belong to it"
        remedy = "export the series with its ids, or use --format nrrd, nifti or segnrrd"
        raise CaseError("E_IMAGE_UNREADABLE", "series", "CT", remedy, problem=problem)
    assert len(headers) == geometry.size[0], (len(headers), geometry.size)
    return headers


def copy_identity(source: Any, target: Any) -> None:
    """Copies patient and study byte for byte, whatever their character set; the rest stays empty.

    Args:
        source: a header from `read_headers`.
        target: data set that gets them; what it says of them itself is replaced.
    """
    for name in COPIED:
        tag = tag_for_keyword(name)
        assert tag is not None
        element = source.get_item(tag)
        if isinstance(element, RawDataElement):
            value = element.value or b""
            target[tag] = RawDataElement(
                BaseTag(tag), dictionary_VR(tag), len(value), value, 0, False, True
            )
        elif element is not None:
            target[tag] = element
        elif name in ("SpecificCharacterSet", "StudyDescription"):
            target.pop(tag, None)
        else:
            setattr(target, name, "")


def without_identity(header: Any) -> Any:
    """A copy of a header in which patient and study are empty, and the character set is ASCII."""
    bare: Any = Dataset()
    for tag in header.keys():  # noqa: SIM118  # iterating would convert the elements
        bare[tag] = header.get_item(tag)
    for name in COPIED:
        if name != "StudyInstanceUID":
            bare.pop(tag_for_keyword(name), None)
    for name in COPIED[1:-1]:
        if name != "StudyInstanceUID":
            setattr(bare, name, "")
    return bare
