"""One screen says what was wrong and what to do, for each mistake of the table."""

from __future__ import annotations

import dataclasses
import math
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from core.archives.images.volume import write_image
from core.data.geometry import Geometry
from core.models.build import build
from core.models.stages import unique_state
from core.plan.schema import Model, Preprocess
from core.wire import checkpoint
from hnfed.cli.main import main
from hnfed.deploy.provision import Federation, provision
from tests.hnfed.cli.mistakes import TABLE

LINES, COLUMNS = 24, 100
ORGANS = ["Brainstem", "Parotid_L"]


@pytest.fixture(scope="module")
def places(ball_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is in order: an archive, a run with weights, kits; and two images that are not."""
    root = tmp_path_factory.mktemp("places")
    settings = Model(channels=[4, 8])
    crop = Preprocess([8.0, 8.0, 8.0], [16, 16, 16], [-200.0, 300.0])
    for folder in ("checkpoints/pretrain", "sites/north/own", "sites/south/own"):
        torch.manual_seed(0)
        meta = {
            "organs": ORGANS,
            "preprocess": dataclasses.asdict(crop),
            "model": dataclasses.asdict(settings),
            "phase": folder.rsplit("/", 1)[-1],
            "round": 1,
        }
        weights = unique_state(build(settings, 2, [16, 16, 16]))
        checkpoint.save(root / "run" / folder, "best", weights, meta)
    checkpoint.save(root / "run" / "checkpoints" / "own", "best", {}, {"scores": {}})
    provision(Federation("hn", "127.0.0.1", 9, 10, ("nyu", "miccai"), 365), root / "kits")
    shutil.copytree(root / "kits" / "nyu", root / "policy")
    (root / "policy" / "policy.yaml").write_text("scorse: false\n")
    image = np.full((12, 12, 12), -1000, np.int16)
    write_image(root / "metres.nrrd", image, Geometry(image.shape, (0.003, 0.003, 0.003)))
    write_image(root / "slice.nrrd", image[:1], Geometry((1, 12, 12), (3.0, 3.0, 3.0)))
    folders = {name: str(root / name) for name in ("run", "kits", "policy")}
    images = {name: str(root / f"{name}.nrrd") for name in ("metres", "slice")}
    ct = str(ball_archive / "c4" / "img.nrrd")
    return {"archive": str(ball_archive), "ct": ct, **folders, **images}


def filled(text: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        text = text.replace(f"{{{name}}}", path)
    return text


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("name", TABLE)
def test_one_screen_says_what_is_wrong_and_what_to_do(
    name: str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mistake = TABLE[name]
    monkeypatch.chdir(tmp_path)
    for file, text in mistake.files.items():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(filled(text, places))
    try:
        code = main(filled(mistake.typed, places).split())
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert code in (1, 2)
    assert "Traceback" not in shown
    assert "error: unexpected" not in shown  # what main says of a bug
    lines = sum(math.ceil(len(line) / COLUMNS) or 1 for line in shown.splitlines())
    assert lines <= LINES, shown
    cause, mark, remedy = captured.err.partition("remedy: ")
    assert mark, shown
    assert mistake.value in cause
    assert mistake.remedy in remedy
