from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks.nnunet import (
    NAME,
    ORGANS,
    dice_row,
    fitting_epochs,
    label_map,
    timed,
    write_raw,
)
from core.archives.archive import open_archive
from core.archives.images.volume import Volume, write_image, write_mask
from core.data.geometry import Geometry

GRID = Geometry((16, 32, 32), (3.0, 8.0, 8.0))


def ball(z: int, y: int, x: int, radius: float) -> np.ndarray:
    axes = np.ogrid[:16, :32, :32]
    return sum((a - c) ** 2 for a, c in zip(axes, (z, y, x), strict=True)) <= radius**2


def write_cases(root: Path) -> None:
    rows = ["case,split"]
    for case, split in (("a", "train"), ("b", "train"), ("c", "val"), ("d", "test")):
        rows.append(f"{case},{split}")
        image = np.where(ball(8, 16, 16, 12), 40, -1000).astype(np.int16)
        write_image(root / case / "img.nrrd", image, GRID)
        for i, organ in enumerate(ORGANS):
            if (case, organ) == ("b", "Parotid_R"):
                continue
            path = root / case / "structures" / f"{organ}.nrrd"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mask(path, ball(8, 16, 8 + 5 * i, 2), GRID)
    (root / "cases.csv").write_text("\n".join(rows) + "\n")


def test_only_cases_with_all_organs_are_trained_on_and_our_split_is_the_fold(
    tmp_path: Path,
) -> None:
    write_cases(tmp_path / "data")
    write_raw(open_archive(tmp_path / "data"), tmp_path / "work")
    raw = tmp_path / "work" / "raw" / NAME
    assert sorted(p.name for p in (raw / "imagesTr").iterdir()) == [
        "a_0000.nii.gz",
        "c_0000.nii.gz",
    ]
    assert [p.name for p in (raw / "imagesTs").iterdir()] == ["d_0000.nii.gz"]
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTr" / "a.nii.gz")))
    assert sorted(np.unique(labels)) == [0, 1, 2, 3, 4]
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 2
    folds = tmp_path / "work" / "preprocessed" / NAME / "splits_final.json"
    assert json.loads(folds.read_text()) == [{"train": ["a"], "val": ["c"]}]


def test_an_overlap_goes_to_the_smaller_organ() -> None:
    masks = {o: ball(8, 16, 8, 4 - i) for i, o in enumerate(ORGANS)}
    volume = Volume("a", np.zeros(GRID.size, np.int16), GRID, masks)
    labels = label_map(volume)
    assert (labels[masks[ORGANS[3]]] == 4).all()
    assert (labels[masks[ORGANS[2]] & ~masks[ORGANS[3]]] == 3).all()


@pytest.mark.parametrize(("budget", "epochs"), [(10.0, 1), (130.0, 2), (1000.0, 18)])
def test_epochs_fit_the_budget(budget: float, epochs: int) -> None:
    assert fitting_epochs(budget, 10.0, 30.0, 4) == epochs  # 5 s a step, 11 steps an epoch


def test_a_command_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="ended with 1"):
        timed(["false"])


def test_a_network_that_has_learnt_nothing_is_no_peer() -> None:
    nothing = dice_row(0.768, 0.0)
    assert (nothing["ratio"], nothing["target"], nothing["met"]) == (None, None, None)
    assert "no comparison" in nothing["against"]
    assert dice_row(0.7, 0.8)["met"] is False
    assert dice_row(0.8, 0.7)["met"] is True
