"""Flower's own command in this checkout: a few plain lines say how a run is started instead."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment.conftest import ROOT, Machine, free_port

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(300)]
SCRIPTS = Path(sys.executable).parent
REMEDY = (
    "start it by hnfed: `hnfed simulate PLAN` on this machine, or `hnfed run PLAN --server KIT`"
)


def environment(home: Path) -> dict[str, str]:
    return {"FLWR_HOME": str(home), "PATH": f"{SCRIPTS}:/usr/bin:/bin", "HOME": str(home)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Flower's home, with a server for simulations that installs nothing."""
    home, port = tmp_path_factory.mktemp("home"), free_port()
    connection = f'default = "ours"\n[superlink.ours]\naddress = "127.0.0.1:{port}"\n'
    (home / "config.toml").write_text(f"[superlink]\n{connection}insecure = true\n")
    server = Machine(
        home / "superlink.log", SCRIPTS / "flower-superlink", "--insecure", "--simulation",
        "--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port),
        "--disable-runtime-dependency-installation",
        env={**environment(home), "FLWR_TELEMETRY_ENABLED": "0", "PYTHONPATH": ""},
    )  # fmt: skip
    try:
        assert server.says("Uvicorn running", 60), server.log.read_text()
        yield home
    finally:
        server.end()


def flwr_run(home: Path, folder: Path, *words: str) -> str:
    """All that a person sees of it."""
    done = subprocess.run(
        [SCRIPTS / "flwr", "run", *words, "--stream"],
        cwd=folder, env=environment(home), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("", "plan = (none): flwr run by itself does not bring it"),
        ('plan="smoke" run_id="a" out="b"', "plan = smoke: no JSON"),
    ],
)
def test_flwr_run_says_how_to_start_and_shows_no_traceback(
    home: Path, tmp_path: Path, settings: str, told: str
) -> None:
    folder, app = (ROOT, ".") if not settings else (tmp_path, str(ROOT))
    seen = flwr_run(home, folder, app, *(["--run-config", settings] if settings else []))
    assert told in seen
    assert REMEDY in seen
    assert "Traceback" not in seen
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_hnfed_does_not_have_is_refused_by_flower(home: Path) -> None:
    seen = flwr_run(home, ROOT, ".", "--run-config", "rounds=3")
    assert "Invalid run configuration" in seen
    assert "Traceback" not in seen
