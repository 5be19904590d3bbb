"""The kits' systemd units, as `systemd-analyze` sees them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hnfed.deploy.provision import Federation, provision

ANALYZE = shutil.which("systemd-analyze")
UNITS = ("server/hnfed-server.service", "nyu/hnfed-client.service")
MOST_EXPOSED = 25  # of 100
NEEDED = ("UMask=0077", "NoNewPrivileges=yes", "ProtectSystem=strict", "LimitCORE=0",
          "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6", "PrivateTmp=yes")  # fmt: skip


@pytest.fixture(scope="module", params=[28443, 443])
def kits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("units")
    port = request.param
    provision(Federation("hn", "localhost", port, 28444, ("nyu",), 30), folder / "kits")
    return folder / "kits"


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_takes_what_is_not_needed(unit: str, kits: Path) -> None:
    lines = (kits / unit).read_text().splitlines()
    assert [line for line in NEEDED if line not in lines] == []
    bounding = next(line for line in lines if line.startswith("CapabilityBoundingSet="))
    low = "Ambient" in "".join(lines) and any(
        line.endswith("CAP_NET_BIND_SERVICE") for line in lines
    )
    assert bounding == "CapabilityBoundingSet=" + ("CAP_NET_BIND_SERVICE" if low else "")


def test_a_client_can_raise_its_walls(kits: Path) -> None:
    text = (kits / "nyu/hnfed-client.service").read_text()
    allowed = next(line for line in text.splitlines() if line.startswith("SystemCallFilter="))
    for call in ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"):
        assert call in allowed
    assert "DeviceAllow=char-nvidia* rw" in text
    assert "PrivateDevices" not in text
    assert "MemoryDenyWriteExecute=yes" not in text


@pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_a_unit_closed(unit: str, kits: Path, tmp_path: Path) -> None:
    copy = tmp_path / Path(unit).name
    copy.write_text((kits / unit).read_text().replace("/opt/hnfed/.venv/bin/hnfed", "/bin/true"))
    assert ANALYZE is not None
    done = subprocess.run(
        [ANALYZE, "security", "--offline=true", f"--threshold={MOST_EXPOSED}", copy],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
    checked = subprocess.run([ANALYZE, "verify", copy], capture_output=True, text=True)
    assert "Unknown" not in checked.stderr
