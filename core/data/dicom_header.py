"""Headers of DICOM files: which files have one, what it says, and whether GDCM may read on.

pydicom forgives what GDCM does not: a damaged length or type can make GDCM ask for gigabytes, or
never return. Such files are unreadable here.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import VR

from core.data.folders import walk
from core.service import leave_if_told

OTHER_SUFFIXES = {
    ".nrrd", ".nhdr", ".nii", ".gz", ".mha", ".mhd", ".raw", ".zip", ".tar", ".csv", ".tsv",
    ".json", ".yaml", ".yml", ".txt", ".md", ".xml", ".html", ".pdf", ".png", ".jpg", ".jpeg",
    ".npy", ".npz", ".h5", ".py", ".log", ".safetensors", ".sqlite", ".db", ".exe", ".dll", ".xlsx",
}  # fmt: skip
TAGS = (
    "Modality", "ImageType", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "SeriesNumber", "PatientID", "ImagePositionPatient", "Rows", "Columns",
    "NumberOfFrames",
)  # fmt: skip
# What a damaged header may ask memory for.
MOST_PIXELS = 2**26
DICOMDIR = "1.2.840.10008.1.3.10"
UNDEFINED = 0xFFFFFFFF
# Padding (FFFC,FFFC) or signatures (FFFA,FFFA) may follow the pixels.
BEHIND = (b"\xfc\xff\xfc\xff", b"\xff\xfc\xff\xfc", b"\xfa\xff\xfa\xff", b"\xff\xfa\xff\xfa")
TYPES = frozenset(str(vr) for vr in VR)
# Without a preamble a file begins with its first element, of group 0002 or 0008.
FIRST_GROUPS = (b"\x02\x00\x00\x00", b"\x02\x00\x01\x00", b"\x08\x00")


def candidates(root: Path) -> Iterator[tuple[Path, bool]]:
    """Files below `root` that begin as DICOM files do; False: empty, or not to be opened."""
    for folder, _, files in walk(root):
        for name in files:
            path = folder / name
            if path.suffix.lower() in OTHER_SUFFIXES or not path.is_file():
                continue
            try:
                with path.open("rb") as file:
                    start = file.read(132)
            except OSError:
                yield path, False
                continue
            if not start and path.suffix.lower() in ("", ".dcm"):
                yield path, False
            if start[128:] == b"DICM" or start.startswith(FIRST_GROUPS):
                yield path, True


def read_header(path: Path) -> dict[str, str] | None:
    """What a file's header says under `TAGS`, as text.

    Args:
        path: a file that begins as DICOM.

    Returns:
        None where the header cannot be read, or leads to pixels that cannot be.
    """
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")
        try:
            header: Any = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            told = {name: _element(header, name) for name in TAGS}
            known = all(_known(part) for part in (header, header.file_meta))
            sizes = [int(told[name] or 1) for name in ("Rows", "Columns", "NumberOfFrames")]
            if not known or math.prod(sizes) > MOST_PIXELS:
                return None
            if told["Modality"] == "CT" and not _has_pixels(header, file):
                return None
            catalogue = header.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR
        # pydicom raises half a dozen types for damaged files; each means the same here.
        except Exception:
            leave_if_told()
            return None
    return told if told["Modality"] or catalogue else None


def _known(data: Any) -> bool:
    """Whether every element is of a type that exists: what pydicom forgives, GDCM may not."""
    return all((vr := data.get_item(tag).VR) is None or vr in TYPES for tag in data.keys())  # noqa: SIM118


def _has_pixels(header: Any, file: BinaryIO) -> bool:
    """Whether the pixels stand where the header ends, and end where the file ends.

    A damaged length before them would lead elsewhere, and what follows them would be read as
    elements: either may ask GDCM for gigabytes. Padding may follow.
    """
    if header.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return True
    plain, little = header.original_encoding
    order: Literal["little", "big"] = "little" if little else "big"
    place, start = file.tell(), file.read(12)
    if [int.from_bytes(start[i : i + 2], order) for i in (0, 2)] != [0x7FE0, 0x0010]:
        return False
    length = int.from_bytes(start[4:8] if plain else start[8:12], order)
    if length == UNDEFINED:
        return True
    end = place + (8 if plain else 12) + length
    file.seek(end)
    behind = file.read(1 << 16)
    whole = end <= os.fstat(file.fileno()).st_size
    return whole and (behind.startswith(BEHIND) or not behind.strip(b"\0"))


def _element(header: Any, name: str) -> str:
    """One element as text; numbers and ids need no more decoding than this."""
    element = header.get_item(name)
    value = element.value if element is not None else None
    if isinstance(value, bytes):
        packed = len(value) == 2 and name in ("Rows", "Columns")
        value = int.from_bytes(value, "little") if packed else value.decode("latin-1")
    return "" if value is None else str(value).strip(" \0")
