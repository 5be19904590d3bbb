"""Every command of the documentation runs here, in the slow suite, or is listed with a reason."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from core.plan.load import find_config, load, typed
from core.plan.schema import Config
from hnfed.cli.main import _parsed, _parser
from hnfed.deploy.provision import read_federation
from hnfed.deploy.site_file import site_from_file
from simulations.study import read_study
from tests.docs.commands import ELSEWHERE, PAGES, ROOT, SLOW, Command, blocks, commands, spans
from tests.docs.world import World, build

LISTED = 53  # commands in `ELSEWHERE`: raise it by hand, and say why in the commit
HERE = [c for c in commands() if c.text not in ELSEWHERE and c.text not in SLOW]
OF_HNFED = [c for c in commands() if c.words[0] == "hnfed"]
SHORTER = (  # for the slow suite: two phases of one round
    "phases.pretrain.rounds=1", "phases.personalise.rounds=1", "simulation.sites.nyu.cases=5",
    "simulation.sites.miccai.cases=5", "simulation.engine=inline",
)  # fmt: skip


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("docs") / "world"
    root.mkdir()
    build(root, tmp_path_factory.mktemp("phantoms"))
    return root


@pytest.fixture
def world(
    built: Path, tmp_path: Path, task_identity: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A copy of the world, at a terminal where somebody answers y, and else takes the default."""
    root = tmp_path / "world"
    shutil.copytree(built, root)
    monkeypatch.chdir(root)
    monkeypatch.setattr("builtins.input", lambda text: "y" if "y/N" in text else "")
    monkeypatch.setattr(sys, "stdin", Terminal())
    before = signal.getsignal(signal.SIGTERM)
    yield World(root)
    signal.signal(signal.SIGTERM, before)


class Terminal:
    def isatty(self) -> bool:
        return True


def test_what_cannot_run_here_is_listed_and_the_list_does_not_grow_unseen() -> None:
    found = {command.text for command in commands()}
    assert len(found) > 60
    assert set(ELSEWHERE) <= found, "no page has these any more"
    assert set(SLOW) <= found
    assert not set(ELSEWHERE) & set(SLOW)
    assert len(ELSEWHERE) == LISTED
    for reason in ELSEWHERE.values():
        assert all((ROOT / path).exists() for path in re.findall(r"tests/[\w/.]+", reason)), reason
    others = [c for c in HERE if c.words[0] not in ("hnfed", "eval")]
    assert others == [], "runs neither here nor in the slow suite"


def endings(command: Command) -> tuple[int, ...]:
    """Exit codes that are in order; whether a machine is ready is no matter of the page."""
    return (0, 1) if "doctor" in command.words[:2] else (0,)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", dict.fromkeys(c.page for c in HERE))
def test_commands_of_a_page_run(page: str, world: World) -> None:
    world.begin(page)
    for command in (c for c in HERE if c.page == page):
        assert world.run(command) in endings(command), command.text


@pytest.mark.parametrize("command", OF_HNFED, ids=lambda c: f"{c.page}: {c.text[:60]}")
def test_options_and_keys_of_a_command_exist(command: Command) -> None:
    options = _parsed(_parser(), command.words[1:])
    assert hasattr(options, "handler")
    config, overrides = getattr(options, "config", None), getattr(options, "overrides", [])
    if config is None:
        return
    if not config.endswith(".yaml"):
        find_config(config)
    load("smoke" if config.endswith(".yaml") else config, overrides)


def test_what_stands_in_backticks_exists() -> None:
    """Subcommands and options of hnfed, targets of make, modules of benchmarks."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    subcommands = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    wrong = []
    for page, text in sorted(spans()):
        program, *words = text.split()
        if program == "make":
            goals = [word for word in words if "=" not in word]
            known = all(re.search(rf"^{goal}:", makefile, flags=re.M) for goal in goals)
        elif program == "python":
            known = words[1].endswith(".NAME") or importlib.util.find_spec(words[1]) is not None
        else:
            known = words[0] in subcommands.choices or words[0].startswith("-")
            options = {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
            known = known and options <= _options(subcommands.choices.get(words[0]))
        if not known:
            wrong.append(f"{page}: {text}")
    assert wrong == []


def _options(parser: argparse.ArgumentParser | None) -> set[str]:
    actions = [] if parser is None else parser._actions
    found = {option for action in actions for option in action.option_strings}
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for one in action.choices.values() for option in _options(one)}
    return found


def examples(language: str) -> list[tuple[str, str]]:
    return [(page.name, text) for page in PAGES for text in blocks(page, language)]


@pytest.mark.parametrize(("page", "text"), examples("yaml"))
def test_files_on_a_page_are_read(
    page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as what it is: a federation's, a site's, a study's file, a plan or parts of these."""
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"(/data|/scratch)(?=/)", str(tmp_path), text)
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    values = yaml.safe_load(text)
    if "server" in values:
        assert read_federation(path).sites
    elif "root" in values:
        assert site_from_file(path, "test").name == values["name"]
    elif "cells" in values:
        assert read_study(str(path), [], tmp_path / "out").cells
    elif "aliases" in values:
        needed = f"name: a\nroot: {tmp_path}\ncache: {tmp_path}/c\nstate: {tmp_path}/s\n"
        path.write_text(needed + text, encoding="utf-8")
        assert site_from_file(path, "test").sources[0].aliases
    else:
        typed(Config, values, page)


@pytest.mark.parametrize(("page", "text"), examples("python"))
def test_python_on_a_page_runs(
    page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(re.sub(r"cases=\d+", "cases=3", text), page, "exec"), {})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", dict.fromkeys(c.page for c in commands() if c.text in SLOW))
def test_long_commands_of_a_page_run(page: str, world: World) -> None:
    """All of the page in its order, with the long ones; a simulation has fewer rounds and cases."""
    if page == "docs/predict-evaluate.md":
        pytest.importorskip("fire", reason="monai.bundle's command line: pip install '.[docs]'")
    world.begin(page)
    for command in (c for c in commands() if c.page == page and c.text not in ELSEWHERE):
        assert world.run(command, SHORTER) in endings(command), command.text
