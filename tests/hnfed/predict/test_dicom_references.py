from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from benchmarks.dicom_example import Series
from core.archives.archive import open_archive
from core.data.geometry import Geometry
from core.errors import CaseError
from hnfed.predict.dicom_references import read_headers
from hnfed.predict.dicomseg_write import write_dicomseg
from hnfed.predict.rtstruct_write import Drawn, write_rtstruct

GRID = Geometry((6, 20, 20), (3.0, 1.0, 1.0))
CHARACTER_SET, NAME, ID = 0x00080005, 0x00100010, 0x00100020
JAPANESE = b"Yamada^Tarou=" + "山田^太郎".encode("iso2022_jp")


def raw(tag: int, vr: str, value: bytes) -> RawDataElement:
    return RawDataElement(BaseTag(tag), vr, len(value), value, 0, False, True)


def of_name(character_set: bytes | None, name: bytes) -> Callable[[int, Any], None]:
    def change(level: int, data: Any) -> None:
        data.pop(CHARACTER_SET, None)
        if character_set is not None:
            data[CHARACTER_SET] = raw(CHARACTER_SET, "CS", character_set)
        data[NAME] = raw(NAME, "PN", name + b" " * (len(name) % 2))
        data.PatientBirthDate = data.PatientSex = data.StudyDate = data.StudyTime = ""
        data.ReferringPhysicianName = data.StudyID = data.AccessionNumber = ""
        data.PositionReferenceIndicator = data.Manufacturer = ""

    return change


def headers_of(folder: Path, change: Callable[[int, Any], None]) -> list[Any]:
    image = np.zeros(GRID.size, dtype=np.int16)
    Series(image, GRID, change=change).write(folder / "p")
    (ref,) = open_archive(folder).cases
    return read_headers(ref.files, GRID)


def drawn() -> list[Drawn]:
    mask = np.zeros(GRID.size, dtype=bool)
    mask[2:4, 5:9, 5:9] = True
    return [Drawn("Brainstem", mask, (1, 2, 3))]


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        (b"\\ISO 2022 IR 87", JAPANESE),
        (b"ISO_IR 100", "Müller^Jürgen".encode("latin-1")),
        (b"ISO_IR 192", "Łukasz^Żak".encode()),
        (b"GB18030", "王^小东".encode("gb18030")),
        (None, "Müller^Jürgen".encode("latin-1")),
        (b"Not Supplied", "Müller^Jürgen".encode("latin-1")),
        (b"ISO_IR 100", b"Doe^John  ^"),
    ],
    ids=["japanese", "latin", "utf-8", "chinese", "none said", "not supplied", "blanks"],
)
@pytest.mark.parametrize("kind", ["RS", "SEG"])
@pytest.mark.filterwarnings("ignore")
def test_a_name_is_copied_byte_for_byte(
    tmp_path: Path, character_set: bytes | None, name: bytes, kind: str
) -> None:
    headers = headers_of(tmp_path, of_name(character_set, name))
    path = tmp_path / f"{kind}.dcm"
    if kind == "RS":
        write_rtstruct(path, drawn(), GRID, headers, "phase pretrain")
    else:
        write_dicomseg(path, drawn(), headers, "phase pretrain")
    written, source = pydicom.dcmread(path), pydicom.dcmread(next((tmp_path / "p").iterdir()))
    for tag in (CHARACTER_SET, NAME, ID):
        one, other = written.get_item(tag), source.get_item(tag)
        assert (one and one.value) == (other and other.value)
    valid = character_set not in (None, b"Not Supplied")  # else the CT's own name breaks the rules
    if shutil.which("dciodvfy") and valid:
        told = subprocess.run(["dciodvfy", path], capture_output=True, text=True, errors="replace")
        wrong = [line for line in told.stderr.splitlines() if line.startswith("Error")]
        assert wrong == []


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID"])
@pytest.mark.parametrize("empty", [True, False])
def test_a_ct_without_an_id_that_contours_repeat_is_refused(
    tmp_path: Path, keyword: str, empty: bool
) -> None:
    def change(level: int, data: Any) -> None:
        if empty:
            setattr(data, keyword, "")
        else:
            delattr(data, keyword)

    with pytest.raises(CaseError, match=f"no {keyword}") as caught:
        headers_of(tmp_path, change)
    assert "--format nrrd" in caught.value.remedy
