"""The recipes of docs/extending.md, applied to a copy of the code and used there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.simulations.conftest import TINY

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "extending.md"
PARTS = ("core", "server", "client", "simulations", "hnfed", "configs")
MOST_FILES = 2  # of code that a recipe touches

Command = Callable[..., str]


def recipes() -> dict[str, list[tuple[str, str]]]:
    """By heading: the file and the body of each diff below it."""
    found = {}
    for section in PAGE.read_text("utf-8").split("\n## ")[1:]:
        blocks = re.findall(r"^```diff\n--- \S+\n\+\+\+ b/(\S+)\n(.*?)^```", section, re.M | re.S)
        found[section.partition("\n")[0]] = blocks
    return found


def hunks(body: str) -> Iterator[tuple[str, str]]:
    """Of each hunk what must stand in the file, and what stands there after."""
    for hunk in body.split("@@\n")[1:]:
        lines = hunk.splitlines()
        before = [line[1:] for line in lines if not line.startswith("+")]
        after = [line[1:] for line in lines if not line.startswith("-")]
        yield "\n".join(before), "\n".join(after)


def perform(recipe: str, copy: Path) -> None:
    """Applies the diffs of a recipe; each hunk must fit at one place."""
    for name, body in recipes()[recipe]:
        path = copy / name
        text = path.read_text("utf-8") if path.exists() else ""
        for before, after in hunks(body):
            assert (text.count(before) == 1) if text else not before, f"{name}: {before}"
            text = text.replace(before, after) if text else after + "\n"
        path.write_text(text, "utf-8")


@pytest.fixture
def changed(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """Python with a copy of the code in which the recipe of that name was performed."""
    copy = tmp_path / "copy"
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", copy / "pyproject.toml")
    perform(request.param, copy)

    def run(*arguments: str | Path) -> str:
        command = [sys.executable, *map(str, arguments)]
        own = os.environ | {"PYTHONPATH": str(copy)}
        done = subprocess.run(
            command, cwd=copy, env=own, capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert str(copy) in run("-c", "import core.errors; print(core.errors.__file__)")
    return run


def perform_one(recipe: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("changed", [recipe], indirect=True, ids=[""])


def test_the_page_has_a_recipe_for_each_row_and_none_is_long() -> None:
    text = PAGE.read_text("utf-8")
    linked = re.findall(r"^\| \[.*?\]\(#([a-z-]+)\)", text, flags=re.M)
    headings = [re.sub(r"[^a-z -]", "", name.lower()).replace(" ", "-") for name in recipes()]
    assert headings == linked
    assert len(headings) >= 5
    for name, blocks in recipes().items():
        assert 1 <= len({path for path, _ in blocks}) <= MOST_FILES, name


@perform_one("An archive format")
def test_an_archive_format(changed: Command, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    ct = np.full((20, 24, 24), -1000, np.int16)
    ct[2:18, 4:20, 4:20] = 40
    mask = np.zeros(ct.shape, np.uint8)
    mask[8:12, 8:14, 8:14] = 1
    for name, array in (("pt1.ct", ct), ("pt1.Parotid_L", mask), ("pt1.couch", mask)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((8.0, 8.0, 8.0))
        sitk.WriteImage(image, archive / f"{name}.nrrd")
    code = (
        "import sys; from core.archives.archive import open_archive, read_case\n"
        "archive = open_archive(sys.argv[1])\n"
        "volume, _ = read_case(archive, archive.cases[0], ['Parotid_L'])\n"
        "print(archive.format, volume.case, int(volume.masks['Parotid_L'].sum()))\n"
    )
    assert changed("-c", code, archive).split() == ["flat", "pt1", str(int(mask.sum()))]
    checked = changed("-m", "hnfed.cli.main", "check", archive, "--format", "flat", "--jobs", "1")
    assert "Parotid_L" in checked
    assert "CASE.NAME.nrrd (flat)" in changed(
        "-c", "from core.archives.formats.table import any_layout; print(any_layout())"
    )


@pytest.mark.slow
@perform_one("A loss term")
def test_a_loss_term(changed: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changed(
        "-m", "hnfed.cli.main", "simulate", "smoke", *TINY, f"simulation.cache={tmp_path / 'c'}",
        "--out", out, "loss={ce: 0, focal: 0, dice: 0, gdice: 0, tversky: 1}",
    )  # fmt: skip
    events = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    losses = [e["loss"] for e in events if e["event"] == "round" and e.get("loss")]
    assert losses
    assert all(0 < loss["tversky"] < 1.01 for loss in losses)
    assert all(loss["total"] == pytest.approx(loss["tversky"]) for loss in losses)
    assert "Tversky" in (out / "report.html").read_text()
    schema = json.loads(changed("-m", "hnfed.cli.main", "config", "schema"))
    assert schema["properties"]["loss"]["properties"]["tversky"]["minimum"] == 0


@pytest.mark.slow
@perform_one("An aggregation strategy")
def test_an_aggregation_strategy_with_moments(changed: Command, tmp_path: Path) -> None:
    plan = ["smoke", *TINY, f"simulation.cache={tmp_path / 'c'}", "phases.pretrain.rounds=3"]
    plan += ["phases.personalise.rounds=1", "federation.strategy.name=fedyogi"]
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    changed("-m", "hnfed.cli.main", "simulate", *plan, "--out", whole)
    code = (
        "import os, sys\n"
        "from hnfed.cli.main import main\n"
        "from server.rounds import PhaseRun\n"
        "def dies(self, event, seconds):\n"
        "    if event['round'] == 2: os._exit(0)\n"
        "PhaseRun._announce = dies\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    changed("-c", code, "simulate", *plan, "--out", ended)
    assert sorted(p.name for p in (ended / "state" / "pretrain").glob("*.json"))[-1] == (
        "round-00002.json"
    )
    changed("-m", "hnfed.cli.main", "simulate", *plan, "--out", ended, "--resume")
    stem = Path("checkpoints", "pretrain", "last.safetensors")
    assert (ended / stem).read_bytes() == (whole / stem).read_bytes()


@pytest.mark.slow
@perform_one("A metric of a federation")
def test_a_metric_from_voxel_to_report(changed: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changed(
        "-m", "hnfed.cli.main", "simulate", "smoke", *TINY, f"simulation.cache={tmp_path / 'c'}",
        "--out", out, "model.prior=0.5",
    )  # fmt: skip
    phase = json.loads((out / "metrics.json").read_text())["phases"][0]
    means = [v for v in _values(phase, "volume_error") if v is not None]
    assert means
    assert all(0 <= v <= 1 for v in means)
    assert ">volume error</th>" in (out / "report.html").read_text()


def _values(content: object, key: str) -> Iterator[float | None]:
    """Every value of a key, at any depth."""
    if isinstance(content, dict):
        for name, item in content.items():
            if name == key:
                yield item
            yield from _values(item, key)
    elif isinstance(content, list):
        for item in content:
            yield from _values(item, key)


@perform_one("A measure of `hnfed evaluate`")
def test_a_measure_of_evaluate(changed: Command) -> None:
    code = (
        "import numpy as np; from hnfed.evaluate.measures import measure, summary, summary_rows\n"
        "from core.metrics.scores import outline\n"
        "truth, pred = np.zeros((2, 8, 8, 8), bool)\n"
        "truth[2:6, 2:6, 2:6], pred[2:4, 2:6, 2:6] = True, True\n"
        "score = measure('a', 'Brain', outline(pred), truth, (1.0, 1.0, 1.0), 10.0)\n"
        "header, organ, _ = summary_rows(summary([score], ['Brain']))\n"
        "print(organ[header.index('volume_ratio')])\n"
    )
    assert float(changed("-c", code)) == 0.5


@perform_one("A command")
def test_a_command(changed: Command, tmp_path: Path) -> None:
    case = tmp_path / "archive" / "pt1"
    case.mkdir(parents=True)
    (case / "img.nrrd").touch()
    assert changed("-m", "hnfed.cli.main", "count", case.parent) == "1 cases (pddca)\n"
    assert "cases of an archive" in changed("-m", "hnfed.cli.main", "--help")
