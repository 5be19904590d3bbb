"""A machine, Python, torch or virtual environment that does not fit: one screen, before torch."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from hnfed import installation
from hnfed.cli.main import main
from hnfed.installation import PYTHON, TORCH, in_words, require_linux, require_machine

ROOT = Path(__file__).resolve().parents[2]


def told(end: pytest.ExceptionInfo[SystemExit]) -> str:
    text = str(end.value)
    assert text.startswith("hnfed: error: ")
    assert len(text.splitlines()) == 2
    assert text.splitlines()[1].startswith("  remedy: ")
    return text


def test_the_bounds_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (low, high), (torch_low, torch_high) = [
        [".".join(map(str, bound)) for bound in bounds] for bounds in (PYTHON, TORCH)
    ]
    assert project["requires-python"] == f">={low},<{high}"
    assert f"torch>={torch_low},<{torch_high}" in project["dependencies"]
    versions = [f"{PYTHON[0][0]}.{minor}" for minor in range(PYTHON[0][1], PYTHON[1][1])]
    python = "Programming Language :: Python :: "
    named = [text.removeprefix(python) for text in project["classifiers"] if python in text]
    assert named == versions
    assert in_words(PYTHON) == f"{versions[0]} to {versions[-1]}"


@pytest.mark.parametrize("system", ["win32", "cygwin", "freebsd14"])
def test_another_system_is_told_what_runs_hnfed(system: str) -> None:
    with pytest.raises(SystemExit) as end:
        require_machine(system)
    assert "Linux" in told(end)
    assert system in told(end)


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_linux_and_macos_are_taken(system: str) -> None:
    require_machine(system)
    require_linux("simulate", system)
    require_linux("predict", system)


@pytest.mark.parametrize("command", ["client", "server", "approve", "run"])
def test_a_site_or_server_needs_linux(command: str) -> None:
    require_linux(command, "linux")
    with pytest.raises(SystemExit) as end:
        require_linux(command, "darwin")
    assert f"hnfed {command}" in told(end)


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 14, 0), (4, 0, 0)])
def test_another_python_is_named(version: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit) as end:
        require_machine()
    assert ".".join(map(str, version)) in told(end)
    assert sys.executable in told(end)


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (3, 13, 99)])
def test_pythons_in_range_are_taken(
    version: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    require_machine()


def torch_of(version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch of that version before all others, which must not be imported."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise AssertionError('torch was imported')")
    (folder / "torch" / "version.py").write_text(f"__version__ = '{version}'\ncuda = None\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize("version", ["2.5.1+cu124", "2.16.0", "1.13.1", "3.0.0", "strange"])
def test_another_torch_is_named_before_a_command_begins(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_of(version, tmp_path, monkeypatch)
    with pytest.raises(SystemExit) as end:
        main(["config", "show", "smoke"])
    assert version in told(end)
    assert in_words(TORCH) in told(end)


@pytest.mark.parametrize("version", ["2.6.0+debian", "2.13.0+cpu", "2.15.3", "2.8.0a0+git1"])
def test_any_build_in_range_is_taken(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_of(version, tmp_path, monkeypatch)
    installation.require_torch()


def test_no_torch_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "torch_version", lambda: None)
    with pytest.raises(SystemExit) as end:
        installation.require_torch()
    assert "torch = not installed" in told(end)
