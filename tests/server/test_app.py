from __future__ import annotations

import io
import logging
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from flwr.app import Context, RecordDict
from flwr.supercore.logger import FLOWER_LOGGER

from core.errors import UserError
from core.plan.load import load
from core.wire.messages import Description
from server import app as server_app
from server.app import run_folder_of


def test_a_path_in_a_simulation_a_name_in_deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HNFED_RUNS", raising=False)
    assert run_folder_of(str(tmp_path / "run")) == tmp_path / "run"
    monkeypatch.setenv("HNFED_RUNS", str(tmp_path))
    assert run_folder_of("demo") == tmp_path / "demo"
    for out in ("", ".", "..", "../x", "/etc", "a/b"):
        with pytest.raises(UserError, match="without a path"):
            run_folder_of(out)


def test_an_organ_that_no_site_has_in_a_crop_is_named_with_the_crop() -> None:
    plan = load("smoke")[0].plan
    counts = (3,) * len(plan.organ_names)
    one = Description("nyu", "f", "0" * 64, (3, 1, 1), counts, (), (), {}, {})
    server_app._require_annotated(plan, {"nyu": one, "miccai": replace(one, site="miccai")})
    none = replace(one, annotated=(0, *one.annotated[1:]))
    server_app._require_annotated(plan, {"nyu": none, "miccai": replace(one, site="miccai")})
    with pytest.raises(UserError) as caught:
        server_app._require_annotated(plan, {"nyu": none, "miccai": replace(none, site="miccai")})
    assert caught.value.value == plan.organ_names[0]
    assert "mm (z, y, x)" in caught.value.problem
    assert "spacing_mm" in caught.value.remedy


NOTHING = dict.fromkeys(("plan", "run_id", "out", "resume", "tracking", "local"), "")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "plan = (none)"),
        ({"plan": "smoke"}, "run_id = (none)"),
        ({"plan": "smoke", "run_id": "a", "out": "b"}, "plan = smoke: no JSON"),
        ({"plan": "3", "run_id": "a", "out": "b"}, "plan = 3"),
    ],
)
def test_flowers_own_start_says_how_to_start_and_flower_adds_no_traceback(
    given: dict[str, str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    context = Context(1, 1, {}, RecordDict(), {**NOTHING, **given})
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    FLOWER_LOGGER.addHandler(handler)
    try:
        with pytest.raises(UserError, match="hnfed simulate PLAN") as caught:
            server_app.main(Mock(), context)
        FLOWER_LOGGER.error("%s raised an exception", "Simulation", exc_info=caught.value)
        FLOWER_LOGGER.error("what nobody foresaw", exc_info=KeyError("x"))
    finally:
        FLOWER_LOGGER.removeHandler(handler)
    told = capsys.readouterr().out
    assert field in told
    assert "hnfed run PLAN --server KIT" in told
    plain, unforeseen = heard.getvalue().split("what nobody foresaw")
    assert plain == "Simulation raised an exception\n"
    assert "KeyError: 'x'" in unforeseen


def test_a_damaged_plan_is_told_by_what_is_wrong_with_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {**NOTHING, "plan": '{"rounds": 3}', "run_id": "a", "out": "b"}
    with pytest.raises(UserError, match="rounds"):
        server_app.main(Mock(), Context(1, 1, {}, RecordDict(), values))
    assert "rounds" in capsys.readouterr().out
