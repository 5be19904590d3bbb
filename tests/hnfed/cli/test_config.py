"""The subcommands config show and config schema: what a plan holds, and what it may hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hnfed.cli.main import main
from hnfed.plan_schema import plan_schema


def test_config_show_says_where_values_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "preprocess: {crop: [32, 32, 32]}\n"
        "phases: [{name: one, sites: [a], organs: [Brainstem]}]\n"
        "simulation: {sites: {a: {phantom: nyu, cases: 4}}}\n"
        "train: {lr: 0.5}\n"
    )
    assert main(["config", "show", str(file), "train.lr=0.25", "phases.one.rounds=3"]) == 0
    shown = {
        line.split(" = ")[0]: line.split(" = ")[1].split()
        for line in capsys.readouterr().out.splitlines()
    }
    assert shown["train.lr"] == ["0.25", "#", "override"]
    assert shown["phases.0.rounds"] == ["3", "#", "override"]
    assert shown["phases.0.organs"] == ['["Brainstem"]', "#", "mine.yaml"]
    assert shown["preprocess.crop"] == ["[32,", "32,", "32]", "#", "mine.yaml"]
    assert shown["train.batch"][1:] == ["#", "default"]


def test_config_show_suggests_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "demo", "trian.lr=1"]) == 1
    assert "trian" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["config"], ["config", "show"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_config_schema_prints_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == plan_schema()


def test_the_name_of_a_file_from_elsewhere_moves_no_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan\x1b[1A\x1b[2K.yaml"
    path.write_text("phases: [{name: p, sites: [a], organs: [Larynx]}]\n")
    assert main(["config", "show", str(path)]) == 0
    told = capsys.readouterr().out
    assert "# plan<U+001B>[1A" in told
    assert "\x1b" not in told
