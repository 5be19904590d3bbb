"""One invented patient as DICOM: a CT series and an RTSTRUCT with a square brainstem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.481.3"
SPACING_MM = 5.0


def write_patient(
    folder: Path, image: npt.NDArray[np.int16], square: tuple[int, int, int, int]
) -> None:
    """Writes ``CTnn.dcm`` a slice and ``RS.dcm``.

    Args:
        folder: made where missing.
        image: (Z, Y, X) in HU.
        square: first and last slice, first and last pixel (in both directions) of the brainstem.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frame, study, series = (generate_uid(entropy_srcs=["hnfed", word]) for word in "fsc")
    ids = [generate_uid(entropy_srcs=["hnfed", str(i)]) for i in range(len(image))]
    for level, (uid, pixels) in enumerate(zip(ids, image, strict=True)):
        ct = _dataset(CT, uid, study, series, "CT")
        ct.FrameOfReferenceUID = frame
        ct.InstanceNumber = level + 1
        ct.ImagePositionPatient = [0.0, 0.0, level * SPACING_MM]
        ct.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        ct.PixelSpacing = [SPACING_MM, SPACING_MM]
        ct.SliceThickness = SPACING_MM
        ct.RescaleSlope, ct.RescaleIntercept = 1.0, -1024.0
        ct.SamplesPerPixel, ct.PhotometricInterpretation = 1, "MONOCHROME2"
        ct.Rows, ct.Columns = pixels.shape
        ct.BitsAllocated = ct.BitsStored = 16
        ct.HighBit, ct.PixelRepresentation = 15, 1
        ct.PixelData = (pixels + 1024).astype("<i2").tobytes()
        ct.save_as(folder / f"CT{level:02d}.dcm", enforce_file_format=True)
    _structures(ids, frame, study, square, series).save_as(
        folder / "RS.dcm", enforce_file_format=True
    )


def _dataset(kind: str, uid: str, study: str, series: str, modality: str) -> Any:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, uid  # type: ignore[assignment]
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data: Any = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = kind, uid
    data.StudyInstanceUID, data.SeriesInstanceUID = study, series
    data.Modality = modality
    data.PatientName, data.PatientID = "Nobody^Invented", "X1"
    return data


def _item(**fields: Any) -> Any:
    item: Any = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return item


def _structures(
    ids: list[Any], frame: Any, study: Any, square: tuple[int, int, int, int], series: Any
) -> Any:
    own = generate_uid(entropy_srcs=["hnfed", "rs"])
    data = _dataset(RTSTRUCT, own, study, generate_uid(entropy_srcs=["hnfed", "r"]), "RTSTRUCT")
    data.StructureSetLabel = "invented"
    images = [_item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=uid) for uid in ids]
    of_series = _item(SeriesInstanceUID=series, ContourImageSequence=Sequence(images))
    of_study = _item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=study,
        RTReferencedSeriesSequence=Sequence([of_series]),
    )
    of_frame = _item(FrameOfReferenceUID=frame, RTReferencedStudySequence=Sequence([of_study]))
    data.ReferencedFrameOfReferenceSequence = Sequence([of_frame])
    roi = _item(
        ROINumber=1, ReferencedFrameOfReferenceUID=frame, ROIName="Brainstem",
        ROIGenerationAlgorithm="MANUAL",
    )  # fmt: skip
    data.StructureSetROISequence = Sequence([roi])
    first, last, low, high = square
    a, b = (low - 0.5) * SPACING_MM, (high + 0.5) * SPACING_MM
    contours = []
    for level in range(first, last + 1):
        z = level * SPACING_MM
        points = [a, a, z, b, a, z, b, b, z, a, b, z]
        image = _item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=ids[level])
        contours.append(
            _item(
                ContourImageSequence=Sequence([image]), ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=4, ContourData=points,
            )
        )  # fmt: skip
    of_roi = _item(ReferencedROINumber=1, ROIDisplayColor=[230, 159, 0])
    of_roi.ContourSequence = Sequence(contours)
    data.ROIContourSequence = Sequence([of_roi])
    observation = _item(ObservationNumber=1, ReferencedROINumber=1, RTROIInterpretedType="ORGAN")
    data.RTROIObservationsSequence = Sequence([observation])
    return data
