"""What an app is assembled from, in a clone and beside installed packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import UserError
from core.packaging import app_bundle
from core.packaging.app_bundle import INSTALLED, app_dir, stage_app, staged_app

ROOT = Path(__file__).resolve().parents[3]
OURS = '[tool.flwr.app]\nfab-include = ["core/*.py"]\n'


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Installed packages, among them what another distribution left."""
    folder = tmp_path / "site-packages"
    (folder / "core").mkdir(parents=True)
    (folder / "core" / "errors.py").write_text("")
    (folder / "pyproject.toml").write_text("[project]\nname = 'another'\n")
    return folder


def test_installed_packages_are_described_by_what_the_wheel_brought(
    packages: Path, tmp_path: Path
) -> None:
    (packages / INSTALLED).write_text(OURS)
    stage_app(packages, tmp_path / "app")
    assert (tmp_path / "app" / "pyproject.toml").read_text() == OURS
    found = [path for path in (tmp_path / "app").rglob("*") if path.is_file()]
    assert {path.name for path in found} == {"pyproject.toml", "errors.py"}


def test_a_clone_and_its_wheel_make_the_same_app() -> None:
    """The wheel brings pyproject.toml byte for byte, under the name that is looked for."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\n"pyproject.toml" = "{INSTALLED}"\n' in text
    with staged_app() as app:
        assert (app / "pyproject.toml").read_text(encoding="utf-8") == text


def test_packages_without_a_description_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_bundle, "__file__", str(tmp_path / "core" / "packaging" / "a.py"))
    with pytest.raises(UserError, match="install hnfed anew"):
        app_dir()
