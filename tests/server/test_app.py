from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from flwr.app import Context, RecordDict

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


def test_flowers_own_start_without_a_plan_says_how_to_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nothing = dict.fromkeys(("plan", "run_id", "out", "resume", "tracking", "local"), "")
    context = Context(1, 1, {}, RecordDict(), nothing)
    with pytest.raises(UserError, match="hnfed simulate PLAN"):
        server_app.main(Mock(), context)
    assert "flwr run by itself brings no plan" in capsys.readouterr().out
