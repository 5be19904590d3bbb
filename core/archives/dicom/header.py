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
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import VR

from core.archives.case_folders import is_file, walk
from core.processes import leave_if_told

OTHER_SUFFIXES = {
    ".nrrd", ".nhdr", ".nii", ".gz", ".mha", ".mhd", ".raw", ".zip", ".tar", ".csv", ".tsv",
    ".json", ".yaml", ".yml", ".txt", ".md", ".xml", ".html", ".pdf", ".png", ".jpg", ".jpeg",
    ".npy", ".npz", ".h5", ".py", ".log", ".safetensors", ".sqlite", ".db", ".exe", ".dll", ".xlsx",
}  # fmt: skip
TAGS = (
    "Modality", "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID",
    "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber", "PatientID", "PatientName",
    "PatientBirthDate", "ImagePositionPatient", "Rows", "Columns", "NumberOfFrames",
)  # fmt: skip
# What a damaged header may ask memory for; of a scan in one file it is held against the file.
MOST_PIXELS, MOST_IN_FRAMES = 2**26, 2**30
DICOMDIR = "1.2.840.10008.1.3.10"
UNDEFINED, PIXELS = 0xFFFFFFFF, 0x7FE00010
# Types whose length takes four bytes, after two that are reserved (DICOM PS3.5 7.1.2).
LONG = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
# Padding (FFFC,FFFC) or signatures (FFFA,FFFA) may follow the pixels.
BEHIND = (b"\xfc\xff\xfc\xff", b"\xff\xfc\xff\xfc", b"\xfa\xff\xfa\xff", b"\xff\xfa\xff\xfa")
TYPES = frozenset(str(vr) for vr in VR)
# Without a preamble a file begins with its first element, of group 0002 or 0008.
FIRST_GROUPS = (b"\x02\x00\x00\x00", b"\x02\x00\x01\x00", b"\x08\x00")


def candidates(root: Path) -> Iterator[tuple[Path, str]]:
    """Files below `root` that begin as DICOM files do, and why one cannot be opened ("": it can).

    Files that are empty, or that this account may not read, are among them where their names do
    not say that they are something else.
    """
    for folder, _, files in walk(root):
        for name in files:
            path = folder / name
            if path.suffix.lower() in OTHER_SUFFIXES or not is_file(path):
                continue
            try:
                with path.open("rb") as file:
                    start = file.read(132)
            except OSError as error:
                yield path, error.strerror or type(error).__name__
                continue
            if not start and path.suffix.lower() in ("", ".dcm"):
                yield path, "empty"
            if start[128:] == b"DICM" or start.startswith(FIRST_GROUPS):
                yield path, ""


def read_header(path: Path) -> dict[str, str] | None:
    """What a file's header says under `TAGS`, as text.

    Args:
        path: a file that begins as DICOM.

    Returns:
        None where the header cannot be read, or leads to pixels that cannot be.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with path.open("rb") as file:
                return _header(file)
        # pydicom raises half a dozen types for damaged files; each means the same here.
        except Exception:
            leave_if_told()
            return None


def _header(file: BinaryIO) -> dict[str, str] | None:
    header: Any = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    told = {name: _element(header, name) for name in TAGS}
    told["Modality"] = told["Modality"].upper()
    sizes = [int(told[name] or 1) for name in ("Rows", "Columns", "NumberOfFrames")]
    most = MOST_PIXELS
    if sizes[2] > 1 and sizes[0] * sizes[1] * sizes[2] <= os.fstat(file.fileno()).st_size:
        most = MOST_IN_FRAMES
    if not all(_known(part) for part in (header, header.file_meta)) or math.prod(sizes) > most:
        return None
    if told["Modality"] == "CT" and not _has_pixels(header, file):
        return None
    catalogue = header.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR
    return told if told["Modality"] or catalogue else None


def _known(data: Any) -> bool:
    """Whether every element is of a type that exists: what pydicom forgives, GDCM may not."""
    return all((vr := data.get_item(tag).VR) is None or vr in TYPES for tag in data.keys())  # noqa: SIM118


def _has_pixels(header: Any, file: BinaryIO) -> bool:
    """Whether the pixels stand where the header ends, and end where the file ends.

    A damaged length before them would lead elsewhere, and what follows them would be read as
    elements: either may ask GDCM for gigabytes. Padding may follow, and so may whole elements of
    later groups, as some makers have them.
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
    if end > os.fstat(file.fileno()).st_size:
        return False
    if behind.startswith(BEHIND) or not behind.strip(b"\0"):
        return True
    file.seek(end)
    return _whole_elements(file, plain, little)


def _whole_elements(file: BinaryIO, plain: bool, little: bool) -> bool:
    """Whether the rest of a file is nothing but known elements behind the pixels, in order."""
    start, size = file.tell(), os.fstat(file.fileno()).st_size
    rest: Any = read_dataset(file, plain, little)
    tags = [int(tag) for tag in rest.keys()]  # noqa: SIM118
    ordered = tags == sorted(tags) and bool(tags) and tags[0] > PIXELS
    # pydicom reads a value that is cut short without a word: lengths must add up to the file.
    lengths = sum(_stored_length(rest.get_item(tag), plain) for tag in tags)
    return ordered and _known(rest) and start + lengths == size == file.tell()


def _stored_length(element: Any, plain: bool) -> int:
    """Bytes that an element says it takes, its tag and its length among them."""
    length = int(getattr(element, "length", UNDEFINED))
    return length + (12 if not plain and element.VR in LONG else 8)


def _element(header: Any, name: str) -> str:
    """One element as text; numbers and ids need no more decoding than this."""
    element = header.get_item(name)
    value = element.value if element is not None else None
    if isinstance(value, bytes):
        packed = len(value) == 2 and name in ("Rows", "Columns")
        order: Literal["little", "big"] = "little" if header.original_encoding[1] else "big"
        value = int.from_bytes(value, order) if packed else value.decode("latin-1")
    return "" if value is None else str(value).strip(" \0")
