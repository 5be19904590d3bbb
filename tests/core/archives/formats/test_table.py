"""Each archive format is a row and a module, and neither is there without the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.archives.formats import table
from core.archives.formats.table import FORMATS, any_layout, reader
from core.errors import UserError


def test_every_module_is_a_row() -> None:
    modules = {p.stem for p in Path(table.__file__).parent.glob("*.py")}
    assert modules - {"__init__", "table"} == set(FORMATS)


@pytest.mark.parametrize("format", FORMATS)
def test_a_reader_finds_and_reads(format: str) -> None:
    for name in ("find", "read_ct", "read_mask"):
        assert callable(getattr(reader(format), name))


@pytest.mark.parametrize("format", ["", "nrrd", "table", "../dicom", "pddca.x"])
def test_what_is_no_row_is_no_format(format: str) -> None:
    with pytest.raises(UserError, match="use auto, pddca, dicom, nnunet or openkbp"):
        reader(format)


def test_the_error_names_every_layout() -> None:
    assert any_layout().count("(") == len(FORMATS)
    assert all(f"({name})" in any_layout() for name in FORMATS)
