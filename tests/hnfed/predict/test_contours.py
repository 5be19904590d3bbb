from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.data.geometry import Geometry
from core.errors import CaseError
from hnfed.predict import contours
from hnfed.predict.contours import Contours, write_contours

GRID = Geometry((3, 8, 9), (3.0, 1.0, 1.0))


def drawn() -> Contours:
    labels = np.zeros(GRID.size, dtype=np.uint8)
    labels[1, 2:5, 3:6] = 1
    return Contours("p", labels, ("Brainstem", "Larynx"), GRID)


def test_what_was_written_before_stays_where_one_format_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: object) -> None:
        path.write_text("half")
        raise CaseError("E_IMAGE_UNREADABLE", "dicomseg", "SEG.dcm", "x", problem="y")

    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "Brainstem.nrrd").write_text("of another model")
    monkeypatch.setattr(contours, "write_dicomseg", fail)
    with pytest.raises(CaseError):
        write_contours(tmp_path, drawn(), ("nrrd", "nifti", "dicomseg"), {".uncertain.csv": "a"})
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["Brainstem.nrrd"]
    assert (tmp_path / "p" / "Brainstem.nrrd").read_text() == "of another model"


def test_remarks_are_written_with_the_contours(tmp_path: Path) -> None:
    written = write_contours(tmp_path, drawn(), ("nifti",), {".uncertain.csv": "organ\n"})
    assert [p.name for p in written] == ["p.nii.gz", "p.uncertain.csv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.nii.gz", "p.uncertain.csv"]
