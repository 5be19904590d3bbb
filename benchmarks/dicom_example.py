"""Invented patients as DICOM: CT series and structure sets, tidy or with a hospital's mess."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from core.data.geometry import Geometry

CT, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.481.3"
SPACING_MM = 5.0
Points = npt.NDArray[np.float64]


def uid_of(*words: str) -> str:
    """The same UID for the same words."""
    return str(generate_uid(entropy_srcs=["hnfed", *words]))


@dataclass(frozen=True)
class Series:
    """A CT series as files, one a slice.

    Attributes:
        image: (Z, Y, X) in HU.
        geometry: its grid.
        patient: word that the ids are made of, PatientID too; one study a patient.
        series: word for the series' UID.
        number: of the series.
        frame: word for the frame of reference's UID.
        implicit: implicit instead of explicit VR.
        rescale: slope and intercept of a slice.
        name: of a slice's file.
        change: called with each slice's number and data set before it is written.
    """

    image: npt.NDArray[np.int16]
    geometry: Geometry
    patient: str = "X1"
    series: str = "s"
    number: int = 1
    frame: str = "f"
    implicit: bool = False
    rescale: Callable[[int], tuple[float, float]] = lambda level: (1.0, -1024.0)
    name: Callable[[int], str] = lambda level: f"CT{level:02d}.dcm"
    change: Callable[[int, Any], None] = lambda level, data: None

    def write(self, folder: Path) -> None:
        """Writes the files into a folder, made where missing."""
        folder.mkdir(parents=True, exist_ok=True)
        matrix = np.array(self.geometry.direction).reshape(3, 3)
        for level, pixels in enumerate(self.image):
            own = uid_of(self.patient, self.series, str(level))
            data = _dataset(CT, own, self.patient, self.series, "CT", self.implicit)
            data.FrameOfReferenceUID = uid_of(self.patient, self.frame)
            data.SeriesNumber, data.InstanceNumber = self.number, level + 1
            data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            away = matrix[:, 2] * self.geometry.spacing_mm[0] * level
            corner = np.array(self.geometry.origin_mm) + away
            data.ImagePositionPatient = [f"{v:.9g}" for v in corner]
            data.ImageOrientationPatient = [f"{v:.9f}" for v in [*matrix[:, 0], *matrix[:, 1]]]
            data.PixelSpacing = list(self.geometry.spacing_mm[1:])
            data.SliceThickness = self.geometry.spacing_mm[0]
            slope, intercept = self.rescale(level)
            data.RescaleSlope, data.RescaleIntercept = slope, intercept
            data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
            data.Rows, data.Columns = pixels.shape
            data.BitsAllocated = data.BitsStored = 16
            data.HighBit, data.PixelRepresentation = 15, 1
            stored = np.rint((pixels - intercept) / slope).astype("<i2")
            data.PixelData = stored.tobytes()
            data["PixelData"].VR = "OW"
            self.change(level, data)
            data.save_as(folder / self.name(level), enforce_file_format=True)


@dataclass(frozen=True)
class Structures:
    """An RTSTRUCT on a `Series`.

    Attributes:
        rois: contours (N, 3) in patient mm by name; none: named, but not drawn.
        patient: as of the series that it is drawn on.
        series: as of the series that it is drawn on; "" if it does not tell.
        frame: as of the series that it is drawn on.
        label: StructureSetLabel.
        approved: its approval status.
        drawn_at: its date.
        implicit: implicit instead of explicit VR.
        change: called with the data set before it is written.
    """

    rois: Mapping[str, Sequence[Points]] | Sequence[tuple[str, Sequence[Points]]]
    patient: str = "X1"
    series: str = "s"
    frame: str = "f"
    label: str = "invented"
    approved: bool = False
    drawn_at: str = "20200101"
    implicit: bool = False
    change: Callable[[Any], None] = lambda data: None

    def write(self, path: Path) -> None:
        """Writes the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        own = uid_of(self.patient, self.label, self.drawn_at)
        data = _dataset(RTSTRUCT, own, self.patient, f"rt {self.label}", "RTSTRUCT", self.implicit)
        data.StructureSetLabel, data.StructureSetDate = self.label, self.drawn_at
        data.StructureSetTime = "120000"
        data.ApprovalStatus = "APPROVED" if self.approved else "UNAPPROVED"
        frame_uid = uid_of(self.patient, self.frame)
        of_frame = _item(FrameOfReferenceUID=frame_uid)
        if self.series:
            of_series = _item(SeriesInstanceUID=uid_of(self.patient, self.series))
            of_study = _item(
                ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
                ReferencedSOPInstanceUID=uid_of(self.patient),
                RTReferencedSeriesSequence=Items([of_series]),
            )
            of_frame.RTReferencedStudySequence = Items([of_study])
        data.ReferencedFrameOfReferenceSequence = Items([of_frame])
        listed = list(self.rois.items() if isinstance(self.rois, Mapping) else self.rois)
        data.StructureSetROISequence = Items(
            [
                _item(ROINumber=i, ReferencedFrameOfReferenceUID=frame_uid, ROIName=name)
                for i, (name, _) in enumerate(listed, start=1)
            ]
        )
        drawn = []
        for i, (_, contours) in enumerate(listed, start=1):
            if len(contours):
                drawn.append(_item(ReferencedROINumber=i, ROIDisplayColor=[230, 159, 0]))
                drawn[-1].ContourSequence = Items([_contour(points) for points in contours])
        data.ROIContourSequence = Items(drawn)
        self.change(data)
        data.save_as(path, enforce_file_format=True)


def write_patient(
    folder: Path, image: npt.NDArray[np.int16], square: tuple[int, int, int, int]
) -> None:
    """Writes ``CTnn.dcm`` a slice and ``RS.dcm`` with a square brainstem.

    Args:
        folder: made where missing.
        image: (Z, Y, X) in HU.
        square: first and last slice, first and last pixel (in both directions) of the brainstem.
    """
    depth, height, width = image.shape
    geometry = Geometry((depth, height, width), (SPACING_MM, SPACING_MM, SPACING_MM))
    Series(image, geometry).write(folder)
    first, last, low, high = square
    a, b = (low - 0.5) * SPACING_MM, (high + 0.5) * SPACING_MM
    contours = [
        np.array([[a, a, z], [b, a, z], [b, b, z], [a, b, z]])
        for z in (level * SPACING_MM for level in range(first, last + 1))
    ]
    Structures({"Brainstem": contours}).write(folder / "RS.dcm")


def _contour(points: Points) -> Any:
    kind = "POINT" if len(points) == 1 else "CLOSED_PLANAR"
    return _item(
        ContourGeometricType=kind, NumberOfContourPoints=len(points),
        ContourData=[f"{v:.6f}" for v in np.asarray(points).ravel()],
    )  # fmt: skip


def _dataset(kind: str, own: str, patient: str, series: str, modality: str, implicit: bool) -> Any:
    meta: Any = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, own
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    data: Any = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = kind, own
    data.StudyInstanceUID, data.SeriesInstanceUID = uid_of(patient), uid_of(patient, series)
    data.Modality = modality
    data.PatientName, data.PatientID = "Nobody^Invented", patient
    return data


def _item(**fields: Any) -> Any:
    item: Any = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return item
