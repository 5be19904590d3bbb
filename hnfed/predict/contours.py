"""CTs to be contoured, found in whatever the user names, and the contours written as files."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.archives.archive import Archive, CaseRef, open_archive
from core.archives.case_folders import NO_RIGHT, files_in
from core.archives.formats import dicom
from core.archives.formats.table import any_layout
from core.archives.images.volume import write_labelmap, write_mask
from core.archives.listing import PACKED
from core.data.geometry import Geometry
from core.data.grid import bounding_box
from core.errors import UserError, plain_text
from core.identifiers import case_name, organ_name
from core.organs.vocabulary import BUILT_IN
from hnfed.evaluate.predictions import is_image, stem_of
from hnfed.predict.dicomseg_write import write_dicomseg
from hnfed.predict.rtstruct_write import Drawn, write_rtstruct

OTHER_COLOUR = (200, 200, 200)
_REMEDY = "give a CT as NRRD or NIfTI, a folder of such files or of DICOM, or an archive"


def find_cts(path: Path) -> Archive:
    """Lists the CTs that INPUT means, as an archive whose cases need no structures.

    Args:
        path: one image file, a folder of image files, or an archive.

    Returns:
        Cases named by their files (``_0000`` of nnU-Net is dropped; ``CASE/img.nrrd`` is ``CASE``).

    Raises:
        UserError: nothing that can be read, or two CTs of one name.
    """
    if path.is_file():
        if path.name == "ct.csv":
            return open_archive(path.parent, format="openkbp")
        if not is_image(path):
            problem, remedy = _no_image(path)
            raise UserError("--input", path, remedy, problem=problem)
        return _loose([path])
    if not path.is_dir():
        raise UserError("--input", path, _REMEDY, problem="no such file or folder")
    files = [p for p in files_in(path) if is_image(p)]
    if files and any(case.files for case in dicom.find(path)):
        remedy = "give them one after the other, each in a folder of its own"
        problem = "holds DICOM series and other images"
        raise UserError("--input", path, remedy, problem=problem)
    if files:
        return _loose(files)
    try:
        return open_archive(path)
    except UserError as error:
        remedy = _REMEDY if error.remedy == any_layout() else error.remedy
        raise UserError("--input", path, remedy, problem=error.problem) from error


def _no_image(path: Path) -> tuple[str, str]:
    """What a file is that is no image by its name, and what to give instead."""
    if path.suffix.lower() in PACKED:
        return "a packed file", "unpack it, and give the folder"
    try:
        with path.open("rb") as file:
            dicom_file = file.read(132)[128:] == b"DICM"
    except OSError as error:
        return f"it cannot be read: {error.strerror}", NO_RIGHT
    if dicom_file:
        return "one DICOM file", "give the folder that holds all files of the CT"
    return "not NRRD, NIfTI or MetaImage", _REMEDY


def _loose(files: Sequence[Path]) -> Archive:
    names = [_name(path) for path in files]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(
            "--input", files[0].parent, "rename one", problem=f"two CTs are called {twice[0]}"
        )
    cases = (
        CaseRef(name, (path,), {}, 0, None, None) for name, path in zip(names, files, strict=True)
    )
    # "pddca" reads the first file of a case whatever its image format is.
    return Archive("pddca", files[0].parent, tuple(cases), ())


def _name(path: Path) -> str:
    stem = plain_text(stem_of(path))
    return plain_text(path.resolve().parent.name) if stem == "img" else stem.removesuffix("_0000")


@dataclass(frozen=True)
class Contours:
    """What was drawn on one CT.

    Attributes:
        case: case id, one path component.
        labels: uint8 (Z, Y, X) on the CT's grid; organ i has the value i + 1.
        organs: organs in that order.
        geometry: the CT's grid.
        model: which model drew them, in words.
        notes: what is to be known about an organ, such as doubtful slices.
        headers: of the CT's slices (`hnfed.predict.dicom_references.read_headers`); () if it is no
            DICOM.
        doubt: why all of it may be wrong, in words; "" where nothing says so.
    """

    case: str
    labels: npt.NDArray[np.uint8]
    organs: Sequence[str]
    geometry: Geometry
    model: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    headers: Sequence[Any] = ()
    doubt: str = ""


def write_contours(
    folder: Path,
    drawn: Contours,
    formats: Sequence[str],
    remarks: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes contours, all that was asked for or none: aside first, moved where all are whole.

    ``nrrd``: ``CASE/NAME.nrrd`` for each organ, empty where it was not found; ``nifti``:
    ``CASE.nii.gz``; ``segnrrd``: ``CASE.seg.nrrd`` for 3D Slicer; ``rtstruct``: ``CASE/RS.dcm``;
    ``dicomseg``: ``CASE/SEG.dcm``.

    Args:
        folder: OUTPUT.
        drawn: what to write.
        formats: of `hnfed.predict.formats`; those of `DICOM_FORMATS` need `Contours.headers`.
        remarks: further files, their text by the ending that follows ``CASE``.

    Returns:
        The files written.

    Raises:
        CaseError: the CT's headers do not carry a DICOM SEG.
        UserError: a case or an organ whose name is none of a file.
    """
    case = case_name(drawn.case)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hnfed-", dir=folder) as aside:
        paths = _write(Path(aside), drawn, formats)
        for ending, text in (remarks or {}).items():
            paths.append(Path(aside) / f"{case}{ending}")
            paths[-1].write_text(text, encoding="utf-8")
        written = [folder / path.relative_to(aside) for path in paths]
        for path, target in zip(paths, written, strict=True):
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
    return written


def _write(folder: Path, drawn: Contours, formats: Sequence[str]) -> list[Path]:
    """Writes the formats into an empty folder."""
    case, labels = case_name(drawn.case), drawn.labels
    organs = [organ_name(organ) for organ in drawn.organs]
    own = folder / case
    own.mkdir()
    written: list[Path] = []
    if "nrrd" in formats:
        for i, organ in enumerate(organs, start=1):
            written.append(own / f"{organ}.nrrd")
            write_mask(written[-1], labels == i, drawn.geometry)
    if "nifti" in formats:
        written.append(folder / f"{case}.nii.gz")
        write_labelmap(written[-1], labels, drawn.geometry)
    if "segnrrd" in formats:
        written.append(folder / f"{case}.seg.nrrd")
        write_labelmap(written[-1], labels, drawn.geometry, _segments(labels, organs))
    model = f"DOUBTFUL: {drawn.doubt}; {drawn.model}" if drawn.doubt else drawn.model
    structures = [
        Drawn(organ, labels == i, _colour(organ), drawn.notes.get(organ, ""))
        for i, organ in enumerate(organs, start=1)
    ]
    if "rtstruct" in formats:
        written.append(own / "RS.dcm")
        write_rtstruct(written[-1], structures, drawn.geometry, drawn.headers, model)
    if "dicomseg" in formats:
        written.append(own / "SEG.dcm")
        write_dicomseg(written[-1], structures, drawn.headers, model)
    return written


def _colour(organ: str) -> tuple[int, int, int]:
    return BUILT_IN[organ].colour if organ in BUILT_IN else OTHER_COLOUR


def _segments(labels: npt.NDArray[np.uint8], organs: Sequence[str]) -> dict[str, str]:
    """The fields by which 3D Slicer knows the segments of a label map."""
    told = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for i, organ in enumerate(organs):
        box = bounding_box(labels == i + 1)
        extent = "0 -1 0 -1 0 -1"
        if box is not None:
            extent = " ".join(f"{side.start} {side.stop - 1}" for side in reversed(box))
        told |= {
            f"Segment{i}_ID": organ,
            f"Segment{i}_Name": organ,
            f"Segment{i}_NameAutoGenerated": "0",
            f"Segment{i}_Color": " ".join(f"{value / 255:.6f}" for value in _colour(organ)),
            f"Segment{i}_ColorAutoGenerated": "0",
            f"Segment{i}_LabelValue": str(i + 1),
            f"Segment{i}_Layer": "0",
            f"Segment{i}_Extent": extent,
            f"Segment{i}_Tags": "|",
        }
    return told


def write_label_table(folder: Path, organs: Sequence[str]) -> None:
    """Writes ``labels.json``: what the numbers of the label maps in this folder mean.

    Raises:
        UserError: another model's table stands there already.
    """
    path = folder / "labels.json"
    text = json.dumps({organ: i for i, organ in enumerate(organs, start=1)}, indent=2) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(
            "--output",
            folder,
            "choose an empty folder",
            problem="labels.json of other organs is in it",
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
