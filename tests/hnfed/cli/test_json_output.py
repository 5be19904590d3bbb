"""Results as data: a file, or standard output and nothing else there."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from hnfed.cli.json_output import JsonFile, add_json, apart
from hnfed.cli.main import _parser, main

# What each command's result is, if it is data; the others make files, run or print text.
DATA = {
    "grid",
    "doctor",
    "check",
    "prepare",
    "approve",
    "receipts",
    "evaluate",
    "compare",
    "advise",
    "models",
    "watch",
}
OTHERS = {"simulate", "client", "join", "provision", "server", "run", "predict", "report", "export"}
OTHERS |= {"config", "completion", "folds", "init"}


def test_each_command_whose_result_is_data_has_it() -> None:
    (commands,) = (a.choices for a in _parser()._actions if isinstance(a.choices, dict))
    assert commands is not None
    having = {
        name for name, parser in commands.items() if "--json" in parser._option_string_actions
    }
    assert having == DATA
    assert set(commands) - having == OTHERS


def test_standard_output_holds_the_document_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "demo", "train.lr=0.25", "--json", "-"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["schema"] == 1
    assert found["config"]["train"]["lr"] == 0.25
    assert found["sources"]["train.lr"] == "override"
    assert "train.lr = 0.25" in printed.err


def test_a_file_in_a_new_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "config.json"
    assert main(["config", "show", "demo", "--json", str(target)]) == 0
    assert json.loads(target.read_text())["schema"] == 1
    assert "train.lr" in capsys.readouterr().out


def test_a_place_that_is_none_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["config", "show", "demo", "--json", str(tmp_path / "file" / "x.json")]) == 1
    printed = capsys.readouterr()
    assert "--json" in printed.err
    assert printed.out == ""


def test_a_number_that_json_does_not_have_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        JsonFile(str(tmp_path / "x.json")).write({"dice": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_without_the_option_nothing_changes(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_json(parser, "it")
    with apart(parser.parse_args([]).json):
        print("text")
    assert capsys.readouterr().out == "text\n"
