"""What lies in a tree of DICOM files: CT series, structure sets, and what is neither.

A series is what patient, study and series UID say together: an anonymiser may give all patients
the same UIDs. Where the series UID was taken away, frame of reference, number and folder tell
series apart. Images of one series that name different patients, or that bear one UID and differ,
are no series: nothing of it is read.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core.archives.dicom import rtstruct, segmentation
from core.archives.dicom.header import candidates, read_header
from core.archives.dicom.rtstruct import StructureSet
from core.archives.dicom.series import read_plane
from core.errors import CaseError

Key = tuple[str, ...]
# Objects of these modalities are no images.
NO_IMAGES = frozenset(
    {"", "DOC", "FID", "KO", "PLAN", "PR", "REG", "RTDOSE", "RTPLAN", "RTRECORD", "RTSTRUCT", "RWV",
     "SEG", "SR"}
)  # fmt: skip
# What all images of one series share; a value that is empty says nothing.
OF_ONE_PATIENT = ("PatientName", "PatientBirthDate", "FrameOfReferenceUID")


@dataclass
class Series:
    """A CT series as the headers of its images show it.

    Attributes:
        key: what tells it from every other series.
        study, uid, frame, patient, number: as its images say.
        files: one a slice, or one with all of them.
        slices: their number.
        copies: files that are copies of others, and are not read.
        quarrel: why its images are no one series; "" where they are.
    """

    key: Key
    study: str
    uid: str
    frame: str
    patient: str
    number: str
    files: list[Path] = field(default_factory=list)
    slices: int = 0
    copies: int = 0
    quarrel: str = ""
    shared: dict[str, str] = field(default_factory=dict)
    instances: dict[str, dict[str, Path]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all of its files."""
        return Path(os.path.commonpath([path.parent for path in self.files]))

    @property
    def owner(self) -> tuple[str, str]:
        """Patient and study: between two of these nothing is shared."""
        return self.patient, self.study or self.uid


@dataclass
class Others:
    """Images of one study that are no CT: how many of each modality, and one of their folders."""

    folder: Path
    count: Counter[str] = field(default_factory=Counter)


@dataclass
class Tree:
    """Everything found in a tree.

    Attributes:
        series: the CT series.
        sets: structure sets and segmentations by file.
        unreadable: files that cannot be read, and why.
        damaged_sets: structure sets that cannot be read.
        localizers: number of localizer images by patient and study.
        others: images that are no CT, by patient and study.
        modality_of: modality by series UID and by frame of reference, of images that are no CT.
    """

    series: dict[Key, Series] = field(default_factory=dict)
    sets: dict[Path, StructureSet] = field(default_factory=dict)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    damaged_sets: list[tuple[Path, CaseError]] = field(default_factory=list)
    localizers: Counter[tuple[str, str]] = field(default_factory=Counter)
    others: dict[tuple[str, str], Others] = field(default_factory=dict)
    modality_of: dict[str, str] = field(default_factory=dict)


def read_tree(root: Path) -> Tree:
    """Reads the headers of all DICOM files below `root`; of what may be a copy, the pixels too."""
    tree = Tree()
    for path, unopened in candidates(root):
        header = None if unopened else read_header(path)
        if header is None:
            tree.unreadable.append((path, unopened))
            continue
        kind = header["Modality"]
        if kind in ("RTSTRUCT", "SEG"):
            read = rtstruct.read_structure_set if kind == "RTSTRUCT" else segmentation.read
            try:
                tree.sets[path] = read(path)
            except CaseError as error:
                tree.damaged_sets.append((path, error))
        elif kind == "CT":
            _add_image(tree, path, header)
        elif kind not in NO_IMAGES:
            _add_other(tree, path, header)
    _gather_scattered(tree)
    return tree


def _gather_scattered(tree: Tree) -> None:
    """Makes one series, which is not read, of images that only share their series UID.

    That is where each image names another patient or study, and where some name none: apart, each
    would be a part of a scan.
    """
    by_uid: dict[str, list[Series]] = {}
    for one in tree.series.values():
        if one.uid:
            by_uid.setdefault(one.uid, []).append(one)
    for members in by_uid.values():
        if len(members) > 1 and max(one.slices for one in members) == 1:
            _join(tree, members, "each of its images names another patient or study")
            continue
        vague = [a for a in members if any(_vaguely_one(a, b) for b in members)]
        if vague:
            _join(tree, vague, "some of its images name no patient, or no study")


def _vaguely_one(one: Series, other: Series) -> bool:
    """Whether two series may be one: where they do not say the same, one of them says nothing."""
    pairs = ((one.patient, other.patient), (one.study, other.study))
    differ = [pair for pair in pairs if pair[0] != pair[1]]
    return bool(differ) and all("" in pair for pair in differ)


def _join(tree: Tree, members: list[Series], quarrel: str) -> None:
    first, *rest = members
    first.quarrel = quarrel
    for one in rest:
        first.files += one.files
        first.slices += one.slices
        del tree.series[one.key]


def _add_other(tree: Tree, path: Path, header: Mapping[str, str]) -> None:
    owner = header["PatientID"], header["StudyInstanceUID"] or header["SeriesInstanceUID"]
    kind = re.sub(r"[^A-Z]", "", header["Modality"])[:16]
    tree.others.setdefault(owner, Others(path.parent)).count[kind] += 1
    for name in ("SeriesInstanceUID", "FrameOfReferenceUID"):
        if header[name]:
            tree.modality_of.setdefault(header[name], kind)


def _add_image(tree: Tree, path: Path, header: Mapping[str, str]) -> None:
    owner = header["PatientID"], header["StudyInstanceUID"] or header["SeriesInstanceUID"]
    if "LOCALIZER" in header["ImageType"]:
        tree.localizers[owner] += 1
        return
    key = _key_of(path, header)
    one = tree.series.setdefault(
        key,
        Series(
            key, header["StudyInstanceUID"], header["SeriesInstanceUID"],
            header["FrameOfReferenceUID"], header["PatientID"], header["SeriesNumber"],
        ),
    )  # fmt: skip
    for name in OF_ONE_PATIENT:
        value = re.sub(r"[\s^]+", " ", header[name]).strip().casefold()
        if value and one.shared.setdefault(name, value) != value:
            one.quarrel = f"its images have different values of {name}"
    if not _is_copy(one, path, header):
        one.files.append(path)
        one.slices += max(1, int(header["NumberOfFrames"] or 1))


def _key_of(path: Path, header: Mapping[str, str]) -> Key:
    uid = header["SeriesInstanceUID"]
    key = header["PatientID"], header["StudyInstanceUID"], uid
    if uid:
        return key
    return (*key, header["FrameOfReferenceUID"], header["SeriesNumber"], str(path.parent))


def _is_copy(one: Series, path: Path, header: Mapping[str, str]) -> bool:
    """Whether the series holds this image already; notes where two of one UID are not the same."""
    uid, place = header["SOPInstanceUID"], _place(header["ImagePositionPatient"])
    known = one.instances.setdefault(uid, {}) if uid else {}
    first = known.get(place)
    if first is not None:
        if _same_pixels(first, path):
            one.copies += 1
            return True
        one.quarrel = "two of its images bear one UID and place, and differ"
    elif any(other.parent != path.parent for other in known.values()):
        one.quarrel = "images in different folders bear one UID, and lie in different places"
    known.setdefault(place, path)
    return False


def _place(text: str) -> str:
    try:
        return " ".join(f"{float(value):.3f}" for value in text.split("\\"))
    except ValueError:
        return text


def _same_pixels(one: Path, other: Path) -> bool:
    try:
        return bool(np.array_equal(read_plane(one), read_plane(other)))
    except (CaseError, OSError):
        return False
