"""What Flower bundles and sends to every site: the app's sources, assembled in a folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import UserError

# Flower: no telemetry, no update check, no `uv sync` of our dependencies at each run.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
}
# What a wheel calls two files of the clone that it was built from, which Flower wants in an app.
INSTALLED, INSTALLED_LICENSE = "hnfed_app.toml", "hnfed_app.LICENSE"
LICENSE = "LICENSE"


def app_dir() -> Path:
    """The folder that Flower's app is assembled from: where hnfed's packages stand.

    Raises:
        UserError: what Flower needs to know of the app is not beside them.
    """
    root = Path(__file__).resolve().parents[2]
    if not description(root).is_file():
        raise UserError(
            "installation", root, "install hnfed anew, from a wheel or a clone",
            problem="no pyproject.toml with the packages, which Flower needs",
        )  # fmt: skip
    return root


def description(source: Path) -> Path:
    """The pyproject.toml of an app; beside installed packages it has a name of its own.

    A pyproject.toml there would be what another distribution left.

    Args:
        source: folder that holds the packages.
    """
    installed = source / INSTALLED
    return installed if installed.is_file() else source / "pyproject.toml"


def stage_app(source: Path, target: Path) -> None:
    """Copies an app's pyproject.toml, licence and the files of its ``fab-include`` list alone.

    Flower's command line may rewrite a pyproject.toml and looks at .gitignore: it sees a copy.

    Args:
        source: folder of the packages; its `description` has ``tool.flwr.app.fab-include``.
        target: folder to make.

    Raises:
        UserError: the list is missing or a pattern of it matches nothing.
    """
    text = description(source).read_bytes()
    settings: dict[str, Any] = tomllib.loads(text.decode("utf-8"))
    patterns = settings.get("tool", {}).get("flwr", {}).get("app", {}).get("fab-include", [])
    if not patterns:
        raise UserError("tool.flwr.app.fab-include", patterns, "list the files that sites may get")
    target.mkdir(parents=True)
    (target / "pyproject.toml").write_bytes(text)
    if LICENSE in patterns:
        beside = (source / INSTALLED_LICENSE, source / LICENSE)
        kept = next((path for path in beside if path.is_file()), None)
        if kept is None:
            raise UserError("LICENSE", source, "install hnfed anew", problem="no such file")
        shutil.copyfile(kept, target / LICENSE)
    for pattern in (p for p in patterns if p != LICENSE):
        found = [path for path in sorted(source.glob(pattern)) if path.is_file()]
        if not found:
            raise UserError("tool.flwr.app.fab-include", pattern, "correct it", problem="no file")
        for path in found:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


@contextmanager
def staged_app() -> Iterator[Path]:
    """This installation's own app, staged as ``app`` in a private folder that is removed after."""
    with tempfile.TemporaryDirectory(prefix="hnfed-") as scratch:
        app = Path(scratch) / "app"
        stage_app(app_dir(), app)
        yield app


def toml_of(values: Mapping[str, str]) -> str:
    """Run configuration as Flower reads it from a file (D1)."""

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

    return "".join(f"{name} = {quoted(value)}\n" for name, value in values.items())


def write_private(path: Path, text: str) -> None:
    """Writes a new file that only its owner can read."""
    with os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(text)
