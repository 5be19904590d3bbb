from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.archives.images.nrrd import doubt
from core.archives.images.volume import read_image, write_image
from core.data.geometry import Geometry
from core.errors import CaseError

GRID = Geometry((3, 4, 5), (3.0, 1.0, 1.0), (1e-3, -2.5, 1e2))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_image(tmp_path / "i.nrrd", np.arange(60, dtype=np.int16).reshape(3, 4, 5), GRID)
    return tmp_path / "i.nrrd"


def changed(image: Path, old: bytes, new: bytes) -> str:
    data = image.read_bytes()
    assert old in data
    image.write_bytes(data.replace(old, new, 1))
    return doubt(image)


def test_what_simpleitk_writes_passes(image: Path) -> None:
    assert doubt(image) == ""
    assert read_image(image)[1] == GRID


def test_what_others_write_passes(image: Path) -> None:
    more = (
        b'# a note\ncontent: "CT", 12:30\nspace units: "mm" "mm" "mm"\nlabels: "x" "y" "z"\n'
        b"Segment0_Tags:=" + b"Segmentation.Status:inprogress|" * 40 + b"\nencoding: gzip"
    )
    assert changed(image, b"encoding: gzip", more) == ""
    assert read_image(image)[0].sum() == sum(range(60))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"NRRD000", b"NRXD000", "no NRRD"),
        (b"encoding: gzip", b"encoding: gzip\ndata file: /etc/passwd", "outside its own folder"),
        (b"sizes: 5 4 3", b"sizes: 5 4", "dimensions"),
        (b"sizes: 5 4 3", b"sizes: 500000000 400000 3000", "GB"),
        (b"sizes: 5 4 3", b"sizes: 50000 400 3", "can hold"),
        (b"sizes: 5 4 3", b"sizes: 5 4 -3", "reads"),
        (b"dimension: 3", b"dimension: 3\ndimension: 3", "twice"),
        (b"type: ", b"type: " + b"A" * 5000, "too long"),
        (b"type: ", b"type: \x00\x00", "no text"),
        (b"type: ", b"type: \xff\xfe", "no text"),
        (b"space directions: (", b"space directions: (((" + b"1" * 99, "reads"),
        (b"endian: little", b"endian: little\nnonsense", "no field"),
        (b"encoding: gzip\n", b"", "missing"),
        (b"endian: little", b'endian: little\nspace units: "cm" "cm" "cm"', "write it in mm"),
        (b"left-posterior-superior", b"scanner-xyz", "does not say where left"),
    ],
)
def test_damage_is_named_before_simpleitk_sees_it(
    image: Path, old: bytes, new: bytes, said: str
) -> None:
    assert said in changed(image, old, new)
    with pytest.raises(CaseError) as error:
        read_image(image)
    assert error.value.code == "E_IMAGE_UNREADABLE"


def test_a_header_without_end(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:60])
    assert "no end" in doubt(image)
