"""One structure of a prediction: the file it stands in, what it is called there, and its voxels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from core.archives.dicom import rtstruct, segmentation
from core.archives.formats import openkbp
from core.archives.formats.nnunet import values_by_name
from core.archives.images import nifti, nrrd
from core.archives.images.volume import read_image
from core.data.geometry import Geometry
from core.errors import CaseError, UserError
from core.tracking.foreign_run import read_json
from hnfed.evaluate.reorient import reoriented

LABEL_FILES = ("labels.json", "dataset.json")
SEGMENT = re.compile(r"segment(\d+)_(name|labelvalue|layer)")
REMEDY = "resample the prediction onto the CT's grid"
NAMED = 'write labels.json beside the label maps: {"Brainstem": 1, "Parotid_L": 2}'


@dataclass(frozen=True)
class Source:
    """Where a predicted structure stands.

    Attributes:
        path: the file.
        name: of the structure in an RTSTRUCT or a DICOM SEG; "" elsewhere.
        values: its voxel values in a label map; () for a mask.
    """

    path: Path
    name: str = ""
    values: tuple[int, ...] = ()


def structures_in(path: Path) -> dict[str, Source]:
    """The structures by name of a file that says itself what it holds; {} of any other.

    These are RTSTRUCT, DICOM SEG, ``.seg.nrrd`` of 3D Slicer, and NIfTI label maps with names in
    an extension (TotalSegmentator's ``--ml``).

    Raises:
        CaseError: a file of these kinds that cannot be read.
    """
    suffixes = path.name.lower()
    if suffixes.endswith((".nii", ".nii.gz")):
        return {name: Source(path, values=(v,)) for name, v in _of_extension(path).items()}
    if suffixes.endswith(".nrrd"):
        return _of_slicer(path)
    if suffixes.endswith(_IMAGES):
        return {}
    if segmentation.is_segmentation(path):
        return {one.name: Source(path, one.name) for one in segmentation.read(path).rois}
    found = rtstruct.read_structure_set(path)
    return {roi.name: Source(path, roi.name) for roi in found.rois if roi.drawn}


_IMAGES = (".nhdr", ".mha", ".mhd", ".csv")


def read_source(
    source: Source, image: npt.NDArray[Any], geometry: Geometry
) -> npt.NDArray[np.bool_]:
    """The mask (Z, Y, X) of a structure on the CT's grid; axes may be stored in another order.

    Args:
        source: of `structures_in`, or a file of one mask.
        image: the CT (Z, Y, X).
        geometry: the CT's grid.

    Raises:
        CaseError: ``E_PREDICTION_UNREADABLE``; ``E_PREDICTION_GRID``: it lies on other voxels.
    """
    path = source.path
    try:
        if path.suffix == ".csv":
            return openkbp.read_mask(path, image, geometry)[0]
        if source.name:
            if segmentation.is_segmentation(path):
                return segmentation.draw(path, source.name, geometry)
            return rtstruct.draw(path, source.name, geometry)[0]
        stamp = path.stat()
        array, grid = _image(path, stamp.st_mtime_ns, stamp.st_size)
    except CaseError as error:
        code = "GRID" if error.code == "E_LABEL_GRID" else "UNREADABLE"
        raise CaseError(
            f"E_PREDICTION_{code}", "--pred", path, error.remedy, problem=error.problem
        ) from error
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise CaseError(
            "E_PREDICTION_UNREADABLE", "--pred", path, "make it readable", problem=problem
        ) from error
    placed = reoriented(array, grid, geometry, tolerance=1e-2)
    if placed is None:
        problem = f"size {grid.size}, spacing {grid.spacing_mm} mm, origin {grid.origin_mm}; "
        problem += f"the CT has {geometry.size}, {geometry.spacing_mm} mm, {geometry.origin_mm}"
        problem += " (or another direction)"
        raise CaseError("E_PREDICTION_GRID", "--pred", path, REMEDY, problem=problem)
    if not source.values:
        return np.asarray(placed > 0)
    return np.isin(np.rint(placed).astype(np.int64), source.values)


def label_table(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> values, of ``{NAME: n}``, ``{"labels": {NAME: n or [n, m]}}`` or ``{"n": NAME}``.

    Raises:
        UserError: anything else.
    """
    try:
        table: Any = read_json(path)
        return values_by_name(table.get("labels", table))
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise UserError("--pred", path, NAMED, problem=f"not a table of labels: {error}") from error


@lru_cache(maxsize=1)
def _image(path: Path, *stamp: int) -> tuple[npt.NDArray[Any], Geometry]:
    """The image last read: the organs of a label map are asked for one after another."""
    return read_image(path)


def _of_slicer(path: Path) -> dict[str, Source]:
    """The segments of a ``.seg.nrrd``; {} where the file names none."""
    fields: dict[int, dict[str, str]] = {}
    if nrrd.doubt(path):  # told when its voxels are read
        return {}
    make: Any = sitk.ImageFileReader
    reader = make()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    for key in reader.GetMetaDataKeys():
        if told := SEGMENT.fullmatch(key.lower()):
            fields.setdefault(int(told[1]), {})[told[2]] = str(reader.GetMetaData(key)).strip()
    if any(one.get("layer", "0") != "0" for one in fields.values()):
        remedy = "export the segments as one label map, or each as a file of its own"
        problem = "its segments overlap: they stand in several layers"
        raise CaseError("E_PREDICTION_UNREADABLE", "--pred", path, remedy, problem=problem)
    return {
        one["name"]: Source(path, values=(int(one["labelvalue"]),))
        for one in fields.values()
        if "name" in one and one.get("labelvalue", "").isdecimal()
    }


def _of_extension(path: Path) -> Mapping[str, int]:
    """Names and values of a label table in a NIfTI extension (Connectivity Workbench's XML)."""
    for text in nifti.extensions(path):
        try:
            root = ElementTree.fromstring(text.rstrip(b"\0").decode("utf-8"))
        except (ElementTree.ParseError, UnicodeDecodeError):
            continue
        named = {
            (label.text or "").strip(): int(label.get("Key", "0"))
            for label in root.iter("Label")
            if label.get("Key", "").isdecimal()
        }
        if named:
            return {name: value for name, value in named.items() if name and value > 0}
    return {}
