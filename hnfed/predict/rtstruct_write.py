"""Masks as RTSTRUCT: contours that a planning system opens on the CT, never approved.

DICOM PS3.3 A.19 (RT Structure Set IOD). `core.archives.dicom.rtstruct` reads it back voxel for
voxel.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from core.archives.dicom.contour_raster import trace
from core.data.geometry import Geometry
from core.provenance import hnfed_version
from hnfed.predict.dicom_references import copy_identity

STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
LONGEST_TEXT, LONGEST_LABEL, LONGEST_DESCRIPTION = 1024, 16, 64


@dataclass(frozen=True)
class Drawn:
    """One structure to be written.

    Attributes:
        name: TG-263 name.
        mask: bool (Z, Y, X) on the CT's grid; an empty one is not written.
        colour: red, green, blue, 0 to 255.
        note: what a reader of the structure should know, such as doubtful slices; or "".
    """

    name: str
    mask: npt.NDArray[np.bool_]
    colour: tuple[int, int, int]
    note: str = ""


def write_rtstruct(
    path: Path,
    drawn: Sequence[Drawn],
    geometry: Geometry,
    headers: Sequence[Any],
    model: str,
) -> None:
    """Writes structures on a CT series.

    Args:
        path: file to write, complete or not at all; its folder exists.
        drawn: the structures.
        geometry: grid of the CT and the masks.
        headers: of the CT's slices, from `hnfed.predict.dicom_references.read_headers`.
        model: which model drew them, in words.
    """
    now, first = datetime.now(), headers[0]
    meta: Any = FileMetaDataset()
    own = generate_uid(prefix=None)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, own
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data: Any = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    copy_identity(first, data)
    data.SOPClassUID, data.SOPInstanceUID = RTStructureSetStorage, own
    data.Modality, data.SeriesInstanceUID = "RTSTRUCT", generate_uid(prefix=None)
    data.SeriesNumber, data.InstanceNumber = None, 1
    data.SeriesDescription = "hnfed contours, not approved"
    data.InstanceCreationDate = data.StructureSetDate = now.strftime("%Y%m%d")
    data.InstanceCreationTime = data.StructureSetTime = now.strftime("%H%M%S")
    data.OperatorsName = ""
    data.Manufacturer = data.ManufacturerModelName = "hnfed"
    data.SoftwareVersions = hnfed_version()
    frame = str(first.FrameOfReferenceUID)
    data.FrameOfReferenceUID = frame
    data.PositionReferenceIndicator = ""
    data.StructureSetLabel = "hnfed"
    data.StructureSetDescription = f"Drawn by a network, to be checked: {model}"[:LONGEST_TEXT]
    data.ApprovalStatus = "UNAPPROVED"
    data.ReferencedFrameOfReferenceSequence = Items([_frame(frame, headers)])
    rois, contours, observations = [], [], []
    held = [one for one in drawn if one.mask.any()]
    for number, one in enumerate(held, start=1):
        rois.append(
            _item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=frame,
                ROIName=one.name[:LONGEST_DESCRIPTION],
                ROIDescription=one.note[:LONGEST_TEXT],
                ROIGenerationAlgorithm="AUTOMATIC",
                ROIGenerationDescription=f"hnfed {hnfed_version()}"[:LONGEST_DESCRIPTION],
            )
        )
        contours.append(_contours(number, one, geometry, headers))
        observations.append(
            _item(
                ObservationNumber=number,
                ReferencedROINumber=number,
                ROIObservationLabel=one.name[:LONGEST_LABEL],
                RTROIInterpretedType="ORGAN",
                ROIInterpreter="",
            )
        )
    data.StructureSetROISequence = Items(rois)
    data.ROIContourSequence = Items(contours)
    data.RTROIObservationsSequence = Items(observations)
    part = path.with_name(f".{path.name}.part")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a character set that is copied as it stands
            data.save_as(part, enforce_file_format=True)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _frame(frame: str, headers: Sequence[Any]) -> Any:
    first = headers[0]
    of_series = _item(
        SeriesInstanceUID=first.SeriesInstanceUID,
        ContourImageSequence=Items([_reference(header) for header in headers]),
    )
    of_study = _item(
        ReferencedSOPClassUID=STUDY_CLASS,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=Items([of_series]),
    )
    return _item(FrameOfReferenceUID=frame, RTReferencedStudySequence=Items([of_study]))


def _contours(number: int, one: Drawn, geometry: Geometry, headers: Sequence[Any]) -> Any:
    of_roi = _item(ReferencedROINumber=number, ROIDisplayColor=list(one.colour))
    outlines = trace(one.mask, geometry)
    levels = _levels(outlines, geometry)
    of_roi.ContourSequence = Items(
        [
            _item(
                ContourImageSequence=Items([_reference(headers[level])]),
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                ContourData=[f"{value:.4f}" for value in points.ravel()],
            )
            for level, points in zip(levels, outlines, strict=True)
        ]
    )
    return of_roi


def _levels(outlines: Sequence[npt.NDArray[np.float64]], geometry: Geometry) -> list[int]:
    """The slice that each outline lies in."""
    normal = np.array(geometry.direction).reshape(3, 3)[:, 2]
    start = float(np.dot(normal, geometry.origin_mm))
    return [round((float(normal @ p[0]) - start) / geometry.spacing_mm[0]) for p in outlines]


def _reference(header: Any) -> Any:
    return _item(
        ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID
    )


def _item(**fields: Any) -> Any:
    item: Any = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return item
