"""The CT that contours refer to: headers of its slices in order, and what goes into new objects."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from core.data.volume import Geometry
from core.errors import CaseError
from core.service import leave_if_told

# Patient and study of the CT: an object about a patient belongs to that patient.
COPIED = (
    "SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "StudyDescription",
)  # fmt: skip


def read_headers(files: Sequence[Path], geometry: Geometry) -> list[Any]:
    """Headers of a CT's slices, without pixels, in the order of the volume.

    Args:
        files: of the case, in any order.
        geometry: grid of the volume, from `core.data.dicom_series.read_series`.

    Returns:
        One pydicom data set a slice; number i is slice i of the volume.

    Raises:
        CaseError: ``E_IMAGE_UNREADABLE``: a header cannot be read, or lacks an id.
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
            for header in headers:
                if not (header.SOPInstanceUID and header.SOPClassUID and header.SeriesInstanceUID):
                    raise ValueError("no id")
        # pydicom raises half a dozen types for damaged files; each means the same here.
        except Exception as error:
            leave_if_told()
            problem = f"a header cannot be referred to ({type(error).__name__})"
            remedy = "export the series again"
            raise CaseError(
                "E_IMAGE_UNREADABLE", "series", "CT", remedy, problem=problem
            ) from error
    assert len(headers) == geometry.size[0], (len(headers), geometry.size)
    return headers


def copy_identity(source: Any, target: Any) -> None:
    """Copies patient and study; what the CT does not tell stays empty."""
    for name in COPIED:
        value = source.get(name)
        if value is not None:
            setattr(target, name, value)
        elif name not in ("SpecificCharacterSet", "StudyDescription"):
            setattr(target, name, "")
