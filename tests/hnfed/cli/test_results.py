"""The subcommands predict, evaluate, report: from the command line to files."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import verify_net_in_out

from benchmarks.dicom_example import Series, Structures
from core.archives.archive import open_archive, read_image_of
from core.archives.dicom.rtstruct import draw
from core.archives.duplicates import image_digest
from core.archives.images.volume import read_image, write_image
from core.data.geometry import Geometry
from core.models.build import build
from core.models.stages import unique_state
from core.plan.schema import Model, Preprocess
from core.wire import checkpoint
from hnfed.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
ORGANS = ["Brainstem", "Parotid_L"]


@pytest.fixture(autouse=True)
def _keep_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: a shared phase, and a personal phase of two sites. The weights are random."""
    root = tmp_path_factory.mktemp("run")
    folders = {0: "checkpoints/pretrain", 1: "sites/north/own", 2: "sites/south/own"}
    for seed, folder in folders.items():
        settings = Model(channels=[8, 16], prior=0.5)  # untrained, it must find something
        torch.manual_seed(seed)
        model = build(settings, 2, [24, 24, 24])
        meta = {
            "organs": ORGANS,
            "preprocess": dataclasses.asdict(
                Preprocess([5.0, 5.0, 5.0], [24, 24, 24], [-200.0, 300.0])
            ),
            "model": dataclasses.asdict(settings),
            "phase": folder.rsplit("/", 1)[-1],
            "round": seed + 1,
        }
        checkpoint.save(root / folder, "best", unique_state(model), meta)
    checkpoint.save(root / "checkpoints" / "own", "best", {}, {"scores": {}})
    return root


def _run(*arguments: str | Path) -> int:
    return main([str(a) for a in arguments])


# --------------------------------------------------------------------------------------------------
# predict


def test_one_ct_in_both_formats(ball_archive: Path, run: Path, tmp_path: Path) -> None:
    ct = tmp_path / "patient.nrrd"
    shutil.copy(ball_archive / "c4" / "img.nrrd", ct)
    out = tmp_path / "out"
    code = _run(
        "predict", "-i", ct, "-o", out, "--model", run, "--phase", "pretrain",
        "--format", "nrrd,nifti",
    )  # fmt: skip
    assert code == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*")) == [
        "labels.json",
        "patient",
        "patient.nii.gz",
        "patient.uncertain.csv",  # untrained
        "patient/Brainstem.nrrd",
        "patient/Parotid_L.nrrd",
    ]
    assert json.loads((out / "labels.json").read_text()) == {"Brainstem": 1, "Parotid_L": 2}
    reference = sitk.ReadImage(str(ct))
    labels = read_image(out / "patient.nii.gz")[0]
    for value, organ in enumerate(ORGANS, start=1):
        mask = sitk.ReadImage(str(out / "patient" / f"{organ}.nrrd"))
        assert mask.GetSize() == reference.GetSize()
        assert mask.GetOrigin() == pytest.approx(reference.GetOrigin())
        assert mask.GetSpacing() == reference.GetSpacing()
        array = sitk.GetArrayFromImage(mask)
        assert np.array_equal(array, labels == value)
    assert labels.any()


def test_ct_in_another_orientation_gives_the_same_contours(
    ball_archive: Path, run: Path, tmp_path: Path
) -> None:
    ct = sitk.ReadImage(str(ball_archive / "c4" / "img.nrrd"))
    sitk.WriteImage(ct, str(tmp_path / "a.nii.gz"))
    sitk.WriteImage(sitk.DICOMOrient(ct, "RAS"), str(tmp_path / "b.nii.gz"))
    assert _run("predict", "-i", tmp_path, "-o", tmp_path / "out", "--model", run,
                "--site", "north") == 0  # fmt: skip
    for organ in ORGANS:
        a, b = (sitk.ReadImage(str(tmp_path / "out" / c / f"{organ}.nrrd")) for c in "ab")
        assert a.GetDirection() != b.GetDirection()
        back = sitk.GetArrayFromImage(sitk.DICOMOrient(b, "LPS"))
        here = sitk.GetArrayFromImage(a)
        assert here.any()
        assert (here != back).mean() < 1e-3


def test_a_page_to_look_at_without_a_face_unless_the_site_allows_it(
    ball_archive: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ct, out, site = tmp_path / "patient.nrrd", tmp_path / "out", tmp_path / "site.yaml"
    shutil.copy(ball_archive / "c4" / "img.nrrd", ct)
    command = ("predict", "-i", ct, "-o", out, "--model", run, "--phase", "pretrain", "--force")
    assert _run(*command) == 0
    assert not list(out.glob("*.html"))
    site.write_text("name: north\n")
    assert _run(*command, "--preview", "--with-face", site) == 1
    assert "preview_faces" in capsys.readouterr().err
    site.write_text("preview_faces: true\n")
    assert _run(*command, "--with-face", site) == 1
    assert "--preview" in capsys.readouterr().err
    pages = []
    for more in ((), ("--with-face", site)):
        assert _run(*command, "--preview", *more) == 0
        pages.append((out / "patient.preview.html").read_text())
    assert ["is masked" in page for page in pages] == [True, False]
    assert ["The face is in this page" in page for page in pages] == [False, True]


def test_archive_with_a_broken_ct_goes_on_and_fails(
    ball_archive: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in ("c4", "c5"):
        shutil.copytree(ball_archive / case, tmp_path / "in" / case)
    (tmp_path / "in" / "c4" / "img.nrrd").write_bytes(b"NRRD0004\n")
    out = tmp_path / "out"
    assert _run("predict", "-i", tmp_path / "in", "-o", out, "--model", run, "--site", "south",
                "--organs", "Parotid_L") == 1  # fmt: skip
    assert [p.relative_to(out).as_posix() for p in out.rglob("*.nrrd")] == ["c5/Parotid_L.nrrd"]
    captured = capsys.readouterr()
    assert "1 of 2" in captured.out
    assert "c4" in captured.err
    assert "round 3" in captured.err  # the model of site south


def test_case_folder_names_the_ct(ball_archive: Path, run: Path, tmp_path: Path) -> None:
    assert _run("predict", "-i", ball_archive / "c5" / "img.nrrd", "-o", tmp_path, "--model",
                run / "checkpoints" / "pretrain" / "best.safetensors") == 0  # fmt: skip
    assert (tmp_path / "c5" / "Brainstem.nrrd").is_file()


def test_round_trip_of_predict_and_evaluate(
    ball_archive: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same model scored directly, from its masks and from its label maps: the same numbers."""
    model = ["--model", str(run), "--site", "north"]
    assert _run("predict", "-i", ball_archive, "-o", tmp_path / "masks", *model) == 0
    assert _run("predict", "-i", ball_archive, "-o", tmp_path / "maps", *model,
                "--format", "nifti") == 0  # fmt: skip
    scores = []
    for i, source in enumerate(
        (model[:2] + model[2:], ["--pred", tmp_path / "masks"], ["--pred", tmp_path / "maps"])
    ):
        file = tmp_path / "deep" / f"{i}.json"
        options = [] if i == 0 else ["--site", "north"]
        assert _run("evaluate", *source, *options, "--data", ball_archive, "--json", file,
                    "--per-case") == 0  # fmt: skip
        scores.append(json.loads(file.read_text()))
    assert [(c["case"], c["organ"]) for c in scores[0]["cases"]] == [
        ("c5", "Brainstem"),
        ("c5", "Parotid_L"),
    ]
    for other in scores[1:]:
        assert other["organs"]["Brainstem"]["n"] == 1
        for a, b in zip(scores[0]["cases"], other["cases"], strict=True):
            assert (a["dice"], a["hd95_mm"]) == (b["dice"], b["hd95_mm"])
    assert "HD95" in capsys.readouterr().out


def test_averaging_two_models_is_neither(ball_archive: Path, run: Path, tmp_path: Path) -> None:
    north, south = (run / "sites" / s / "own" / "best.safetensors" for s in ("north", "south"))
    found = []
    for i, models in enumerate(([north], [south], [north, south])):
        options = [o for m in models for o in ("--model", m)]
        ct = ball_archive / "c0" / "img.nrrd"
        assert _run("predict", "-i", ct, "-o", tmp_path / str(i), *options) == 0
        found.append(read_image(tmp_path / str(i) / "c0" / "Parotid_L.nrrd")[0])
    assert not np.array_equal(found[2], found[0])
    assert not np.array_equal(found[2], found[1])


def test_label_maps_of_other_organs_are_not_mixed(
    ball_archive: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.json").write_text('{"Larynx": 1}')
    ct = ball_archive / "c0" / "img.nrrd"
    assert _run("predict", "-i", ct, "-o", tmp_path, "--model", run, "--site", "north",
                "--format", "nifti") == 1  # fmt: skip
    assert "labels.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "{run}"], "--site"),
        (["--model", "{run}", "--phase", "nope"], "own, pretrain"),
        (["--model", "{tmp}/none"], "does not exist"),
        (["--model", "{run}", "--site", "north", "--organs", "Brainstm"], "did you mean Brainstem"),
        (["--model", "{run}", "--site", "north", "--device", "tpu"], "device"),
        (["--model", "{run}", "--site", "north", "-i", "{tmp}/none"], "no such file"),
        (["--model", "{run}", "--site", "north", "-i", "{tmp}"], "NRRD"),
        (["--model", "{run}", "--site", "north", "-o", "{tmp}/file/x"], "--output"),
    ],
)
def test_errors_are_one_screen(
    ball_archive: Path,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "file").write_text("")
    given = [a.format(run=run, tmp=tmp_path) for a in arguments]
    ct = str(ball_archive / "c0" / "img.nrrd")
    assert _run("predict", "-i", ct, "-o", tmp_path / "out", *given) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "remedy" in error
    assert "Traceback" not in error
    assert len(error.splitlines()) < 12


# --------------------------------------------------------------------------------------------------
# evaluate


def test_notes_tell_what_was_left_out(
    ball_archive: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("Brainstem", "GTV"):
        target = tmp_path / "c4" / f"{name}.nrrd"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(ball_archive / "c4" / "structures" / "Brainstem.nrrd", target)
    common = ["evaluate", "--pred", tmp_path, "--data", ball_archive]
    assert _run(*common, "--json", tmp_path / "s.json") == 0
    text = capsys.readouterr().out
    assert "no prediction for 1 of 2 cases (c5)" in text
    assert "unknown name, left out: GTV" in text
    assert "nowhere predicted, left out: Parotid_L" in text
    content = json.loads((tmp_path / "s.json").read_text())
    cell = content["organs"]["Brainstem"]
    assert (cell["n"], cell["missed"], cell["dice"], cell["hd95_mm"]) == (2, 1, 0.5, 0.0)
    assert cell["hd95_mm_penalised"] == pytest.approx(np.hypot(160, 192 * np.sqrt(2)) / 2)
    assert len(content["notes"]) == 3

    assert _run(*common, "--organs", "Brainstem,Parotid_L", "--json", tmp_path / "s.json") == 0
    cell = json.loads((tmp_path / "s.json").read_text())["organs"]["Parotid_L"]
    assert (cell["n"], cell["missed"], cell["dice"], cell["hd95_mm"]) == (2, 2, 0.0, None)


def test_evaluate_writes_cases_as_csv_only_where_asked(ball_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ["evaluate", "--pred", ball_archive, "--data", ball_archive, "--csv", out / "s.csv"]
    assert _run(*common) == 0
    assert [file.name for file in out.iterdir()] == ["s.csv"]
    lines = (out / "s.csv").read_text().splitlines()
    assert lines[0].startswith("organ,n,missed,dice,hd95_mm,")
    assert [line.split(",")[0] for line in lines[1:]] == ["Brainstem", "Parotid_L", "mean"]
    assert lines[1].startswith("Brainstem,2,0,1.0,0.0,")
    assert "c4" not in (out / "s.csv").read_text()
    assert _run(*common, "--per-case") == 0
    cases = (out / "s.cases.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in cases] == ["case", "c4", "c4", "c5", "c5"]


@pytest.mark.parametrize(("split", "noted"), [("test", False), ("val", True), ("all", True)])
def test_scores_on_seen_cases_are_marked(
    ball_archive: Path,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    split: str,
    noted: bool,
) -> None:
    assert _run("evaluate", "--model", run, "--phase", "pretrain", "--data", ball_archive,
                "--split", split, "--organs", "Brainstem") == 0  # fmt: skip
    assert ("no estimate for new patients" in capsys.readouterr().out) == noted


def test_cts_that_a_model_was_trained_on_contaminate_its_scores(
    ball_archive: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = open_archive(ball_archive)
    (ref, *_) = [c for c in archive.cases if c.split == "test"]
    image = read_image_of(archive, ref)
    state, meta = checkpoint.load(run / "checkpoints" / "pretrain" / "best.safetensors")
    kept = {k: meta[k] for k in ("organs", "preprocess", "model", "phase", "round")}
    digest = image_digest(*image)
    checkpoint.save(tmp_path, "seen", state, {**kept, "trained_on": [digest]})
    common = ["evaluate", "--data", ball_archive, "--organs", "Brainstem", "--model"]
    assert _run(*common, tmp_path / "seen.safetensors") == 0
    told = capsys.readouterr().out
    assert "contaminated: the CTs of 1 of 2 cases are among those that the model was" in told
    assert f"({ref.case})" in told
    others = [*common, tmp_path / "seen.safetensors", "--split", "val"]
    assert _run(*others) == 0
    told = capsys.readouterr().out
    assert "split val: the model was trained on none of these CTs, but may have been chosen" in told
    assert "contaminated" not in told
    assert _run(*others[:-1], "all") == 0
    told = capsys.readouterr().out
    assert "contaminated: the CTs of 1 of " in told
    assert "cannot be told" not in told
    assert _run(*common, run, "--phase", "pretrain") == 0
    assert "contaminated" not in capsys.readouterr().out


def test_without_splits_the_remedy_is_said(
    ball_archive: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ball_archive / "c0", tmp_path / "c0")
    assert _run("evaluate", "--pred", tmp_path, "--data", tmp_path) == 1
    assert "--split all" in capsys.readouterr().err
    assert _run("evaluate", "--pred", tmp_path, "--data", tmp_path, "--split", "all") == 0


# --------------------------------------------------------------------------------------------------
# report, config show, usage


def test_report_wants_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("report", tmp_path / "none") == 1
    assert "run folder" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run folder"):
        _run("report", tmp_path / "none", "--debug")


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["predict", "-i", "a", "-o", "b", "--model", "c", "--format", "stl"],
        ["evaluate", "--data", "a"],
        ["evaluate", "--data", "a", "--model", "b", "--pred", "c"],
        ["evaluate", "--data", "a", "--pred", "b", "--split", "tests"],
        ["report"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _run(*arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize("command", ["predict", "evaluate", "report"])
def test_help_has_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    import hnfed.cli.results

    with pytest.raises(SystemExit) as caught:
        _run(*command.split(), "--help")
    assert caught.value.code == 0
    example = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert example[:1] == ["hnfed"]
    parser = argparse.ArgumentParser()
    hnfed.cli.results.register(parser.add_subparsers())
    assert callable(parser.parse_args(example[1:]).handler)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, hnfed.cli.results, argparse\n"
        "p = argparse.ArgumentParser(); hnfed.cli.results.register(p.add_subparsers())\n"
        "try: p.parse_args(['predict', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'monai', 'omegaconf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_documentation_names_every_option() -> None:
    import argparse

    import hnfed.cli.results

    text = (ROOT / "docs" / "predict-evaluate.md").read_text()
    commands = argparse.ArgumentParser().add_subparsers()
    hnfed.cli.results.register(commands)
    for command in ("predict", "evaluate"):
        for action in commands.choices[command]._actions:
            for option in action.option_strings:
                if option.startswith("--") and option not in ("--help", "--debug"):
                    assert option in text, f"{command} {option} is not documented"


def test_openkbp_cases_can_be_contoured(run: Path, tmp_path: Path) -> None:
    """A CT in OpenKBP's sparse CSV form: the grid is 128^3, contours come out on it."""
    case = tmp_path / "data" / "test-pats" / "pt_1"
    case.mkdir(parents=True)
    grid = np.zeros((128, 128, 128), dtype=np.int64)
    grid[40:90, 40:90, 20:110] = 1050
    index = np.flatnonzero(grid)
    lines = "\n".join(f"{i},{v}" for i, v in zip(index, grid.reshape(-1)[index], strict=True))
    (case / "ct.csv").write_text(f",data\n{lines}\n")
    (case / "voxel_dimensions.csv").write_text("4.0\n4.0\n2.5\n")
    assert open_archive(tmp_path / "data").format == "openkbp"
    out = tmp_path / "out"
    assert _run("predict", "-i", tmp_path / "data", "-o", out, "--model", run, "--site", "north",
                "--organs", "Brainstem") == 0  # fmt: skip
    array, geometry = read_image(out / "pt_1" / "Brainstem.nrrd")
    assert array.shape == (128, 128, 128)
    assert geometry.spacing_mm == (2.5, 4.0, 4.0)


def test_two_cts_of_one_name_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.full((8, 8, 8), -1000, np.int16)
    for suffix in (".nrrd", ".nii.gz"):
        write_image(tmp_path / f"a{suffix}", image, Geometry((8, 8, 8), (1.0, 1.0, 1.0)))
    assert _run("predict", "-i", tmp_path, "-o", tmp_path / "o", "--model", run) == 1
    assert "two CTs are called a" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# predict: DICOM


@pytest.fixture(scope="module")
def dicom_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cylinder of soft tissue as a DICOM series, with a structure set of somebody's."""
    size = (40, 48, 48)
    y, x = np.mgrid[:48, :48]
    body = np.hypot((y - 24) / 16.0, (x - 24) / 18.0) < 1
    noise = np.random.default_rng(0).normal(0, 10, size)
    image = (np.where(body, 20.0, -1000.0) + noise).astype(np.int16)
    folder = tmp_path_factory.mktemp("dicom")
    Series(image, Geometry(size, (4.0, 4.0, 4.0), (3.0, -90.0, 5.0))).write(folder / "p")
    square = np.array([[80.0, 0, 85], [90, 0, 85], [90, 10, 85]])
    Structures({"GTV Smith": [square]}).write(folder / "p" / "rs.dcm")
    return folder


def test_a_dicom_series_in_every_format(
    dicom_head: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    formats = "nrrd,nifti,segnrrd,rtstruct,dicomseg"
    assert _run("predict", "-i", dicom_head, "-o", tmp_path, "--model", run, "--phase", "pretrain",
                "--format", formats) == 0  # fmt: skip
    written = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert written - {"p.uncertain.csv"} == {
        "labels.json", "p.nii.gz", "p.seg.nrrd", "p/Brainstem.nrrd", "p/Parotid_L.nrrd",
        "p/RS.dcm", "p/SEG.dcm",
    }  # fmt: skip
    assert "Smith" not in capsys.readouterr().err
    labels, geometry = read_image(tmp_path / "p.nii.gz")
    slicer = sitk.ReadImage(str(tmp_path / "p.seg.nrrd"))
    assert np.array_equal(sitk.GetArrayFromImage(slicer), labels)
    assert slicer.GetMetaData("Segment1_Name") == "Parotid_L"
    assert slicer.GetMetaData("Segment1_LabelValue") == "2"
    extent = [int(v) for v in slicer.GetMetaData("Segment0_Extent").split()]
    where = np.argwhere(labels == 1)[:, ::-1]
    assert extent == [v for low, high in zip(where.min(0), where.max(0), strict=True)
                      for v in (low, high)]  # fmt: skip
    mask, remark = draw(tmp_path / "p" / "RS.dcm", "Brainstem", geometry)
    assert remark == ""
    assert np.array_equal(mask, labels == 1)


def test_untrained_weights_are_uncertain(dicom_head: Path, run: Path, tmp_path: Path) -> None:
    assert _run("predict", "-i", dicom_head, "-o", tmp_path, "--model", run, "--phase", "pretrain",
                "--format", "rtstruct", "--organs", "Brainstem") == 0  # fmt: skip
    rows = (tmp_path / "p.uncertain.csv").read_text().splitlines()
    assert rows[0] == "organ,z_mm,probability"
    assert {row.split(",")[0] for row in rows[1:]} == {"Brainstem"}
    assert all(0 < float(row.split(",")[2]) < 0.6 for row in rows[1:])


def test_rtstruct_needs_a_dicom_ct(
    ball_archive: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("predict", "-i", ball_archive, "-o", tmp_path / "out", "--model", run, "--site",
                "north", "--format", "nrrd,rtstruct") == 1  # fmt: skip
    assert "refers to DICOM files" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_chest_is_not_contoured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.full((40, 60, 110), -1000, dtype=np.int16)
    image[:, 10:50, 5:105] = 30
    write_image(tmp_path / "chest.nrrd", image, Geometry(image.shape, (4.0, 4.0, 4.0)))
    assert _run("predict", "-i", tmp_path / "chest.nrrd", "-o", tmp_path / "out", "--model", run,
                "--site", "north") == 1  # fmt: skip
    assert "E_NOT_HEAD_NECK" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# export


def test_a_bundle_gives_the_same_voxels(
    ball_archive: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    assert _run("export", run, "--phase", "pretrain", "-o", bundle) == 0
    ct = ball_archive / "c4" / "img.nrrd"
    for model, out in ((run, "a"), (bundle, "b")):
        choice = () if model is bundle else ("--phase", "pretrain")
        assert _run("predict", "-i", ct, "-o", tmp_path / out, "--model", model, *choice) == 0
    for organ in ORGANS:
        one, other = (tmp_path / out / "c4" / f"{organ}.nrrd" for out in "ab")
        assert one.read_bytes() == other.read_bytes()
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(bundle),
    )
    for line in (bundle / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest
    labels = json.loads((bundle / "labels.json").read_text())
    assert labels["Parotid_L"] == {"label": 2, "tg263": "Parotid_L", "colour": [0, 158, 115]}
    assert "splits" not in json.loads((bundle / "models" / "best.json").read_text())
    assert _run("export", run, "--phase", "pretrain", "-o", bundle) == 1
    assert "new or empty" in capsys.readouterr().err


def test_a_bundle_is_whole_or_not_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full after the weights left a folder that no second try would write into."""
    bundle, words = tmp_path / "bundle", ("export", run, "--phase", "pretrain", "-o")

    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as now:
        now.setattr("hnfed.predict.monai_bundle.replace_file", full)
        assert _run(*words, bundle) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert list(bundle.iterdir()) == []
    assert _run(*words, bundle) == 0
    names = sorted(path.name for path in bundle.iterdir())
    assert names == ["SHA256SUMS", "configs", "docs", "labels.json", "models"]


def test_the_card_withholds_what_the_run_withholds(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    cell = {"n": None, "missed": None, "dice": None, "hd95_mm": None, "suppressed": True}
    shown = {"n": 3, "missed": 1, "dice": 0.5, "hd95_mm": 4.25}
    sites = {"north": {"test": {"Brainstem": shown, "Parotid_L": cell}}}
    metrics = {"schema": 1, "phases": [{"name": "pretrain", "sites": sites}]}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    cases = tmp_path / "run" / "sites" / "north" / "pretrain" / "cases.csv"
    cases.parent.mkdir(parents=True)
    rows = [f"secret{i},{organ},0.{4 + i},1.0" for i in range(3) for organ in ORGANS]
    cases.write_text("\n".join(["case,organ,dice,hd95_mm", *rows]))
    assert _run("export", tmp_path / "run", "--phase", "pretrain", "-o", tmp_path / "b") == 0
    card = (tmp_path / "b" / "docs" / "README.md").read_text()
    assert "| north | Brainstem | 3 | 1 | 0.500 | [0." in card
    assert "| north | Parotid_L | withheld |" in card
    assert not [
        p for p in (tmp_path / "b").rglob("*") if p.is_file() and b"secret" in p.read_bytes()
    ]


def test_the_card_has_no_word_of_a_foreign_folder(run: Path, tmp_path: Path) -> None:
    """Organs and sites of metrics.json went as Markdown and HTML into the card, unescaped."""
    shutil.copytree(run, tmp_path / "run")
    evil = "Brainstem |\n\n<script>alert(1)</script>\n\n## Cleared for clinical use\n\n| x"
    cell = {"n": 3, "missed": 0, "dice": 0.5, "hd95_mm": 4.25, "site": evil, "low": evil}
    sites = {"north": {"test": {"Brainstem": cell | {"organ": evil}, evil: cell}}}
    metrics = {"schema": 1, "phases": [{"name": "pretrain", "sites": sites}]}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    words = ("export", tmp_path / "run", "--phase", "pretrain", "-o")
    assert _run(*words, tmp_path / "b") == 0
    card = (tmp_path / "b" / "docs" / "README.md").read_text()
    assert "| north | Brainstem | 3 | 0 | 0.500 |  | 4.2 |" in card
    assert "Cleared" not in card
    assert "<script" not in card
    sites["north"]["test"]["Brainstem"] = cell | {"n": 10**400}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    assert _run(*words, tmp_path / "c") == 0
    assert "000000" not in (tmp_path / "c" / "docs" / "README.md").read_text()


def test_a_foreign_folder_writes_no_control_characters(
    ball_archive: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name of a folder in it came to the terminal as it was, and could rewrite lines above."""
    folder = tmp_path / "run\x1b[2K"
    shutil.copytree(run / "checkpoints" / "pretrain", folder / "checkpoints" / "p\x1b[1A\rsafe")
    ct, out = ball_archive / "c4" / "img.nrrd", tmp_path / "out\x1b[2K"
    assert _run("predict", "-i", ct, "-o", out, "--model", folder) == 0
    assert _run("export", folder, "-o", tmp_path / "bundle\x1b[2K") == 0
    (folder / "metrics.json").write_text(json.dumps({"schema": 1, "phases": []}))
    assert _run("report", folder) == 0
    with pytest.raises(SystemExit):
        _run("report", folder, folder)
    told = capsys.readouterr()
    assert "p<U+001B>[1A<U+000D>safe" in told.err
    assert "run<U+001B>[2K" in told.out
    assert "\x1b" not in told.out + told.err
    assert "\r" not in told.out + told.err


def test_a_sites_own_weights_bear_its_own_scores(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    cell = {"n": 3, "missed": 0, "dice": 0.5, "hd95_mm": 4.25}
    sites = {site: {"test": {"Brainstem": cell}} for site in ("north", "south")}
    metrics = {"schema": 1, "phases": [{"name": "own", "sites": sites}]}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    out = tmp_path / "b"
    assert _run("export", tmp_path / "run", "--phase", "own", "--site", "south", "-o", out) == 0
    card = (out / "docs" / "README.md").read_text()
    assert "| south | Brainstem" in card
    assert "north" not in card


def test_lost_series_and_mixed_folders_are_no_success(
    dicom_head: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(dicom_head / "p", tmp_path / "in" / "good")
    shutil.copytree(dicom_head / "p", tmp_path / "in" / "bad")
    for path in (tmp_path / "in" / "bad").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    assert _run("predict", "-i", tmp_path / "in", "-o", tmp_path / "out", "--model", run, "--phase",
                "pretrain") == 1  # fmt: skip
    assert "1 of 2" in capsys.readouterr().out
    mixed = tmp_path / "in" / "good"
    write_image(mixed / "other.nrrd", np.zeros((4, 4, 4), np.int16), Geometry((4, 4, 4), (1, 1, 1)))
    assert _run("predict", "-i", mixed, "-o", tmp_path / "out2", "--model", run, "--phase",
                "pretrain") == 1  # fmt: skip
    assert "DICOM series and other images" in capsys.readouterr().err
