"""Evaluation of existing contours, in the layouts that other tools write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from monai.metrics import compute_dice, compute_hausdorff_distance
from torch import from_numpy

from core.archives.archive import Archive, open_archive, read_case
from core.archives.images.volume import Volume, write_labelmap, write_mask
from core.data.geometry import Geometry
from core.errors import CaseError, UserError
from core.metrics.scores import outline
from core.organs.vocabulary import vocabulary
from hnfed.evaluate.evaluation import (
    Method,
    Outlines,
    as_json,
    as_rows,
    case_rows,
    choose_cases,
    evaluate,
    table,
    vocabulary_of,
)
from hnfed.evaluate.predictions import find_predictions, read_prediction

ORGANS = ("Brainstem", "Parotid_L")
COLUMNS = (("hd95_mm", 2), ("msd_mm", 2), ("surface_dice_1mm", 3))
Mask = npt.NDArray[np.bool_]


@pytest.fixture(scope="module")
def archive(ball_archive: Path) -> Archive:
    return open_archive(ball_archive)


def _volume(archive: Archive, case: str) -> Volume:
    ref = next(ref for ref in archive.cases if ref.case == case)
    return read_case(archive, ref, ORGANS)[0]


def outlined(masks: Mapping[str, Mask]) -> Outlines:
    return {organ: outline(mask) for organ, mask in masks.items()}


def as_drawn(volume: Volume) -> tuple[Outlines, float]:
    """A prediction that is the reference."""
    return outlined(volume.masks), 1.0


def _moved(mask: Mask) -> Mask:
    return np.roll(mask, (1, -2, 1), (0, 1, 2))


# --------------------------------------------------------------------------------------------------
# Scores


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_scores_are_those_of_monai_and_misses_count(archive: Archive) -> None:
    """Case c4: both organs moved; c5: the parotid missed."""

    def segment(volume: Volume) -> tuple[Outlines, float]:
        masks = {organ: _moved(mask) for organ, mask in volume.masks.items()}
        if volume.case == "c5":
            del masks["Parotid_L"]
        return outlined(masks), 100.0

    seen: list[tuple[int, int, str]] = []
    result = evaluate(
        archive,
        choose_cases(archive, "test", None),
        Method(ORGANS, segment, "a metre", ["take care."]),
        lambda *step: seen.append(step),
    )
    assert seen == [(0, 2, "c4"), (1, 2, "c5")]
    content = json.loads(json.dumps(as_json(result, per_case=True), allow_nan=False))
    assert content["schema"] == 1
    assert content["notes"] == ["take care."]
    assert {c["case"]: c["site"] for c in content["cases"]} == {"c4": "south", "c5": "north"}
    dice: dict[tuple[str, str], float] = {}
    hd95: dict[tuple[str, str], float] = {}
    for case in ("c4", "c5"):
        for organ, mask in _volume(archive, case).masks.items():
            a, b = (from_numpy(m[None, None].astype(np.float32)) for m in (_moved(mask), mask))
            dice[case, organ] = float(compute_dice(a, b))
            distance = compute_hausdorff_distance(a, b, percentile=95, spacing=[4.0, 4.0, 4.0])
            hd95[case, organ] = float(distance)
    dice["c5", "Parotid_L"] = 0.0
    for score in content["cases"]:
        key = score["case"], score["organ"]
        assert score["dice"] == pytest.approx(dice[key], abs=1e-6)
        if key == ("c5", "Parotid_L"):
            assert score["hd95_mm"] is None
        else:
            assert score["hd95_mm"] == pytest.approx(hd95[key], abs=1e-3)
    parotid = content["organs"]["Parotid_L"]
    assert (parotid["n"], parotid["missed"]) == (2, 1)
    assert parotid["dice"] == pytest.approx(dice["c4", "Parotid_L"] / 2, abs=1e-6)
    assert parotid["hd95_mm"] == pytest.approx(hd95["c4", "Parotid_L"], abs=1e-3)
    assert parotid["hd95_mm_penalised"] == pytest.approx(
        (hd95["c4", "Parotid_L"] + 100) / 2, abs=1e-3
    )
    brainstem = content["organs"]["Brainstem"]
    assert content["mean"]["dice"] == pytest.approx((parotid["dice"] + brainstem["dice"]) / 2)
    assert content["mean"]["missed"] == 1
    assert content["mean"]["n"] == 4
    assert "cases" not in as_json(result, per_case=False)

    text = table(result, per_case=True)
    lines = [line.split() for line in text.splitlines()]
    row = next(line for line in lines if line[:1] == ["Parotid_L"])
    low, high = parotid["intervals"]["dice"]
    assert row[1:4] == ["2", "1", f"{parotid['dice']:.3f}"]
    assert row[4:6] == [f"[{low:.3f},", f"{high:.3f}]"]
    assert row[6:9] == [f"{parotid[key]:.{n}f}" for key, n in COLUMNS]
    assert row[10] == "0.50"
    volume_ml = f"{_volume(archive, 'c5').masks['Parotid_L'].sum() * 0.064:.1f}"
    missed = ["c5", "Parotid_L", "0.000", "-", "-", "0.000", "0.000", volume_ml, "0.0"]
    assert missed in lines
    assert "directed 95th percentiles" in text
    assert "it counts as 0 in Dice, surface Dice and found" in text
    assert "a metre" in text
    assert "take care." in text
    assert not [line for line in table(result, per_case=False).splitlines() if "c5" in line]


def test_rows_hold_the_same_numbers_and_cases_only_by_themselves(archive: Archive) -> None:
    refs = choose_cases(archive, "test", None)
    result = evaluate(archive, refs, Method(ORGANS, as_drawn, ""))
    header, *rows = as_rows(result)
    content = as_json(result, per_case=False)
    assert [row[0] for row in rows] == [*ORGANS, "mean"]
    first = dict(zip(header, rows[0], strict=True))
    assert first["msd_mm"] == content["organs"]["Brainstem"]["msd_mm"] == 0.0
    assert first["volume_ml_low"] == content["organs"]["Brainstem"]["intervals"]["volume_ml"][0]
    assert rows[-1][header.index("volume_ml")] is None
    assert not {"c4", "c5"} & {str(value) for row in rows for value in row}
    columns, *cases = case_rows(result)
    assert len(cases) == 4
    assert {row[columns.index("case")] for row in cases} == {"c4", "c5"}


def test_organs_that_a_case_does_not_annotate_are_not_scored(archive: Archive) -> None:
    refs = [ref for ref in archive.cases if ref.case in ("c0", "c1")]
    result = evaluate(archive, refs, Method(ORGANS, as_drawn, ""))
    assert [(s.case, s.organ, s.dice) for s in result.scores] == [
        ("c0", "Brainstem", 1.0),
        ("c0", "Parotid_L", 1.0),
        ("c1", "Brainstem", 1.0),
    ]


def test_overlapping_contours_are_compared_whole(tmp_path: Path) -> None:
    geometry = Geometry((8, 8, 8), (2.0, 1.0, 1.0))
    a, b = np.zeros((2, 8, 8, 8), dtype=bool)
    a[2:5], b[4:7] = True, True
    image = np.where(a | b, 50, -1000).astype(np.int16)
    from core.archives.images.volume import write_image

    write_image(tmp_path / "x" / "img.nrrd", image, geometry)
    write_mask(tmp_path / "x" / "structures" / "Brainstem.nrrd", a, geometry)
    write_mask(tmp_path / "x" / "structures" / "SpinalCord.nrrd", b, geometry)
    archive = open_archive(tmp_path)
    organs = ("Brainstem", "SpinalCord")
    result = evaluate(archive, archive.cases, Method(organs, as_drawn, ""))
    assert [s.dice for s in result.scores] == [1.0, 1.0]


def test_an_unreadable_case_is_named_and_the_others_are_scored(
    ball_archive: Path, tmp_path: Path
) -> None:
    shutil.copytree(ball_archive, tmp_path / "a")
    (tmp_path / "a" / "c4" / "img.nrrd").write_bytes(b"NRRD0004\n")
    archive = open_archive(tmp_path / "a")
    refs = choose_cases(archive, "test", None)
    result = evaluate(archive, refs, Method(ORGANS, as_drawn, ""))
    assert {s.case for s in result.scores} == {"c5"}
    assert result.cases == 1
    assert [f.case for f in result.findings if f.severity == "error"] == ["c4"]
    assert result.notes == ("1 of 2 cases could not be used; the scores are without them.",)
    with pytest.raises(UserError, match="nothing to score"):
        evaluate(archive, refs[:1], Method(ORGANS, as_drawn, ""))


@pytest.mark.parametrize(
    ("fault", "code"),
    [("truncated", "E_PREDICTION_UNREADABLE"), ("grid", "E_PREDICTION_GRID")],
)
def test_a_prediction_that_cannot_be_used_costs_its_own_case_only(
    archive: Archive, tmp_path: Path, fault: str, code: str
) -> None:
    for case in ("c4", "c5"):
        volume = _volume(archive, case)
        LAYOUTS["named"](tmp_path, case, dict(volume.masks), volume.geometry)
    path = tmp_path / "c4" / "Brainstem.nrrd"
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        volume = _volume(archive, "c4")
        write_mask(path, volume.masks["Brainstem"], Geometry(volume.geometry.size, (4.0, 4.0, 5.0)))
    found = find_predictions(tmp_path, ["c4", "c5"], vocabulary())

    def segment(volume: Volume) -> tuple[Outlines, float]:
        masks = read_prediction(found, volume.case, volume.image, volume.geometry)
        return outlined(masks), 1.0

    refs = choose_cases(archive, "test", None)
    result = evaluate(archive, refs, Method(ORGANS, segment, "", ["take care."]))
    assert {s.case: s.dice for s in result.scores} == {"c5": 1.0}
    assert result.cases == 1
    assert [(f.case, f.code) for f in result.findings if f.severity == "error"] == [("c4", code)]
    assert result.notes[0] == "take care."
    assert "1 of 2 cases could not be used" in table(result, per_case=False)
    with pytest.raises(UserError, match=r"nothing to score: --pred = \S*Brainstem\.nrrd"):
        evaluate(archive, refs[:1], Method(ORGANS, segment, ""))


def test_a_ct_without_a_body_costs_its_own_case_only(archive: Archive) -> None:
    def segment(volume: Volume) -> tuple[Outlines, float]:
        if volume.case == "c4":
            raise CaseError("E_NO_BODY", "image", "x", "export the CT in HU", problem="no body")
        return as_drawn(volume)

    refs = choose_cases(archive, "test", None)
    result = evaluate(archive, refs, Method(ORGANS, segment, ""))
    assert {s.case for s in result.scores} == {"c5"}
    assert [f.code for f in result.findings] == ["E_NO_BODY"]


def test_a_fault_that_is_of_no_case_ends_the_evaluation(archive: Archive) -> None:
    def segment(volume: Volume) -> tuple[Outlines, float]:
        raise UserError("--device", "tpu", "use cpu")

    with pytest.raises(UserError, match="tpu"):
        evaluate(archive, archive.cases, Method(ORGANS, segment, ""))


def test_nothing_annotated_is_a_user_error(archive: Archive) -> None:
    with pytest.raises(UserError, match="no case annotates Larynx"):
        evaluate(archive, archive.cases[:1], Method(["Larynx"], lambda v: ({}, 1.0), ""))


# --------------------------------------------------------------------------------------------------
# Which cases


def test_split_and_site_choose_cases(archive: Archive) -> None:
    def cases(split: str, site: str | None = None) -> list[str]:
        return [ref.case for ref in choose_cases(archive, split, site)]

    assert cases("test") == ["c4", "c5"]
    assert cases("test", "north") == ["c5"]
    assert cases("all", "south") == ["c0", "c2", "c4"]
    assert len(cases("all")) == 6
    with pytest.raises(UserError, match="north, south"):
        cases("all", "west")
    with pytest.raises(UserError, match="--split"):
        cases("val", "south")


def test_without_splits_the_remedy_is_split_all(ball_archive: Path, tmp_path: Path) -> None:
    shutil.copytree(ball_archive / "c0", tmp_path / "c0")
    archive = open_archive(tmp_path)
    with pytest.raises(UserError, match="--split all"):
        choose_cases(archive, "test", None)
    assert [ref.case for ref in choose_cases(archive, "all", "anywhere")] == ["c0"]


def test_a_plans_own_organs_are_known_by_their_names() -> None:
    assert "Lens_L" in vocabulary_of(["Brainstem", "Lens_L"])


# --------------------------------------------------------------------------------------------------
# Layouts of predictions

Write = Callable[[Path, str, dict[str, Mask], Geometry], None]


def _folder(inner: str, suffix: str, names: dict[str, str]) -> Write:
    def write(root: Path, case: str, masks: dict[str, Mask], geometry: Geometry) -> None:
        for organ, mask in masks.items():
            write_mask(root / inner.format(case=case) / f"{names[organ]}{suffix}", mask, geometry)

    return write


def _map(path: str, table: str, content: object, values: dict[str, int]) -> Write:
    def write(root: Path, case: str, masks: dict[str, Mask], geometry: Geometry) -> None:
        labels = np.zeros(geometry.size, np.uint8)
        for organ, mask in masks.items():
            labels[mask] = values[organ]
        write_labelmap(root / path.format(case=case), labels, geometry)
        (root / table).write_text(json.dumps(content))

    return write


PLAIN = {"Brainstem": "Brainstem", "Parotid_L": "Parotid_L"}
ALIAS = {"Brainstem": "BrainStem", "Parotid_L": "Lt Parotid"}
IDS = {"Brainstem": 2, "Parotid_L": 7}
LAYOUTS = {
    "named": _folder("{case}", ".nrrd", PLAIN),
    "pddca": _folder("{case}/structures", ".nrrd", ALIAS),
    "deep": _folder("results/fold_0/{case}/structures", ".nrrd", PLAIN),
    "nifti masks": _folder("{case}", ".nii.gz", ALIAS),
    "labels.json": _map("{case}.nii.gz", "labels.json", IDS, IDS),
    "in folder": _map("{case}/{case}.nii.gz", "labels.json", {"labels": IDS}, IDS),
    "nnU-Net 2": _map(
        "{case}.nii.gz",
        "dataset.json",
        {
            "labels": {"background": 0, "Brainstem": 2, "Parotid_L": [7, 8]},
            "file_ending": ".nii.gz",
        },
        IDS,
    ),
    "nnU-Net 1": _map(
        "{case}.nii.gz",
        "dataset.json",
        {"labels": {"0": "background", "2": "Brainstem", "7": "Parotid_L"}},
        IDS,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(archive: Archive, tmp_path: Path, layout: str) -> None:
    cases = ["c4", "c5"]
    for case in cases:
        volume = _volume(archive, case)
        LAYOUTS[layout](tmp_path, case, dict(volume.masks), volume.geometry)
    found = find_predictions(tmp_path, cases, vocabulary())
    assert set(found.organs) == set(ORGANS)
    assert not found.absent
    assert not found.unknown
    for case in cases:
        volume = _volume(archive, case)
        masks = read_prediction(found, case, volume.image, volume.geometry)
        assert masks.keys() == set(ORGANS)
        for organ in ORGANS:
            assert np.array_equal(masks[organ], volume.masks[organ])


def test_numbers_from_the_order_of_organs(archive: Archive, tmp_path: Path) -> None:
    volume = _volume(archive, "c4")
    labels = volume.masks["Brainstem"] * np.uint8(2)
    write_labelmap(tmp_path / "c4.nii.gz", labels, volume.geometry)
    with pytest.raises(UserError, match=r"labels\.json"):
        find_predictions(tmp_path, ["c4"], vocabulary())
    found = find_predictions(tmp_path, ["c4"], vocabulary(), ["Parotid_L", "Brainstem"])
    masks = read_prediction(found, "c4", volume.image, volume.geometry)
    assert list(masks) == ["Brainstem"]


def test_absent_cases_and_unknown_names_are_told(archive: Archive, tmp_path: Path) -> None:
    volume = _volume(archive, "c4")
    LAYOUTS["named"](tmp_path, "c4", dict(volume.masks), volume.geometry)
    write_mask(tmp_path / "c4" / "GTV.nrrd", volume.masks["Brainstem"], volume.geometry)
    found = find_predictions(tmp_path, ["c4", "c5"], vocabulary())
    assert found.absent == ("c5",)
    assert found.unknown == ("GTV",)
    assert read_prediction(found, "c5", volume.image, volume.geometry) == {}


def test_a_prediction_on_another_grid_is_refused(archive: Archive, tmp_path: Path) -> None:
    volume = _volume(archive, "c4")
    g = volume.geometry
    for wrong in (
        Geometry(g.size, (4.0, 4.0, 5.0), g.origin_mm, g.direction),
        Geometry(g.size, g.spacing_mm, (0.0, 0.0, 0.0), g.direction),
    ):
        write_mask(tmp_path / "c4" / "Brainstem.nrrd", volume.masks["Brainstem"], wrong)
        found = find_predictions(tmp_path, ["c4"], vocabulary())
        with pytest.raises(UserError, match="grid"):
            read_prediction(found, "c4", volume.image, volume.geometry)


def test_two_files_of_one_organ_are_refused(archive: Archive, tmp_path: Path) -> None:
    volume = _volume(archive, "c4")
    for name in ("Brainstem", "BrainStem"):
        write_mask(tmp_path / "c4" / f"{name}.nrrd", volume.masks["Brainstem"], volume.geometry)
    with pytest.raises(UserError, match="one file an organ"):
        find_predictions(tmp_path, ["c4"], vocabulary())


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"labels": 3}', '{"Brainstem": "x"}'])
def test_broken_label_tables_are_user_errors(
    archive: Archive, tmp_path: Path, content: str
) -> None:
    volume = _volume(archive, "c4")
    write_labelmap(tmp_path / "c4.nii.gz", volume.masks["Brainstem"], volume.geometry)
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(UserError, match=r"labels\.json"):
        find_predictions(tmp_path, ["c4"], vocabulary())


def test_no_prediction_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c4\.nii\.gz"):
        find_predictions(tmp_path, ["c4"], vocabulary())
    with pytest.raises(UserError, match="--pred"):
        find_predictions(tmp_path / "no", ["c4"], vocabulary())
