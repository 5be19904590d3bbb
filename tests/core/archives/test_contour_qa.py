from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from core.archives.contour_qa import errors_of, judge, places_of, without_errors
from core.archives.images.volume import Volume
from core.archives.organ_positions import OFFSETS, ORDERS
from core.data.geometry import Geometry
from core.organs.volumes import VOLUME_ML

SIZE = (70, 60, 60)
SPACING = (4.0, 4.0, 4.0)
GRID = Geometry(SIZE, SPACING, (0.0, 0.0, 0.0))
# Centres in mm (x, y, z), edges in mm (x, y, z).
ORGANS = {
    "Brainstem": ((120, 150, 200), (28, 28, 36)),
    "Bone_Mandible": ((120, 85, 146), (40, 36, 40)),
    "Parotid_L": ((178, 130, 160), (24, 28, 36)),
    "Parotid_R": ((62, 130, 160), (24, 28, 36)),
    "Larynx": ((120, 115, 80), (28, 28, 32)),
    "SpinalCord": ((120, 170, 70), (12, 12, 140)),
}
HU = {"Bone_Mandible": 700.0, "Larynx": 0.0}


def block(centre: tuple[float, ...], edge: tuple[float, ...]) -> np.ndarray:
    z, y, x = np.indices(SIZE) * 4.0
    inside = [abs(v - c) < e / 2 for v, c, e in zip((x, y, z), centre, edge, strict=True)]
    return np.logical_and.reduce(inside)


def patient(**moved: tuple[float, float, float]) -> Volume:
    """A patient of blocks in an elliptic body; `moved` shifts organs by mm (x, y, z)."""
    _, y, x = np.indices(SIZE) * 4.0
    image = np.where(np.hypot((x - 120) / 85, (y - 125) / 95) < 1, 30.0, -1000.0)
    masks = {}
    for organ, (centre, edge) in ORGANS.items():
        image[block(centre, edge)] = HU.get(organ, 30.0)
        shift = moved.get(organ, (0, 0, 0))
        masks[organ] = block(tuple(c + s for c, s in zip(centre, shift, strict=True)), edge)
    image += np.random.default_rng(0).normal(0, 5, SIZE)
    image[30:34, 20:22, 28:32] = 1500
    return Volume("case", image.astype(np.float32), GRID, masks)


def told(volume: Volume) -> set[tuple[str, str]]:
    return {(f.code, f.organ) for f in judge(volume)}


def only(volume: Volume) -> set[tuple[str, str]]:
    """Without what the 4 mm voxels are told of."""
    return told(volume) - {("W_SPACING_COARSE", "")}


def test_a_sound_patient_passes() -> None:
    assert only(patient()) == set()


def test_places_are_measured_in_the_patients_frame() -> None:
    volume = patient()
    turned = Geometry(
        SIZE, SPACING, (236.0, 236.0, 0.0), (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
    )
    flip = {o: m[:, ::-1, ::-1] for o, m in volume.masks.items()}
    other = Volume("case", volume.image[:, ::-1, ::-1], turned, flip)
    here, there = places_of(volume), places_of(other)
    for organ, place in here.items():
        assert place.centre_mm == pytest.approx(there[organ].centre_mm)
        assert place.volume_ml == pytest.approx(volume.masks[organ].sum() * 0.064)
    assert only(other) == set()
    assert here["Brainstem"].extent_z_mm == 36


def test_sides() -> None:
    volume = patient()
    left, right = volume.masks["Parotid_L"], volume.masks["Parotid_R"]
    exchanged = {**volume.masks, "Parotid_L": right, "Parotid_R": left}
    swapped = dataclasses.replace(volume, masks=exchanged)
    assert only(swapped) == {("E_ORGAN_SIDE", "Parotid_L"), ("E_ORGAN_SIDE", "Parotid_R")}
    alone = {o: m for o, m in volume.masks.items() if o != "Parotid_R"} | {"Parotid_L": right}
    assert only(dataclasses.replace(volume, masks=alone)) == {("E_ORGAN_SIDE", "Parotid_L")}


def test_wrong_organs_are_left_out_and_the_others_stay() -> None:
    volume = patient()
    masks = dict(volume.masks)
    masks["Brainstem"], masks["Bone_Mandible"] = masks["Bone_Mandible"], masks["Brainstem"]
    kept, findings = without_errors(dataclasses.replace(volume, masks=masks))
    assert {f.code for f in findings} == {"E_ORGAN_PLACE"}
    assert {"Brainstem", "Bone_Mandible"} & set(kept.masks) == set()
    assert {"Parotid_L", "Parotid_R", "SpinalCord"} <= set(kept.masks)
    assert all(f.severity == "error" and f.case == "case" for f in findings)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"Parotid_L": (0, -50, 0)}, ("W_ORGAN_PLACE", "Parotid_L")),
        ({"Bone_Mandible": (0, 0, -40)}, ("W_ORGAN_DENSITY", "Bone_Mandible")),
        ({"Parotid_L": (48, 0, 0)}, ("E_LABEL_OFF_BODY", "Parotid_L")),
        ({"Larynx": (0, 0, 140)}, ("E_ORGAN_PLACE", "Larynx")),
        ({"Brainstem": (0, 0, 64)}, ("W_ORGAN_TRUNCATED", "Brainstem")),
    ],
)
def test_moved_organs(change: dict[str, tuple[float, float, float]], expected) -> None:
    assert expected in told(patient(**change))


def test_the_contour_itself() -> None:
    volume = patient()
    gaps = volume.masks["Brainstem"].copy()
    gaps[50] = False
    pieces = volume.masks["Parotid_L"].copy()
    pieces[:, 32:34] = False
    small = block(ORGANS["Brainstem"][0], (12, 12, 12))
    body = volume.image > -500
    assert ("W_LABEL_GAPS", "Brainstem") in told(with_mask(volume, "Brainstem", gaps))
    assert ("W_LABEL_PIECES", "Parotid_L") in told(with_mask(volume, "Parotid_L", pieces))
    assert ("W_ORGAN_VOLUME", "Brainstem") in told(with_mask(volume, "Brainstem", small))
    assert ("E_ORGAN_VOLUME", "SpinalCord") in told(with_mask(volume, "SpinalCord", body))
    same = with_mask(volume, "Larynx", volume.masks["Brainstem"])
    assert {o for c, o in told(same) if c == "E_LABEL_SAME"} == {"Larynx", "Brainstem"}
    both = volume.masks["Larynx"] | volume.masks["Bone_Mandible"]
    assert ("W_ORGAN_OVERLAP", "Larynx") in told(with_mask(volume, "Bone_Mandible", both))


def with_mask(volume: Volume, organ: str, mask: np.ndarray) -> Volume:
    return dataclasses.replace(volume, masks={**volume.masks, organ: mask})


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_a_wrong_spacing_is_seen(factor: float) -> None:
    volume = patient()
    z, y, x = SPACING
    for spacing in ((z, y * factor, x * factor), (z * factor, y, x)):
        wrong = dataclasses.replace(volume, geometry=Geometry(SIZE, spacing))
        assert ("W_SPACING", "") in told(wrong)


def test_organs_of_no_table_are_not_judged_by_one() -> None:
    volume = patient()
    masks = {"Cochlea": volume.masks["Brainstem"]}
    assert only(dataclasses.replace(volume, masks=masks)) == set()


def test_the_tables_know_their_organs_and_agree() -> None:
    for order in ORDERS:
        assert {order.larger, order.smaller} <= set(VOLUME_ML)
    for offset in OFFSETS:
        assert {offset.organ, offset.reference} <= set(VOLUME_ML)
        ranges = (offset.x, offset.y, offset.z)
        assert all(low < high for low, high in ranges)
        for order in ORDERS:
            low, high = ranges[order.axis]
            if (order.larger, order.smaller) == (offset.organ, offset.reference):
                assert low > -10
            if (order.smaller, order.larger) == (offset.organ, offset.reference):
                assert high < 10


def test_errors_name_an_organ_once() -> None:
    volume = patient(Larynx=(0, 0, 140), Parotid_L=(48, 0, 0))
    organs = [f.organ for f in errors_of(volume, places_of(volume))]
    assert len(organs) == len(set(organs))
