from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk

from core.archives.duplicates import image_digest
from core.archives.images.volume import read_image
from core.errors import UserError
from core.wire.checkpoint import load, save
from simulations.phantom.cases import SIGNATURES, Cohort, write_site
from simulations.run import simulate

RunTiny = Callable[..., Path]
LISTS = "{train: [miccai_000, miccai_001], val: [miccai_002], test: [%s]}"


def sites(a: Path, b: Path, lists_a: str, lists_b: str) -> list[str]:
    return [
        f"simulation.sites.miccai={{root: '{a}', splits: {lists_a}}}",
        f"simulation.sites.nyu={{root: '{b}', splits: {lists_b}}}",
        "phases.personalise.organs=[Bone_Mandible]",
        "phases.pretrain.rounds=1",
        "phases.personalise.rounds=1",
    ]


def copied(archive: Path, folder: Path) -> Path:
    """The same CTs under other names and in another format of numbers."""
    shutil.copytree(archive, folder)
    for i, case in enumerate(sorted(folder.glob("miccai_*"))):
        image = sitk.ReadImage(str(case / "img.nrrd"))
        image.SetOrigin((1.0, 2.0, 3.0))
        for path in (case / "structures").glob("*.nrrd"):
            mask = sitk.ReadImage(str(path))
            mask.CopyInformation(image)
            sitk.WriteImage(mask, str(path))
        sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32), str(case / "img.nrrd"))
        case.rename(folder / f"p{i}")
    return folder


OWN = LISTS % "miccai_003"
OTHER = "{train: [p3], val: [p4], test: [p2]}"


@pytest.mark.parametrize("baseline", ["", "pooled"])
def test_a_patient_tested_at_one_site_and_trained_on_at_another_is_refused(
    baseline: str, archive: Path, tiny: list[str], tmp_path: Path
) -> None:
    copy = copied(archive, tmp_path / "copy")
    words = [*tiny, *sites(archive, copy, OWN, OTHER), f"simulation.baseline={baseline!r}"]
    with pytest.raises(UserError) as caught:
        simulate("smoke", words, tmp_path / "x")
    told = str(caught.value)
    assert caught.value.value == "miccai, nyu"
    assert "1 patient is held out at one site and trained on at another" in told
    for name in ("p3", "miccai_003", "(train)", "(test)", "splits", "exclude"):
        assert name in told
    assert not (tmp_path / "x").exists()


def test_sites_that_share_held_out_patients_alone_are_left_in_peace(
    archive: Path, run_tiny: RunTiny
) -> None:
    lists = "{train: [miccai_004], val: [miccai_002], test: [miccai_003]}"
    run_tiny("x", *sites(archive, archive, OWN, lists))


def test_sites_that_train_alone_may_share_patients(archive: Path, run_tiny: RunTiny) -> None:
    lists = "{train: [miccai_003], val: [miccai_002], test: [miccai_000]}"
    run_tiny("x", *sites(archive, archive, OWN, lists), "simulation.baseline=local-only")


def test_test_cases_that_the_start_weights_have_seen_are_marked(
    archive: Path, run_tiny: RunTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = "{train: [miccai_000], val: [miccai_001], test: [miccai_002, miccai_003]}"
    words = [*sites(archive, archive, lists, lists), "phases.personalise.init=pretrain"]
    first = run_tiny("first", *words)
    state, meta = load(first / "checkpoints" / "pretrain" / "best.safetensors")
    image = read_image(archive / "miccai_003" / "img.nrrd")
    told = {k: meta[k] for k in ("organs", "preprocess", "model", "phase", "round")}
    save(tmp_path, "base", state, {**told, "trained_on": [image_digest(*image)]})
    capsys.readouterr()
    again = run_tiny("again", *words, f"phases.pretrain.init={tmp_path / 'base.safetensors'}")
    pretrain, personalise = json.loads((again / "metrics.json").read_text())["phases"]
    assert pretrain["contaminated"] == {"miccai": 1, "nyu": 1}
    assert personalise["contaminated"] == {"nyu": 1}
    assert "test scores of phase pretrain are contaminated" in capsys.readouterr().out
    assert "contaminated" in (again / "journal.jsonl").read_text()
    assert "contaminated" not in (first / "metrics.json").read_text()


def test_phantom_sites_of_one_signature_have_patients_of_their_own(tmp_path: Path) -> None:
    """A site named like its signature keeps the patients that shipped plans have always had."""
    images = {}
    for name in ("", "miccai", "a", "b"):
        write_site(
            tmp_path / f"_{name}", Cohort(SIGNATURES["miccai"], 2, 9, (8.0, 6.0, 6.0), site=name)
        )
        files = sorted((tmp_path / f"_{name}").glob("*/img.nrrd"))
        images[name] = [file.read_bytes() for file in files]
    assert images[""] == images["miccai"]
    distinct = {data for name in ("miccai", "a", "b") for data in images[name]}
    assert len(distinct) == 6
