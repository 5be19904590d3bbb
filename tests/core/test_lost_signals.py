"""What a signal raised inside a library, and the library took for an error of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf.errors import ConfigKeyError

from core.archives import parallel as workers
from core.archives.dicom import header as dicom_header
from core.archives.dicom import rtstruct
from core.data.geometry import Geometry
from core.plan import load as config
from core.plan.schema import Plan, Tracking
from core.tracking.wandb_run import open_tracker
from hnfed.predict import dicom_references as dicom_source
from hnfed.report import run as report
from tests.conftest import lose_a_signal

pytestmark = pytest.mark.usefixtures("leaving")


YAML = "hnfed.report.run.yamltext.parse"
DCMREAD = "core.archives.dicom.rtstruct.pydicom.dcmread"


def lost(error: type[Exception], *_: Any, **__: Any) -> Any:
    """A library that swallows what comes up in it."""
    lose_a_signal()
    raise error("of the library")


def tracked(folder: Path) -> object:
    settings = Tracking(mode="offline")
    return open_tracker(settings, run_id="r", folder=folder, config={"phases": []})


PLACES: dict[str, tuple[str, type[Exception], Callable[[Path], object]]] = {
    "yaml": ("core.plan.load.yamltext.parse", ValueError, lambda p: config.read_yaml(p / "file")),
    "override": (
        "core.plan.load.yamltext.parse", ValueError, lambda p: config._override({}, "a=1")
    ),
    "schema": ("core.plan.load._fit", ConfigKeyError, lambda p: config._typed(Plan, {}, "x")),
    "report": (
        YAML, ValueError, lambda p: report._read_config(p / "file", [])
    ),
    "report, no YAML": (
        YAML, RuntimeError, lambda p: report._read_config(p / "file", [])
    ),
    "header": (
        "core.archives.dicom.header.pydicom.dcmread", OSError,
        lambda p: dicom_header.read_header(p / "file"),
    ),
    "headers": (
        "hnfed.predict.dicom_references.pydicom.dcmread", OSError,
        lambda p: dicom_source.read_headers([p / "file"], Geometry((1, 1, 1), (1.0,) * 3)),
    ),
    "structures": (
        DCMREAD, OSError, lambda p: rtstruct._read(p / "file", 1)
    ),
    "tracking": ("wandb.init", RuntimeError, tracked),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_it_is_raised_again(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, error, call = PLACES[place]
    (tmp_path / "file").write_text("a: 1\n")
    monkeypatch.setattr(target, functools.partial(lost, error))
    with pytest.raises(SystemExit) as caught:
        call(tmp_path)
    assert caught.value.code == 143


def test_no_further_item_is_worked_on() -> None:
    done: list[int] = []

    def job(item: int) -> None:
        done.append(item)
        lose_a_signal()

    with pytest.raises(SystemExit):
        list(workers.each(job, [1, 2, 3]))
    assert done == [1]
