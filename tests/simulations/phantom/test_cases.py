from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial import KDTree

from core.archives.archive import open_archive, read_case
from core.errors import UserError
from core.organs.vocabulary import NINE, PCM
from core.organs.volumes import VOLUME_ML
from simulations.phantom import cases as phantom
from simulations.phantom.cases import LOW_NECK, SIGNATURES, Cohort, case_name, write_site
from simulations.phantom.scan import Case, SiteSignature, make_case

COARSE = (6.0, 4.0, 4.0)
FINE = (4.0, 3.0, 3.0)
NAMES = {
    "BrainStem", "Chiasm", "Mandible", "OpticNerve_L", "OpticNerve_R", "Parotid_L", "Parotid_R",
    "Submandibular_L", "Submandibular_R", *PCM,
}  # fmt: skip


def _all_organs(name: str) -> SiteSignature:
    return dataclasses.replace(SIGNATURES[name], organs=(*NINE, *PCM, *LOW_NECK))


@pytest.fixture(scope="module")
def patients() -> dict[str, list[Case]]:
    """The same three patients as two sites scan and draw them."""
    return {
        name: [make_case(_all_organs(name), np.random.default_rng([5, i]), FINE) for i in range(3)]
        for name in ("nyu", "miccai")
    }


@pytest.fixture(scope="module")
def centres(patients: dict[str, list[Case]]) -> list[dict[str, npt.NDArray[np.float64]]]:
    """Centre of each organ (z, y, x), mm from the first voxel, case by case."""
    return [{o: _centre_mm(c, o) for o in c.masks} for cs in patients.values() for c in cs]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "nyu"
    write_site(root, Cohort(SIGNATURES["nyu"], 5, 3, COARSE))
    return root


def _ml(case: Case, organ: str) -> float:
    return float(case.masks[organ].sum() * np.prod(case.spacing_mm) / 1000)


def _centre_mm(case: Case, organ: str) -> npt.NDArray[np.float64]:
    """Centre of mass (z, y, x) in mm from the first voxel."""
    return np.argwhere(case.masks[organ]).mean(0) * case.spacing_mm


def _every(patients: Mapping[str, list[Case]]) -> list[Case]:
    return [case for cases in patients.values() for case in cases]


@pytest.mark.parametrize("organ", [o for o in VOLUME_ML if o not in ("Esophagus", "SpinalCord")])
def test_volumes_are_plausible(patients: dict[str, list[Case]], organ: str) -> None:
    row = VOLUME_ML[organ]
    for case in _every(patients):
        assert row.holds(_ml(case, organ)), (organ, _ml(case, organ))
    mean = np.mean([_ml(case, organ) for case in patients["miccai"]])
    assert 0.7 * row.typical < mean < 1.45 * row.typical


@pytest.mark.parametrize("organ", ["Esophagus", "SpinalCord"])
def test_long_organs_are_plausible_where_the_scan_reaches_down(
    patients: dict[str, list[Case]], organ: str
) -> None:
    volumes = [_ml(case, organ) for case in _every(patients)]
    assert max(volumes) <= VOLUME_ML[organ].high
    assert VOLUME_ML[organ].holds(float(np.mean(volumes)))


def test_left_is_left(centres: list[dict[str, npt.NDArray[np.float64]]]) -> None:
    for at in centres:
        for pair in ("OpticNrv", "Parotid", "Glnd_Submand"):
            left, right = (at[f"{pair}_{side}"][2] for side in "LR")
            middle = at["Brainstem"][2]
            assert left > middle + 8 > middle - 8 > right


def test_order_from_top_to_bottom(centres: list[dict[str, npt.NDArray[np.float64]]]) -> None:
    for at in centres:
        order = ("OpticChiasm", "Brainstem", "Musc_Constrict_S", "Musc_Constrict_M",
                 "Musc_Constrict_I", "Esophagus")  # fmt: skip
        heights = [at[organ][0] for organ in order]
        assert heights == sorted(heights, reverse=True)
        assert at["Larynx"][0] < at["Glnd_Submand_L"][0] < heights[1]


def test_order_from_front_to_back(centres: list[dict[str, npt.NDArray[np.float64]]]) -> None:
    for at in centres:
        order = ("Bone_Mandible", "Musc_Constrict_S", "Brainstem")
        depths = [at[organ][1] for organ in order]
        assert depths == sorted(depths)
        assert depths[0] < depths[2] - 30
        assert at["Larynx"][1] < at["SpinalCord"][1] - 20


def test_organs_lie_where_planning_ct_has_them(
    centres: list[dict[str, npt.NDArray[np.float64]]],
) -> None:
    """Offsets (z, y, x) from the brainstem in mm, means over real planning CTs."""
    known = {"Parotid_L": (-44, -22, 58), "Parotid_R": (-44, -22, -57),
             "Bone_Mandible": (-54, -67, 0), "Larynx": (-122, -36, 2)}  # fmt: skip
    for organ, expected in known.items():
        offsets = [at[organ] - at["Brainstem"] for at in centres]
        np.testing.assert_allclose(np.mean(offsets, 0), expected, atol=19)


def test_the_nerves_reach_the_chiasm(patients: dict[str, list[Case]]) -> None:
    for case in _every(patients):
        chiasm = KDTree(np.argwhere(case.masks["OpticChiasm"]) * case.spacing_mm)
        for side in "LR":
            gaps, _ = chiasm.query(np.argwhere(case.masks[f"OpticNrv_{side}"]) * case.spacing_mm)
            assert gaps.min() < 12
            assert 35 < gaps.max() < 70


def test_organs_are_inside_the_body_and_in_one_piece(patients: dict[str, list[Case]]) -> None:
    for case in _every(patients):
        tissue = np.stack([ndimage.binary_fill_holes(plane) for plane in case.image > -300])
        for organ, mask in case.masks.items():
            assert tissue[mask > 0].mean() > 0.97, organ
            if organ.startswith("Optic"):
                continue  # thinner than these voxels
            labels, pieces = ndimage.label(mask, np.ones((3, 3, 3)))
            assert pieces == 1 or np.bincount(labels.ravel())[1:].max() > 0.8 * mask.sum(), organ


def test_densities(patients: dict[str, list[Case]]) -> None:
    for case in patients["nyu"]:
        hu = {o: float(np.median(case.image[m > 0])) for o, m in case.masks.items()}
        assert 400 < hu["Bone_Mandible"] < 1300
        assert 20 < hu["Brainstem"] < 55
        assert -60 < hu["Parotid_L"] < hu["Glnd_Submand_L"] < 80
        assert case.image.dtype == np.int16
        assert case.image.min() <= -980
        assert case.image.max() > 900


def test_chiasm_and_brainstem_stand_out_from_the_fluid_round_them(
    patients: dict[str, list[Case]],
) -> None:
    for case in patients["miccai"]:
        for organ in ("OpticChiasm", "Brainstem"):
            mask = case.masks[organ] > 0
            ring = ndimage.binary_dilation(mask) & ~mask
            assert np.median(case.image[mask]) > np.median(case.image[ring]) + 8


def test_constrictors_lie_behind_the_airway(patients: dict[str, list[Case]]) -> None:
    for case in _every(patients):
        mask = case.masks["Musc_Constrict_S"] > 0
        middle = round(float(np.argwhere(mask)[:, 2].mean()))
        planes = np.flatnonzero(mask[:, :, middle].any(1))
        level = int(planes[len(planes) // 2])
        first = int(np.flatnonzero(mask[level, :, middle])[0])
        before = case.image[level, max(first - 8, 0) : first, middle]
        assert before.min() < -500


def test_nyu_draws_the_chiasm_larger(patients: dict[str, list[Case]]) -> None:
    nyu, miccai = ([_ml(c, "OpticChiasm") for c in patients[n]] for n in ("nyu", "miccai"))
    assert min(np.array(nyu) / np.array(miccai)) > 1.5
    rest = [[_ml(c, "Glnd_Submand_L") for c in patients[n]] for n in ("nyu", "miccai")]
    assert np.mean(rest[0]) / np.mean(rest[1]) < 1.25


def test_signatures_differ_in_noise_contrast_and_spacing(patients: dict[str, list[Case]]) -> None:
    def noise(case: Case) -> float:
        inside = ndimage.binary_erosion(case.masks["Brainstem"] > 0)
        return float(np.std(case.image[inside]))

    nyu, miccai = patients["nyu"], patients["miccai"]
    assert np.mean([noise(c) for c in nyu]) > np.mean([noise(c) for c in miccai]) + 2
    gland = [np.mean([np.median(c.image[c.masks["Glnd_Submand_L"] > 0]) for c in p])
             for p in (nyu, miccai)]  # fmt: skip
    assert gland[1] > gland[0] + 20
    assert nyu[0].spacing_mm[0] < miccai[0].spacing_mm[0]
    couch = [np.mean([(c.image[:, -30:] > -980).mean() for c in p]) for p in (nyu, miccai)]
    assert couch[0] > couch[1]


def test_patients_differ(patients: dict[str, list[Case]]) -> None:
    cases = patients["nyu"]
    assert len({case.origin_mm for case in cases}) == len(cases)
    assert len({case.image.shape for case in cases}) > 1
    volumes = [_ml(case, "Parotid_L") for case in cases]
    assert np.std(volumes) / np.mean(volumes) > 0.03


def test_metal_makes_streaks() -> None:
    base = dataclasses.replace(SIGNATURES["nyu"], low_start=0.0)
    plain, metal = (
        make_case(dataclasses.replace(base, metal_share=s), np.random.default_rng(2), COARSE)
        for s in (0.0, 1.0)
    )
    assert plain.image.max() < 2500 <= metal.image.max()


def test_archive_is_pddca_and_reads_back(site: Path) -> None:
    folders = sorted(p.name for p in site.iterdir() if p.is_dir())
    assert folders == [case_name(SIGNATURES["nyu"], i) for i in range(5)]
    drawn: set[str] = set()
    for folder in folders:
        image = sitk.ReadImage(str(site / folder / "img.nrrd"))
        assert image.GetPixelID() == sitk.sitkInt16
        assert image.GetDirection() == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))
        for path in (site / folder / "structures").iterdir():
            mask = sitk.ReadImage(str(path))
            assert mask.GetPixelID() == sitk.sitkUInt8
            assert set(np.unique(sitk.GetArrayViewFromImage(mask))) == {0, 1}
            assert mask.GetSize() == image.GetSize()
            assert mask.GetSpacing() == image.GetSpacing()
            assert mask.GetOrigin() == image.GetOrigin()
            assert b"encoding: gzip" in path.read_bytes()[:1000]
            drawn.add(path.stem)
    assert drawn == NAMES


def test_archive_is_read_by_the_project(site: Path) -> None:
    archive = open_archive(site)
    assert archive.format == "pddca"
    assert len(archive.cases) == 5
    assert not [f for f in archive.findings if f.severity == "error"]
    ref = archive.cases[0]
    assert ref.split is None
    volume, findings = read_case(archive, ref, (*NINE, *PCM))
    assert not findings
    assert volume.annotated == frozenset(ref.structures)
    case = make_case(SIGNATURES["nyu"], np.random.default_rng([3, 0, *b"nyu"]), COARSE)
    np.testing.assert_array_equal(volume.image, case.image)
    for organ, mask in volume.masks.items():
        np.testing.assert_array_equal(mask, case.masks[organ] > 0)
    assert volume.geometry.spacing_mm == pytest.approx(case.spacing_mm)
    assert volume.geometry.origin_mm == pytest.approx(case.origin_mm)


def test_some_structures_are_missing_but_every_organ_is_drawn_somewhere(site: Path) -> None:
    counts = [len(list(p.glob("structures/*.nrrd"))) for p in site.iterdir() if p.is_dir()]
    assert min(counts) < 12
    assert max(counts) <= 12
    assert sum(counts) == 5 * 12 - 4  # 8 % of 5 x 9, rounded up


def test_no_organ_is_missing_in_most_cases() -> None:
    greedy = dataclasses.replace(SIGNATURES["miccai"], missing=0.9)
    lacking = phantom._left_out(Cohort(greedy, 10, 0))
    assert max(sum(organ in one for one in lacking) for organ in NINE) <= 5
    assert max(map(len, lacking)) <= 4


def test_constrictors_on_a_share_of_the_cases() -> None:
    some = dataclasses.replace(SIGNATURES["nyu"], pcm_share=0.3)
    lacking = phantom._left_out(Cohort(some, 10, 0))
    assert sum(not one & set(PCM) for one in lacking) == 3
    assert all(set(PCM) <= one or not one & set(PCM) for one in lacking)


def _digest(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def test_same_seed_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    signature = SIGNATURES["miccai"]
    write_site(tmp_path / "a", Cohort(signature, 2, 9, COARSE))
    write_site(tmp_path / "b", Cohort(signature, 2, 9, COARSE), workers=2)
    write_site(tmp_path / "c", Cohort(signature, 1, 10, COARSE))
    a, b, c = (_digest(tmp_path / name) for name in "abc")
    assert a == b
    assert a["miccai_000/img.nrrd"] != c["miccai_000/img.nrrd"]
    assert a["miccai_000/img.nrrd"] != a["miccai_001/img.nrrd"]


def test_complete_site_is_reused_and_another_one_replaced(tmp_path: Path) -> None:
    root = tmp_path / "site"
    write_site(root, Cohort(SIGNATURES["miccai"], 1, 0, COARSE))
    image = root / "miccai_000" / "img.nrrd"
    before = image.stat().st_mtime_ns, image.stat().st_ino
    write_site(root, Cohort(SIGNATURES["miccai"], 1, 0, COARSE))
    assert (image.stat().st_mtime_ns, image.stat().st_ino) == before
    write_site(root, Cohort(SIGNATURES["nyu"], 1, 0, COARSE))
    assert not image.exists()
    assert (root / "nyu_000" / "img.nrrd").is_file()
    assert os.listdir(tmp_path) == ["site"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(phantom, "_write", fail)
    with pytest.raises(OSError, match="no space"):
        write_site(tmp_path / "site", Cohort(SIGNATURES["miccai"], 1, 0, COARSE))
    assert os.listdir(tmp_path) == []


def test_foreign_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "patient.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="no phantom"):
        write_site(tmp_path, Cohort(SIGNATURES["miccai"], 1, 0, COARSE))
    assert (tmp_path / "patient.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("cases", "seed", "spacing"),
    [(0, 0, COARSE), (1, -1, COARSE), (1, 0, (0.0, 1.0, 1.0)), (1, 0, (1.0, 1.0))],
)
def test_bad_arguments(tmp_path: Path, cases: int, seed: int, spacing: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="phantom"):
        write_site(tmp_path / "site", Cohort(SIGNATURES["miccai"], cases, seed, spacing))
    assert os.listdir(tmp_path) == []


def test_splits_are_written_where_given(tmp_path: Path) -> None:
    splits = {"miccai_000": "train", "miccai_001": "test"}
    write_site(tmp_path / "site", Cohort(SIGNATURES["miccai"], 2, 0, COARSE, splits=splits))
    archive = open_archive(tmp_path / "site")
    assert {ref.case: ref.split for ref in archive.cases} == splits
    stamp = json.loads((tmp_path / "site" / phantom.STAMP).read_text(encoding="utf-8"))
    assert stamp["splits"] == splits
    with pytest.raises(UserError, match="miccai_000 to miccai_001"):
        write_site(
            tmp_path / "x", Cohort(SIGNATURES["miccai"], 2, 0, COARSE, splits={"else": "test"})
        )


def test_smallest_organs_survive_coarse_voxels() -> None:
    for seed in range(4):
        case = make_case(SIGNATURES["miccai"], np.random.default_rng(seed), COARSE)
        assert set(case.masks) == set(NINE)
        assert case.masks["OpticChiasm"].sum() >= 3


def test_signature_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SIGNATURES["nyu"].missing = 0.0  # type: ignore[misc]
