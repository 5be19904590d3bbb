"""Pictures of contours: the right cases and slices, the right way up, no face, no case id."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from client import overlays as overlay
from client.overlays import cut, ranked, write_overlay
from core.archives.case_writer import write_entry
from core.archives.images.volume import Volume
from core.data.cache import Recipe
from core.data.cached_case import Entry, open_entry
from core.data.geometry import Geometry
from core.metrics.scores import CaseScore
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


def score(case: str, dice: float, organ: str = "Brainstem") -> CaseScore:
    return CaseScore(case, organ, dice, 3.0, 400.0, 10.0, 9.0, 0.5)


def drawn_of(volume: Volume, organ: str) -> npt.NDArray[np.bool_]:
    return labels(volume) == ORGANS.index(organ) + 1


def test_cases_are_chosen_from_the_worst_to_the_best() -> None:
    scores = [score(c, d) for c, d in zip("abcde", (0.7, 0.2, 0.9, 0.5, 0.6), strict=True)]
    scores.append(score("z", 0.1, "Parotid_L"))
    found = {rank: s.case for rank, s in ranked(scores, "Brainstem", 3).items()}
    assert found == {"worst": "b", "median": "e", "best": "c"}
    assert {r: s.case for r, s in ranked(scores, "Brainstem", 1).items()} == {"worst": "b"}
    assert {r: s.case for r, s in ranked(scores[:2], "Brainstem", 3).items()} == {
        "worst": "b", "best": "a",
    }  # fmt: skip
    assert list(ranked(scores, "Parotid_L", 3)) == ["only"]
    assert ranked(scores, "Brainstem", 0) == ranked(scores, "Larynx", 3) == {}


def test_a_picture_is_named_by_number_organ_and_rank(
    tmp_path: Path, case: tuple[Volume, Entry]
) -> None:
    volume, entry = case
    paths = [
        write_overlay(tmp_path, "worst_0.512", entry, drawn_of(volume, o), o, COLOURS[o])
        for o in ORGANS
    ]
    assert [path.name for path in paths] == [
        "001_Brainstem_worst_0.512.png",
        "002_Parotid_L_worst_0.512.png",
        "003_Bone_Mandible_worst_0.512.png",
    ]
    for path in paths:
        content = path.read_bytes()
        assert struct.unpack(">II", content[16:24]) == (3 * overlay.PANEL + 2 * overlay.GAP, 220)
        assert b"canary" not in content
        assert len(content) < 60_000


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slice_is_where_the_organ_is_largest(case: tuple[Volume, Entry], axis: int) -> None:
    volume, entry = case
    mask = volume.masks["Brainstem"]
    piece = cut(axis, entry, mask, np.roll(mask, 1, axis=2))
    others = tuple(a for a in range(3) if a != axis)
    assert piece.truth.sum() == mask.sum(axis=others).max()
    if axis == 0:
        assert np.array_equal(np.roll(piece.truth, 1, axis=1), piece.prediction)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_crop_round_the_organ_never_the_face(case: tuple[Volume, Entry], axis: int) -> None:
    volume, entry = case
    for organ in ORGANS:
        mask = volume.masks[organ]
        piece = cut(axis, entry, mask, mask)
        size_mm = [n * mm for n, mm in zip(piece.image.shape, piece.pixel_mm, strict=True)]
        assert max(size_mm) <= overlay.LARGEST_MM
        rows, columns = np.nonzero(piece.truth)
        organ_mm = max((1 + np.ptp(i)) * mm for i, mm in zip(
            (rows, columns), piece.pixel_mm, strict=True))  # fmt: skip
        assert max(size_mm) <= organ_mm + 2 * overlay.MARGIN_MM
        if axis != 1:  # rows, or columns, run to posterior: what lies in front is blank
            known = np.isfinite(piece.image).any(axis=1 - axis // 2)
            front = np.flatnonzero(known)[0] * 2.0
            start = (rows if axis == 0 else columns).min() * 2.0
            assert start - front <= overlay.FRONT_MM or organ == "Brainstem"
    whole = volume.image > -900
    assert max(cut(axis, entry, whole, whole).image.shape) * 2.0 <= overlay.LARGEST_MM


def test_the_networks_crop_stands_for_the_ct(case: tuple[Volume, Entry]) -> None:
    volume, entry = case
    for organ in ("Brainstem", "Parotid_L"):
        mask = volume.masks[organ]
        piece = cut(0, entry, mask, mask)
        index = int(np.argmax(mask.sum(axis=(1, 2))))
        there, here = np.argwhere(mask[index])[0], np.argwhere(piece.truth)[0]
        (y, x), (rows, columns) = there - here, piece.image.shape
        ct = volume.image[index, y : y + rows, x : x + columns]
        low, high = SETTINGS.window_hu
        known = np.isfinite(piece.image)
        assert known.mean() > 0.5
        error = np.abs(np.clip(ct, low, high) - piece.image)[known]
        assert np.median(error) < 5
        assert error.mean() < 40


@pytest.mark.parametrize("axes", ["zxy", "xyz", "flipped"])
def test_the_picture_does_not_depend_on_the_files_axes(
    tmp_path: Path, case: tuple[Volume, Entry], axes: str
) -> None:
    volume, entry = case
    matrix = {
        "zxy": ((0, 2, 1), (0, 1, 0, 1, 0, 0, 0, 0, 1)),
        "xyz": ((2, 1, 0), (0, 0, 1, 0, 1, 0, 1, 0, 0)),
        "flipped": ((0, 1, 2), (-1, 0, 0, 0, -1, 0, 0, 0, -1)),
    }
    order, direction = matrix[axes]
    flip = axes == "flipped"
    origin = (-80.0 + 79 * 2, -60.0 + 59 * 2, 10.0 + 23 * 3) if flip else GEOMETRY.origin_mm

    def moved(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        there = np.transpose(array, order)
        return np.ascontiguousarray(there[::-1, ::-1, ::-1] if flip else there)

    size = tuple(GEOMETRY.size[i] for i in order)
    spacing = tuple(GEOMETRY.spacing_mm[i] for i in order)
    geometry = Geometry(size, spacing, origin, tuple(map(float, direction)))  # type: ignore[arg-type]
    masks = {organ: moved(mask) for organ, mask in volume.masks.items()}
    again = prepared(tmp_path / "entry", Volume("b", moved(volume.image), geometry, masks))
    mask, other = volume.masks["Parotid_L"], masks["Parotid_L"]
    for axis in range(3):
        expected = cut(axis, entry, mask, mask)
        piece = cut(axis, again, other, other)
        assert np.array_equal(piece.truth, expected.truth)
        assert piece.pixel_mm == expected.pixel_mm
        inside = np.isfinite(piece.image) & np.isfinite(expected.image)
        assert inside.mean() > 0.4
        assert np.abs(piece.image - expected.image)[inside].max() < 1


def test_the_true_contour_is_white_and_the_predicted_one_has_the_organs_colour(
    tmp_path: Path, case: tuple[Volume, Entry]
) -> None:
    from PIL import Image

    volume, entry = case
    found = drawn_of(volume, "Parotid_L")
    for drawn, expected in ((found, True), (np.zeros_like(found), False)):
        path = write_overlay(tmp_path, "only_0.9", entry, drawn, "Parotid_L", (255, 0, 255))
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        magenta = (pixels[..., 0] > 220) & (pixels[..., 1] < 60) & (pixels[..., 2] > 220)
        step = overlay.PANEL + overlay.GAP
        for plane in range(3):
            there = magenta[:, plane * step :][:, : overlay.PANEL].sum()
            assert (there > 50) == expected
        if not expected:
            assert (pixels.min(axis=2) > 250).sum() > 150
