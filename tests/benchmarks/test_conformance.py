from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import conformance
from benchmarks.dicom_example import Series, Structures
from core.archives.images.volume import write_mask
from core.data.geometry import Geometry

GRID = Geometry((12, 40, 40), (3.0, 1.0, 1.0), (-20.0, -20.0, 0.0))
Z, Y, X = np.indices(GRID.size)
TRUTH = {
    "cube": (X >= 10) & (X < 25) & (Y >= 10) & (Y < 30) & (Z >= 2) & (Z < 9),
    "lid": (X >= 26) & (X < 34) & (Y >= 10) & (Y < 30) & (Z >= 2) & (Z < 5),
}


def outline(name: str) -> list[np.ndarray]:
    """Its contours, along the edges of its voxels."""
    z, y, x = np.nonzero(TRUTH[name])
    left, right, top, below = x.min() - 20.5, x.max() - 19.5, y.min() - 20.5, y.max() - 19.5
    corners = [(left, top), (right, top), (right, below), (left, below)]
    return [np.array([(*c, 3.0 * level) for c in corners]) for level in np.unique(z)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Laid out as the test's generator does."""
    body = np.where((X > 3) & (X < 36), 40, -1000).astype(np.int16)
    Series(body, GRID).write(tmp_path / "refct")
    (tmp_path / "rtstruct").mkdir()
    Structures({n: outline(n) for n in TRUTH}).write(tmp_path / "rtstruct" / "rs.dcm")
    for name, mask in TRUTH.items():
        write_mask(tmp_path / "groundtruth" / f"{name}.nii.gz", mask, GRID)
    told = {"rois": [*TRUTH], "rtstruct_path": "rtstruct/rs.dcm", "groundtruth_dir": "groundtruth"}
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    return tmp_path


def ends(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["conformance", *map(str, words)])
    return conformance.main()


def test_exact_solids_keep_every_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = {r["name"]: r for r in conformance.compare(folder)}
    assert len(rows) == len(TRUTH) * len(conformance.MEASURES)
    assert all(r["met"] for r in rows.values())
    assert (rows["cube: dice"]["value"], rows["cube: dice"]["target"]) == (1.0, 0.99)
    assert (rows["lid: hd95_mm"]["value"], rows["lid: hd95_mm"]["target"]) == (0.0, 2.0)
    target = tmp_path / "rows.json"
    assert ends(monkeypatch, folder, "--json", target) == 0
    assert len(json.loads(target.read_text())) == len(rows)


def test_a_solid_that_is_read_wrongly_breaks_limits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cube two slices too high: 6 mm, and a Dice of 5 of 7."""
    write_mask(folder / "groundtruth" / "cube.nii.gz", np.roll(TRUTH["cube"], 2, 0), GRID)
    rows = {r["name"]: r for r in conformance.compare(folder)}
    assert rows["cube: dice"]["value"] == pytest.approx(5 / 7)
    assert rows["cube: hd95_mm"]["value"] == pytest.approx(6.0)
    assert [n for n in rows if not rows[n]["met"]] == [
        f"cube: {measure}" for measure in ("dice", "surface_dice", "hd95_mm", "msd_mm")
    ]
    assert ends(monkeypatch, folder) == 1


def test_a_solid_of_which_nothing_is_drawn_has_no_distance() -> None:
    values = conformance.measured(np.zeros(GRID.size, dtype=np.bool_), TRUTH["cube"], GRID)
    assert values == {
        "dice": 0.0, "surface_dice": 0.0, "hd95_mm": np.inf, "msd_mm": np.inf, "volume": 1.0,
    }  # fmt: skip


def test_another_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in (None, "[1]", "{}"):
        if content is not None:
            (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(SystemExit) as caught:
            ends(monkeypatch, tmp_path)
        assert caught.value.code == 2
        assert "rtmask-conformance generate" in capsys.readouterr().err
