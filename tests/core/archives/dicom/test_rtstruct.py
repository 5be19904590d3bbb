from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from benchmarks.dicom_example import Series, Structures
from core.archives.archive import open_archive, read_case
from core.archives.dicom.rtstruct import draw
from core.data.geometry import Geometry
from core.errors import CaseError

GRID = Geometry((10, 40, 40), (3.0, 1.0, 1.0), (-20.0, -20.0, 0.0))
Z, Y, X = np.indices(GRID.size)


def box(left: float, right: float, levels: Sequence[float] = range(2, 8), tilt: float = 0.0) -> Any:
    """Squares between two columns, rows 10 to 30, of some slices, in mm; `tilt` in mm a row."""
    low, high = left - 20.5, right - 20.5
    square = np.array([[low, -10.5], [high, -10.5], [high, 9.5], [low, 9.5]])
    return [
        np.column_stack([square, z * 3.0 + tilt * (square[:, 1] + 0.5)]) for z in map(float, levels)
    ]


def truth(left: int, right: int, first: int = 2, last: int = 8) -> np.ndarray:
    return (left <= X) & (right > X) & (Y >= 10) & (Y < 30) & (first <= Z) & (last > Z)


def kinds(*names: str) -> Callable[[Any], None]:
    """Gives the contours of the first structure these types, over and over."""

    def change(data: Any) -> None:
        for i, item in enumerate(data.ROIContourSequence[0].ContourSequence):
            item.ContourGeometricType = names[i % len(names)]

    return change


def case_of(folder: Path) -> Any:
    archive = open_archive(folder)
    (ref,) = archive.cases
    return archive, ref


def written(folder: Path, rois: Any, **options: Any) -> Path:
    image = np.full(GRID.size, -1000, dtype=np.int16)
    image[:, 5:35, 5:35] = 40
    Series(image, GRID).write(folder / "p")
    Structures(rois, **options).write(folder / "p" / "rs")
    return folder / "p" / "rs"


@pytest.mark.parametrize(
    "names",
    [
        ("INTERPOLATED_PLANAR",),
        ("CLOSED_PLANAR", "INTERPOLATED_PLANAR"),
        ("OPEN_PLANAR",),
        ("",),
        ("CLOSEDPLANAR_XOR",),
        ("closed_planar ",),
    ],
)
def test_every_closed_contour_is_drawn(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = written(tmp_path, {"Brainstem": box(10, 20)}, change=kinds(*names))
    mask, told = draw(path, "Brainstem", GRID)
    np.testing.assert_array_equal(mask, truth(10, 20))
    assert told == ""


@pytest.mark.parametrize(
    ("count", "cut"), [(4, False), (12, False), (2, False), ("", False), (5, True), (60, True)]
)
def test_a_contour_that_is_cut_short_is_no_smaller_contour(
    tmp_path: Path, count: Any, cut: bool
) -> None:
    """Four points of 60: the line that closes them is nobody's. 12 is the number of coordinates."""

    def change(data: Any) -> None:
        data.ROIContourSequence[0].ContourSequence[3].NumberOfContourPoints = count

    written(tmp_path, {"Brainstem": box(10, 20), "Larynx": box(10, 20)}, change=change)
    volume, findings = read_case(*case_of(tmp_path), ["Brainstem", "Larynx"])
    assert sorted(volume.masks) == (["Larynx"] if cut else ["Brainstem", "Larynx"])
    told = [(f.code, f.organ) for f in findings]
    assert told == ([("E_LABEL_UNREADABLE", "Brainstem")] if cut else [])
    assert all("cut short" in f.message for f in findings)


def test_an_open_line_holds_no_area_and_is_told(tmp_path: Path) -> None:
    angle = np.linspace(0, np.pi, 20)
    arcs = [
        np.column_stack([8 * np.cos(angle), 8 * np.sin(angle), np.full(20, z * 3.0)])
        for z in range(2, 8)
    ]
    written(tmp_path, {"Brainstem": arcs}, change=kinds("OPEN_PLANAR"))
    archive, _ = case_of(tmp_path)
    told = [f for f in archive.findings if f.code == "W_LABEL_ABSENT"]
    assert len(told) == 1
    assert "points or open lines only" in told[0].message


def test_overlapping_contours_are_joined_with_a_word(tmp_path: Path) -> None:
    written(tmp_path, {"Brainstem": [*box(10, 20), *box(16, 26)]})
    volume, findings = read_case(*case_of(tmp_path), ["Brainstem"])
    np.testing.assert_array_equal(volume.masks["Brainstem"], truth(10, 26))
    assert any("6 pairs of contours cross" in f.message for f in findings)


def test_exclusive_contours_cut_each_other_out(tmp_path: Path) -> None:
    both = {"Brainstem": [*box(10, 20), *box(16, 26)]}
    path = written(tmp_path, both, change=kinds("CLOSEDPLANAR_XOR"))
    mask, _ = draw(path, "Brainstem", GRID)
    np.testing.assert_array_equal(mask, truth(10, 20) ^ truth(16, 26))


def test_a_structure_in_no_slice_is_refused_with_its_volume(tmp_path: Path) -> None:
    written(tmp_path, {"Brainstem": box(10, 20, tilt=0.1), "Larynx": box(10, 20)})
    volume, findings = read_case(*case_of(tmp_path), ["Brainstem", "Larynx"])
    assert list(volume.masks) == ["Larynx"]
    (finding,) = (f for f in findings if f.organ == "Brainstem")
    assert (finding.code, finding.severity) == ("E_LABEL_INCOMPLETE", "error")
    assert "6 contours (3.6 mL) lie in no slice of the CT" in finding.message
    assert "nothing to do" not in finding.remedy


def test_a_structure_of_which_a_part_lies_in_no_slice_is_refused(tmp_path: Path) -> None:
    contours = [*box(10, 20, range(2, 7)), *box(10, 20, [7], tilt=0.1)]
    path = written(tmp_path, {"Brainstem": contours})
    with pytest.raises(CaseError, match="1 contours"):
        draw(path, "Brainstem", GRID)


def test_contours_drawn_twice_are_no_hole(tmp_path: Path) -> None:
    again = [np.round(c[::-1] + 0.02, 2) for c in box(10, 20)]
    path = written(tmp_path, {"Brainstem": [*box(10, 20), *again]})
    mask, told = draw(path, "Brainstem", GRID)
    np.testing.assert_array_equal(mask, truth(10, 20))
    assert "6 contours are there twice" in told


def test_a_structure_beyond_the_ct_says_why_it_is_empty(tmp_path: Path) -> None:
    written(tmp_path, {"Brainstem": box(10, 20, range(20, 24)), "Larynx": box(10, 20)})
    volume, findings = read_case(*case_of(tmp_path), ["Brainstem", "Larynx"])
    assert list(volume.masks) == ["Larynx"]
    (finding,) = (f for f in findings if f.organ == "Brainstem")
    assert "4 contours (2.4 mL) lie above or below the CT" in finding.message
    assert "nothing to do" not in finding.remedy


def renumbered(*numbers: int, drawn: Sequence[int] | None = None) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for item, number in zip(data.StructureSetROISequence, numbers, strict=True):
            item.ROINumber = number
        for item, number in zip(data.ROIContourSequence, drawn or numbers, strict=True):
            item.ReferencedROINumber = number

    return change


ROIS = {"Brainstem": box(2, 8), "Parotid_R": box(10, 20), "GTVnd": box(24, 30)}


def test_structures_of_one_number_are_told_by_their_place(tmp_path: Path) -> None:
    path = written(tmp_path, ROIS, change=renumbered(1, 3, 3))
    mask, _ = draw(path, "Parotid_R", GRID)
    np.testing.assert_array_equal(mask, truth(10, 20))
    mask, _ = draw(path, "GTVnd", GRID)
    np.testing.assert_array_equal(mask, truth(24, 30))
    archive, _ = case_of(tmp_path)
    (finding,) = (f for f in archive.findings if f.code == "W_ROI_NUMBER")
    assert "'GTVnd', 'Parotid_R'" in finding.message


@pytest.mark.parametrize(
    ("named", "drawn"), [((1, 3, 3), (3, 1, 3)), ((1, 3, 4), (1, 3, 3))], ids=["order", "one name"]
)
def test_contours_that_may_be_anothers_are_refused(
    tmp_path: Path, named: tuple[int, ...], drawn: tuple[int, ...]
) -> None:
    path = written(tmp_path, ROIS, change=renumbered(*named, drawn=drawn))
    with pytest.raises(CaseError, match="ROI number 3") as caught:
        draw(path, "Parotid_R", GRID)
    assert caught.value.code == "E_LABEL_AMBIGUOUS"
    mask, _ = draw(path, "Brainstem", GRID) if named[0] == drawn[0] else (truth(2, 8), "")
    np.testing.assert_array_equal(mask, truth(2, 8))


def test_an_empty_list_of_contours_beside_the_drawn_one_is_no_second(tmp_path: Path) -> None:
    def change(data: Any) -> None:
        item = Dataset()
        item.ReferencedROINumber = 2
        data.ROIContourSequence.append(item)

    path = written(tmp_path, ROIS, change=change)
    mask, _ = draw(path, "Parotid_R", GRID)
    np.testing.assert_array_equal(mask, truth(10, 20))


def undefined(data: Any) -> None:
    for name in ("StructureSetROISequence", "ROIContourSequence"):
        data[name].is_undefined_length = True
        for item in data[name].value:
            item.is_undefined_length_sequence_item = True


@pytest.mark.parametrize("change", [lambda data: None, undefined], ids=["lengths", "delimiters"])
@pytest.mark.parametrize("implicit", [True, False])
def test_a_file_that_is_cut_short_is_no_structure_that_is_not_drawn(
    tmp_path: Path, change: Callable[[Any], None], implicit: bool
) -> None:
    path = written(tmp_path, ROIS, change=change, implicit=implicit)
    whole = path.read_bytes()
    first = whole.index(b"Brainstem")
    for share in np.linspace(0.02, 0.98, 25):
        path.write_bytes(whole[: first + int(share * (len(whole) - first))])
        with pytest.raises(CaseError, match=r"cut short|damaged"):
            draw(path, "Brainstem", GRID)
    path.write_bytes(whole)
    np.testing.assert_array_equal(draw(path, "Brainstem", GRID)[0], truth(2, 8))
