from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

from benchmarks.dicom_example import write_patient


def test_others_read_what_is_written(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(-1000, 1500, (4, 8, 8)).astype(np.int16)
    write_patient(tmp_path, image, (1, 2, 3, 5))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    read = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), image)
    assert read.GetSpacing() == (5.0, 5.0, 5.0)
    structures = pydicom.dcmread(tmp_path / "RS.dcm")
    assert structures.StructureSetROISequence[0].ROIName == "Brainstem"
    contours = structures.ROIContourSequence[0].ContourSequence
    assert [float(c.ContourData[2]) for c in contours] == [5.0, 10.0]
    assert float(contours[0].ContourData[0]) == 12.5
