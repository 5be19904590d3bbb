from __future__ import annotations

import dataclasses

import pytest

from core.organs.vocabulary import BUILT_IN
from core.organs.volumes import VOLUME_ML, VolumeRange


def test_every_built_in_organ_has_a_range_and_nothing_else() -> None:
    assert set(VOLUME_ML) == set(BUILT_IN)


@pytest.mark.parametrize("organ", sorted(VOLUME_ML))
def test_ranges_are_ordered_and_cited(organ: str) -> None:
    row = VOLUME_ML[organ]
    assert 0 < row.low < row.typical < row.high < 150
    cited = any(year in row.source for year in ("1997", "2000", "2011", "2015", "2021"))
    assert cited or "130 healthy adults" in row.source, row.source


@pytest.mark.parametrize("organ", ["OpticChiasm", "OpticNrv_L", "Musc_Constrict_S"])
def test_what_is_estimated_says_so(organ: str) -> None:
    assert "estimate" in VOLUME_ML[organ].source.lower()


@pytest.mark.parametrize("pair", ["OpticNrv", "Parotid", "Glnd_Submand"])
def test_sides_have_the_same_range(pair: str) -> None:
    assert VOLUME_ML[f"{pair}_L"] == VOLUME_ML[f"{pair}_R"]


def test_relations_between_organs() -> None:
    typical = {organ: row.typical for organ, row in VOLUME_ML.items()}
    assert typical["OpticChiasm"] <= typical["OpticNrv_L"] < typical["Glnd_Submand_L"]
    assert typical["Glnd_Submand_L"] < typical["Parotid_L"] < typical["Bone_Mandible"]
    assert typical["Musc_Constrict_M"] < typical["Musc_Constrict_S"] < typical["Parotid_L"]


def test_the_papers_constrictor_shares_fit_no_constrictor() -> None:
    crop_ml = 96 * 128 * 224 / 1000  # at 1 mm, the smallest volume its percentages can mean
    for level, percent in (("S", 0.5), ("M", 0.3), ("I", 0.8)):
        wide_ml = crop_ml * 3.0 * 1.5 * 1.25 * percent / 100
        assert not VOLUME_ML[f"Musc_Constrict_{level}"].holds(wide_ml)


def test_range_bounds_are_inside_and_it_is_frozen() -> None:
    row = VolumeRange(1.0, 2.0, 3.0, "test")
    assert [row.holds(v) for v in (0.99, 1.0, 2.0, 3.0, 3.01)] == [False, True, True, True, False]
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.low = 0.5  # type: ignore[misc]
