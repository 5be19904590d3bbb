from __future__ import annotations

import io
import tomllib
import zipfile
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from core.app_bundle import app_dir, stage_app

ROOT = Path(__file__).resolve().parents[1]
FLOWERS_OWN = {"pyproject.toml", ".info/CONTENT"}


def bundled(folder: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder))) as fab:
        return {name: fab.read(name) for name in fab.namelist()}


def allowed() -> set[str]:
    code = [path for name in ("server", "client", "core") for path in (ROOT / name).rglob("*.py")]
    plans = list((ROOT / "configs").rglob("*.yaml"))
    names = {path.relative_to(ROOT).as_posix() for path in [*code, *plans]}
    return {name for name in names if not name.endswith("/cli.py")}


def test_the_bundle_holds_the_listed_files_and_nothing_else(tmp_path: Path) -> None:
    assert app_dir() == ROOT
    stage_app(ROOT, tmp_path / "app")
    files = bundled(tmp_path / "app")
    assert set(files) - FLOWERS_OWN == allowed()
    assert {"server/app.py", "client/app.py"} < set(files)
    assert any(name.startswith("configs/") for name in files)
    for name in allowed():
        assert files[name] == (ROOT / name).read_bytes()


def test_the_repository_itself_bundles_to_the_same_files(tmp_path: Path) -> None:
    """Also someone who runs `flwr run .` here sends nothing else."""
    stage_app(ROOT, tmp_path / "app")
    assert bundled(ROOT).keys() == bundled(tmp_path / "app").keys()


def test_the_run_config_has_exactly_the_agreed_keys() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    keys = ("plan", "run_id", "out", "resume", "tracking", "local")
    assert settings["config"] == dict.fromkeys(keys, "")
