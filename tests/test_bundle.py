"""What hospitals approve is exactly what the two apps import."""

from __future__ import annotations

import ast
import io
import tomllib
import zipfile
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from core.packaging.app_bundle import app_dir, stage_app
from core.wire.partition import INSTALLED

ROOT = Path(__file__).resolve().parents[1]
FLOWERS_OWN = {"pyproject.toml", "LICENSE", ".info/CONTENT"}
OURS = ("core", "client", "server", "simulations", "hnfed")
APPS = ("client/app.py", "server/app.py")
MOST_FILES, MOST_LINES = 95, 16_000


def bundled(folder: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder))) as fab:
        return {name: fab.read(name) for name in fab.namelist()}


def imported(path: Path) -> set[Path]:
    """Files of ours that a file imports: anywhere in it, for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        for name in (n for n in names if n.partition(".")[0] in OURS):
            file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            if file.is_file():
                found.add(file)
    return found


def closure() -> set[str]:
    """The apps, all that they import, and the empty files that make packages of the folders."""
    todo, seen = [ROOT / app for app in APPS], set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += imported(path)
    packages = {
        folder / "__init__.py"
        for path in seen
        for folder in path.parents
        if folder.is_relative_to(ROOT) and folder != ROOT
    }
    return {path.relative_to(ROOT).as_posix() for path in seen | packages}


def test_the_bundle_is_what_the_two_apps_import(tmp_path: Path) -> None:
    assert app_dir() == ROOT
    stage_app(ROOT, tmp_path / "app")
    files = bundled(tmp_path / "app")
    assert set(files) - FLOWERS_OWN == closure()
    for name in closure():
        assert files[name] == (ROOT / name).read_bytes()


def test_a_person_can_read_the_bundle(tmp_path: Path) -> None:
    stage_app(ROOT, tmp_path / "app")
    files = {n: text for n, text in bundled(tmp_path / "app").items() if n not in FLOWERS_OWN}
    assert all(name.endswith(".py") for name in files)
    assert len(files) <= MOST_FILES
    assert sum(len(text.splitlines()) for text in files.values()) <= MOST_LINES


def test_the_fingerprint_is_of_what_travels() -> None:
    """A changed chart, comparison, reader of archives or plan is no other code to a site."""
    core = {path.relative_to(ROOT).as_posix() for path in (ROOT / "core").rglob("*.py")}
    installed = {name for name in core if name.split("/")[1] in INSTALLED}
    assert core - installed == {name for name in closure() if name.startswith("core/")}
    assert not [name for name in closure() if name.startswith(("hnfed/", "configs/"))]


def test_the_repository_itself_bundles_to_the_same_files(tmp_path: Path) -> None:
    """Also someone who runs `flwr run .` here sends nothing else."""
    stage_app(ROOT, tmp_path / "app")
    assert bundled(ROOT) == bundled(tmp_path / "app")


def test_the_run_config_has_exactly_the_agreed_keys() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    keys = ("plan", "run_id", "out", "resume", "tracking", "local")
    assert settings["config"] == dict.fromkeys(keys, "")
