"""Pictures of contours: the right slice, the right way up, no larger than allowed, no case id."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client import overlays as overlay
from client.overlays import cut, write_overlays
from core.archives.case_writer import write_entry
from core.archives.images.volume import Volume
from core.data.cache import Recipe
from core.data.cached_case import Entry, open_entry
from core.data.geometry import Geometry
from core.organs.vocabulary import BUILT_IN
from core.plan.schema import Preprocess

ORGANS = ("Brainstem", "Parotid_L", "Bone_Mandible")
COLOURS = {organ: BUILT_IN[organ].colour for organ in ORGANS}
GEOMETRY = Geometry((24, 60, 80), (3.0, 2.0, 2.0), (-80.0, -60.0, 10.0))
SETTINGS = Preprocess(spacing_mm=[3.0, 2.0, 2.0], crop=[24, 64, 80])


def head(geometry: Geometry = GEOMETRY) -> Volume:
    """A round head of water with a nose, and three boxes as organs, in LPS order."""
    _, y, x = np.indices(GEOMETRY.size).astype(float)
    inside = ((y - 32) / 24) ** 2 + ((x - 40) / 26) ** 2 < 1
    inside |= (abs(x - 40) < 4) & (y < 32) & (y > 3)
    image = np.where(inside, 40, -1000).astype(np.int16)
    masks = {organ: np.zeros(GEOMETRY.size, dtype=np.bool_) for organ in ORGANS}
    masks["Brainstem"][5:10, 34:40, 36:44] = True
    masks["Brainstem"][7, 32:42, 34:46] = True  # largest slice
    masks["Parotid_L"][4:8, 26:36, 56:62] = True
    masks["Bone_Mandible"][2:5, 10:16, 25:55] = True
    image[masks["Parotid_L"]] = -60
    image[masks["Bone_Mandible"]] = 900
    return Volume("canary-patient", image, geometry, masks)


def prepared(folder: Path, volume: Volume) -> Entry:
    (folder / "entries").mkdir(parents=True)
    write_entry(folder / "entries" / "key", volume, [], Recipe(ORGANS, SETTINGS), (), "made")
    line = {"key": "key", "case": volume.case, "split": "test"}
    return open_entry(folder, line, ORGANS)


def labels(volume: Volume) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A prediction: the mandible missed, the brainstem one voxel off, the parotid right."""
    label = np.zeros(volume.geometry.size, dtype=np.uint8)
    label[np.roll(volume.masks["Brainstem"], 1, axis=2)] = 1
    label[volume.masks["Parotid_L"]] = 2
    return label


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Volume, Entry]:
    volume = head()
    return volume, prepared(tmp_path_factory.mktemp("case") / "entry", volume)


def test_one_picture_an_organ_named_by_number_and_organ(
    tmp_path: Path, case: tuple[Volume, Entry]
) -> None:
    volume, entry = case
    first = write_overlays(tmp_path, entry, labels(volume), ORGANS, COLOURS)
    again = write_overlays(tmp_path, entry, labels(volume), ORGANS[:1], COLOURS)
    assert [path.name for path in first] == [
        "001_Brainstem.png", "002_Parotid_L.png", "003_Bone_Mandible.png",
    ]  # fmt: skip
    assert [path.name for path in again] == ["004_Brainstem.png"]
    assert sorted(tmp_path.iterdir()) == [*first, *again]
    for path in first:
        content = path.read_bytes()
        assert struct.unpack(">II", content[16:24]) == (528, 316)
        assert b"canary" not in content
        assert len(content) < 200_000


def test_the_slice_is_where_the_organ_is_largest(case: tuple[Volume, Entry]) -> None:
    volume, entry = case
    piece = cut("Brainstem", entry, labels(volume), volume.masks, ORGANS)
    assert piece.truth["Brainstem"].sum() == 10 * 12
    assert piece.prediction["Brainstem"].sum() == 10 * 12
    assert np.array_equal(
        np.roll(piece.truth["Brainstem"], 1, axis=1), piece.prediction["Brainstem"]
    )
    assert set(piece.prediction) == {"Brainstem", "Parotid_L"} & set(piece.truth)


def test_a_crop_round_the_organ_never_the_whole_head(case: tuple[Volume, Entry]) -> None:
    volume, entry = case
    for organ in ORGANS:
        piece = cut(organ, entry, labels(volume), volume.masks, ORGANS)
        size_mm = [n * mm for n, mm in zip(piece.image.shape, piece.pixel_mm, strict=True)]
        assert max(size_mm) <= overlay.LARGEST_MM
        rows, columns = np.nonzero(piece.truth[organ])
        assert rows.min() > 0
        assert columns.min() > 0
        organ_mm = 2.0 * (1 + max(np.ptp(rows), np.ptp(columns)))
        assert max(size_mm) <= organ_mm + 2 * overlay.MARGIN_MM
    whole = dict(volume.masks)
    whole["Brainstem"] = volume.image > -900
    piece = cut("Brainstem", entry, labels(volume), whole, ORGANS)
    assert max(piece.image.shape) * 2.0 <= overlay.LARGEST_MM


def test_the_networks_crop_stands_for_the_ct(case: tuple[Volume, Entry]) -> None:
    volume, entry = case
    for organ in ("Brainstem", "Parotid_L"):
        piece = cut(organ, entry, labels(volume), volume.masks, ORGANS)
        mask = volume.masks[organ]
        index = int(np.argmax(mask.sum(axis=(1, 2))))
        there, here = np.argwhere(mask[index])[0], np.argwhere(piece.truth[organ])[0]
        (y, x), (rows, columns) = there - here, piece.image.shape
        ct = volume.image[index, y : y + rows, x : x + columns]
        low, high = SETTINGS.window_hu
        known = np.isfinite(piece.image)
        assert known.mean() > 0.7
        error = np.abs(np.clip(ct, low, high) - piece.image)[known]
        assert np.median(error) < 5
        assert error.mean() < 40


@pytest.mark.parametrize("axes", ["zxy", "xyz", "flipped"])
def test_the_picture_does_not_depend_on_the_files_axes(
    tmp_path: Path, case: tuple[Volume, Entry], axes: str
) -> None:
    volume, entry = case
    expected = cut("Parotid_L", entry, labels(volume), volume.masks, ORGANS)
    matrix = {
        "zxy": ((0, 2, 1), (0, 1, 0, 1, 0, 0, 0, 0, 1)),
        "xyz": ((2, 1, 0), (0, 0, 1, 0, 1, 0, 1, 0, 0)),
        "flipped": ((0, 1, 2), (-1, 0, 0, 0, -1, 0, 0, 0, -1)),
    }
    order, direction = matrix[axes]
    flip = axes == "flipped"
    origin = (-80.0 + 79 * 2, -60.0 + 59 * 2, 10.0 + 23 * 3) if flip else GEOMETRY.origin_mm

    def turned(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> object:
        moved = np.transpose(array, order)
        return np.ascontiguousarray(moved[::-1, ::-1, ::-1] if flip else moved)

    size = tuple(GEOMETRY.size[i] for i in order)
    spacing = tuple(GEOMETRY.spacing_mm[i] for i in order)
    geometry = Geometry(size, spacing, origin, tuple(map(float, direction)))  # type: ignore[arg-type]
    masks = {organ: turned(mask) for organ, mask in volume.masks.items()}
    other = Volume("b", turned(volume.image), geometry, masks)  # type: ignore[arg-type]
    again = prepared(tmp_path / "entry", other)
    label = turned(labels(volume))
    piece = cut("Parotid_L", again, label, other.masks, ORGANS)  # type: ignore[arg-type]
    assert np.array_equal(piece.truth["Parotid_L"], expected.truth["Parotid_L"])
    assert piece.pixel_mm == expected.pixel_mm
    inside = np.isfinite(piece.image) & np.isfinite(expected.image)
    assert inside.mean() > 0.7
    assert np.abs(piece.image - expected.image)[inside].max() < 1


def test_more_organs_than_rows_are_taken_from_worst_to_best(
    tmp_path: Path, case: tuple[Volume, Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, entry = case
    monkeypatch.setattr(overlay, "ROWS", 2)
    paths = write_overlays(tmp_path, entry, labels(volume), ORGANS, COLOURS)
    assert [path.name for path in paths] == ["001_Parotid_L.png", "002_Bone_Mandible.png"]


def only(organ: str) -> Volume:
    """The head with one organ drawn."""
    volume = head()
    return replace(volume, masks={organ: volume.masks[organ]})


def test_organs_without_truth_are_not_drawn(tmp_path: Path) -> None:
    entry = prepared(tmp_path / "entry", only("Brainstem"))
    paths = write_overlays(tmp_path, entry, labels(head()), ORGANS, COLOURS)
    assert [path.name for path in paths] == ["001_Brainstem.png"]


def test_contours_have_the_organs_colours(tmp_path: Path) -> None:
    from matplotlib.image import imread

    volume, colours = head(), {"Parotid_L": (255, 0, 255)}
    entry = prepared(tmp_path / "entry", only("Parotid_L"))
    (path,) = write_overlays(tmp_path, entry, labels(volume), ORGANS, colours)
    pixels = imread(path)[..., :3]
    magenta = (pixels[..., 0] > 0.9) & (pixels[..., 1] < 0.2) & (pixels[..., 2] > 0.9)
    left, right = magenta[:, :264].sum(), magenta[:, 264:].sum()
    assert left > 50
    assert right > 50
    missed = labels(volume)
    missed[missed == 2] = 0
    (path,) = write_overlays(tmp_path, entry, missed, ORGANS, colours)
    pixels = imread(path)[..., :3]
    magenta = (pixels[..., 0] > 0.9) & (pixels[..., 1] < 0.2) & (pixels[..., 2] > 0.9)
    assert magenta[:, :264].sum() > 50
    assert not magenta[:, 264:].any()
