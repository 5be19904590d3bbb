"""Folders with the names of hnfed's packages, in the way of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hnfed import packages
from hnfed.packages import NAMES, ROOT, require_one_environment, require_own


def hnfed(*arguments: str, paths: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hnfed.cli.main", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip


def test_ones_own_packages_are_found() -> None:
    require_own()
    assert (ROOT / "core").is_dir()


@pytest.mark.parametrize("name", ["client/__init__.py", "core.py", "server/__init__.py"])
def test_another_package_of_the_name_is_named(name: str, tmp_path: Path) -> None:
    place = tmp_path / "mine" / name
    place.parent.mkdir(parents=True)
    place.write_text("")
    done = hnfed("--help", paths=f"{tmp_path / 'mine'}{os.pathsep}{ROOT}", folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "mine") in done.stderr
    assert "remedy: take" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert Path(name).parts[0].removesuffix(".py") in NAMES


def test_a_folder_without_code_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "mine" / "client").mkdir(parents=True)
    paths = f"{tmp_path / 'mine'}{os.pathsep}{ROOT}"
    assert hnfed("--help", paths=paths, folder=tmp_path).returncode == 0


def told(end: pytest.ExceptionInfo[SystemExit]) -> str:
    text = str(end.value)
    assert len(text.splitlines()) == 2
    assert text.splitlines()[1].startswith("  remedy: ")
    return text


def distribution(place: Path, name: str, *files: str) -> None:
    """Puts an installed distribution of these files into a folder."""
    info = place / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    for file in files:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text("raise RuntimeError('imported')\n")


def test_another_distribution_of_the_name_is_named(tmp_path: Path) -> None:
    distribution(tmp_path / "site", "somecore", "core/__init__.py")
    done = hnfed("--help", paths=f"{tmp_path / 'site'}{os.pathsep}{ROOT}", folder=tmp_path)
    assert done.returncode == 1
    assert "uninstall somecore" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_distribution_installed_over_hnfed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "somecore", "core/__init__.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    monkeypatch.setattr(packages, "_place", lambda name: tmp_path / name)
    with pytest.raises(SystemExit) as end:
        require_own()
    assert "core = " in told(end)
    assert "somecore" in told(end)


def test_a_package_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_place", lambda name: None)
    with pytest.raises(SystemExit) as end:
        require_own()
    assert str(ROOT / "core") in told(end)


def installed(folder: Path, source: Path) -> None:
    info = folder / "lib" / "python3.11" / "site-packages" / "hnfed-0.1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("")
    (info / "direct_url.json").write_text(
        f'{{"dir_info": {{"editable": true}}, "url": "{source.as_uri()}"}}'
    )


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment in which hnfed is installed as editable from this checkout."""
    folder = tmp_path / "a folder" / ".venv"
    installed(folder, ROOT)
    monkeypatch.setattr(sys, "prefix", str(folder))
    return folder


def test_one_checkout_and_its_environment_are_one(environment: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, ROOT, environment):
        require_one_environment(environment / "bin" / "hnfed", folder)


def test_a_copied_environment_is_refused(environment: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / ".venv"
    installed(copy, ROOT)
    with pytest.raises(SystemExit) as end:
        require_one_environment(copy / "bin" / "hnfed", tmp_path)
    assert str(environment) in told(end)
    assert f"rm -r {copy}" in told(end)


def test_an_environment_of_another_checkout_is_refused(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other checkout"
    monkeypatch.setattr(packages, "ROOT", other)
    with pytest.raises(SystemExit) as end:
        require_one_environment(environment / "bin" / "hnfed", tmp_path)
    assert str(other) in told(end)
    assert str(ROOT) in told(end)


def test_a_command_of_another_checkout_is_refused(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "clone" / "hnfed" / "cli").mkdir(parents=True)
    (tmp_path / "clone" / "hnfed" / "cli" / "main.py").write_text("")
    with pytest.raises(SystemExit) as end:
        require_one_environment(environment / "bin" / "hnfed", tmp_path / "clone")
    assert str(tmp_path / "clone") in told(end)


def test_a_folder_that_is_gone_stands_in_nobodys_way(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    code = (
        "import os, sys; os.rmdir(os.getcwd()); from pathlib import Path\n"
        "from hnfed.packages import require_one_environment as r; r(Path(sys.argv[1]), Path())"
    )
    script = Path(sys.executable).with_name("hnfed")
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, script], cwd=tmp_path / "gone", check=False,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


POISONED = ("core", "server", "client", "simulations", "hnfed", "configs", "torch", "numpy", "yaml")


@pytest.mark.slow
def test_a_folder_that_holds_packages_of_these_names_is_not_looked_at(tmp_path: Path) -> None:
    """The command, and the pool of processes that `hnfed prepare` starts (`python -c`)."""
    for name in POISONED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('poisoned {name}')")
    (tmp_path / "random.py").write_text("raise RuntimeError('poisoned random')")
    script = Path(sys.executable).with_name("hnfed")
    for words in (
        ["config", "show", "smoke"],
        ["simulate", "smoke", "--out", "run", f"simulation.cache={tmp_path / 'cache'}",
         "simulation.engine=inline", "phases.pretrain.rounds=1", "phases.personalise.rounds=1"],
    ):  # fmt: skip
        done = subprocess.run(
            [script, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert "poisoned" not in done.stdout + done.stderr
        assert done.returncode == 0, done.stderr
