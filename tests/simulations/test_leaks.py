"""Identifiers planted in an archive come out nowhere: cache, logs, journal, W&B, report, screen.

A case's id is the name of its folder, which the site chose, so no identifier is planted there; they
are in the archive's own folder, in names of structures and in headers. ``findings.csv`` is the one
file that names files: it tells the site which ones, and never leaves it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from core.archives.archive import FORMATS
from core.archives.images.volume import write_image, write_mask
from core.data.geometry import Geometry
from hnfed.cli.main import main
from hnfed.report.page import write_report
from simulations.run import simulate

IDENTIFIERS = (
    "DOE^JANE^FAKE",
    "MUSTERFRAU",
    "TESTPHI-0001",
    "19010201",
    "FAKE GENERAL HOSPITAL",
    "FAKE-SSN-001-45-6789",
)
GRID = Geometry((40, 48, 48), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))
CENTRES = {"BrainStem": (28, 26, 24), "Parotid_L": (20, 22, 36), "Parotid_R": (20, 22, 12)}


def write_case(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(GRID.size)
    body = np.hypot((y - 24) / 20.0, (x - 24) / 18.0) < 1
    image = np.where(body, 30.0, -1000.0) + rng.normal(0, 10, GRID.size)
    image[18:22, 12:15, 18:30] = 900 + 10 * seed
    write_image(folder / "img.nrrd", image.astype(np.int16), GRID)
    header = b"DICOM_0010_0010:=DOE^JANE^FAKE\nDICOM_0010_0020:=TESTPHI-0001\ncontent: 19010201\n"
    data = (folder / "img.nrrd").read_bytes()
    (folder / "img.nrrd").write_bytes(data.replace(b"encoding:", header + b"encoding:", 1))
    for name, at in CENTRES.items():
        mask = sum((v - c) ** 2 for v, c in zip((z, y, x), at, strict=True)) < 3.6**2
        write_mask(folder / "structures" / f"{name}.nrrd", mask, GRID)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "FAKE GENERAL HOSPITAL"
    for i in range(8):
        write_case(root / f"case{i}", i)
    structures = root / "case0" / "structures"
    (structures / "PTV MUSTERFRAU.nrrd").write_bytes(b"")
    (structures / "BrainStem.nrrd").rename(structures / "BrainStem of MUSTERFRAU.nrrd")
    (root / "case1" / "structures" / "Parotid_L.nrrd").write_bytes(b"FAKE-SSN-001-45-6789")
    (root / "case2" / "img.nrrd").write_bytes(b"FAKE-SSN-001-45-6789")
    return root


def hits(folder: Path, words: Sequence[str] = IDENTIFIERS) -> Iterator[str]:
    """Whole words, case-sensitive, in names and contents of all files below a folder."""
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() and path.name != "findings.csv" else b""
        for word in words:
            pattern = rf"(?<!\w){re.escape(word)}(?!\w)"
            if re.search(pattern, path.name) or re.search(pattern.encode(), content):
                yield f"{word} in {path.relative_to(folder)}"


@pytest.mark.real_data
def test_hospital_archives(
    real_data: Path, tmp_path: Path, task_identity: None, tiny: list[str], capfd
) -> None:
    """The invented identifiers of DICOM studies, wherever such data is at hand."""
    listed = next(real_data.rglob("synthetic_from_openkbp/expected.json"), None)
    if listed is None or "dicom" not in FORMATS:
        pytest.skip("no DICOM studies with invented identifiers, or DICOM is not read")
    words = json.loads(listed.read_text())["fake_identifiers_that_must_not_leak"]
    out = tmp_path / "out"
    out.mkdir()
    site = tmp_path / "site.yaml"
    places = "".join(f"{key}: {out / key}\n" for key in ("cache", "state"))
    site.write_text(f"name: nyu\nroot: {listed.parent / 'archive'}\n{places}")
    main(["check", str(listed.parent / "archive"), "--json", str(out / "a.json")])
    assert main(["prepare", str(site), "smoke", "--jobs", "1"]) == 0
    source = (
        f"{{root: '{listed.parent / 'archive'}', split: {{train: 0.34, val: 0.33, test: 0.33}}}}"
    )
    plan = [
        *(item for item in tiny if not item.startswith("simulation.sites")),
        f"simulation.sites={{nyu: {source}, miccai: {source}}}",
        f"simulation.cache={out / 'simulated'}",
        "phases.pretrain.organs=[Brainstem, Bone_Mandible]",
        "phases.personalise.organs=[Parotid_L]",
        "tracking.mode=offline",
    ]
    assert simulate("smoke", plan, out / "run", resume=False) == 0
    write_report(out / "run")
    (out / "run" / "config.yaml").unlink()  # says where the archive lies: the user's own words
    for path in out.rglob("cases.csv"):  # the site's own figures, with its own case ids
        path.unlink()
    text = "".join(capfd.readouterr())
    found = [w for w in words if re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text)]
    assert found == []
    assert list(hits(out, words)) == []


def said(capfd: pytest.CaptureFixture[str]) -> list[str]:
    text = "".join(capfd.readouterr())
    return [word for word in IDENTIFIERS if word in text]


def test_the_search_finds_what_is_there(archive: Path) -> None:
    found = " ".join(hits(archive.parent))
    for word in IDENTIFIERS:
        assert word in found, word


@pytest.mark.slow
def test_check_and_prepare(archive: Path, tmp_path: Path, capfd) -> None:
    out = tmp_path / "out"
    out.mkdir()
    site = tmp_path / "site.yaml"
    places = "".join(f"{key}: {out / key}\n" for key in ("cache", "state"))
    alias = "aliases: {Brainstem: [BrainStem of MUSTERFRAU]}\n"
    site.write_text(f"name: nyu\nroot: {archive}\n{places}{alias}")
    plan = ["smoke", "preprocess={spacing_mm: [12.0, 12.0, 12.0], crop: [16, 16, 16]}"]
    for arguments in (
        ["check", str(archive), "--jobs", "2", "--json", str(out / "a.json")],
        ["check", str(archive), "--site", str(site), "--jobs", "1", "--json", str(out / "b.json")],
        ["prepare", str(site), *plan, "--jobs", "2"],
    ):
        assert main(arguments) == (1 if arguments[0] == "check" else 0)
        assert said(capfd) == [], arguments
    assert list((out / "cache" / "entries").iterdir())
    for path in archive.rglob("img.nrrd"):
        path.write_bytes(b"MUSTERFRAU")
    assert main(["prepare", str(site), *plan, "--jobs", "1"]) == 1
    assert said(capfd) == []
    assert list(hits(out)) == []


def test_simulate_and_report(
    archive: Path,
    tmp_path: Path,
    tiny: list[str],
    task_identity: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd,
) -> None:
    monkeypatch.setattr("server.exchange.POLL_SECONDS", 0.001)
    source = f"{{root: '{archive}', split: {{train: 0.5, val: 0.25, test: 0.25}}}}"
    plan = [
        *(item for item in tiny if not item.startswith("simulation.sites")),
        f"simulation.sites={{nyu: {source}, miccai: {source}}}",
        f"simulation.cache={tmp_path / 'cache'}",
        "phases.pretrain.organs=[Brainstem, Parotid_L]",
        "phases.personalise.organs=[Parotid_R]",
        "simulation.overlays=1",
        "tracking.mode=offline",
    ]
    assert simulate("smoke", plan, tmp_path / "run", resume=False) == 0
    write_report(tmp_path / "run")
    assert said(capfd) == []
    assert (tmp_path / "run" / "report.html").is_file()
    assert list((tmp_path / "run").rglob("*.wandb"))
    config = tmp_path / "run" / "config.yaml"  # says where the archive lies: the user's own words
    config.write_text(config.read_text().replace(str(archive), "ARCHIVE"))
    assert list(hits(tmp_path / "run")) == []
    assert list(hits(tmp_path / "cache")) == []
