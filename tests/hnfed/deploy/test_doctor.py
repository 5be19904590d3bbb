from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from core.plan.load import load
from hnfed.deploy.doctor import (
    FAIL,
    PASS,
    WARN,
    Check,
    _allowed,
    _ends_soon,
    clock,
    examine,
    report,
)
from hnfed.deploy.provision import Federation, provision
from hnfed.guard.kit import SERVER, Kit, read_kit
from simulations.memory_probe import Rehearsal


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    provision(Federation("hn", "127.0.0.1", free_port(), free_port(), ("nyu",), 365), tmp_path)
    return tmp_path


def states(role: str, kit: Kit) -> dict[str, Check]:
    return {check.name: check for check in examine(role, kit)}


def test_a_site_learns_what_is_missing(kits: Path) -> None:
    found = states("site", read_kit(kits / "nyu", "site"))
    assert found["keys"].state == found["kit"].state == PASS
    assert (found["approved code"].state, found["approved code"].remedy) == (
        FAIL, "hnfed approve KIT")  # fmt: skip
    assert found["server"].state == FAIL
    assert "port open" in found["server"].remedy
    assert all(check.remedy for check in found.values() if check.state != PASS)


def test_whose_weights_a_site_works_with(kits: Path) -> None:
    kit = read_kit(kits / "nyu", "site")
    found = states("site", kit)["weights"]
    assert (found.state, "0 other sites confirmed" in found.detail) == (WARN, True)
    plan = load("openkbp")[0].plan
    first = replace(plan.phases[0], sites=["nyu", "miccai"])
    shared = replace(plan, phases=[first])
    assert _allowed(kit, shared).detail.startswith("refuses: weights: agreed")
    (kit.folder / "policy.yaml").write_text("weights: any\n")
    found = states("site", kit)["weights"]
    assert (found.state, "one CT" in found.detail) == (WARN, True)
    assert _allowed(kit, shared).state == PASS
    (kit.folder / "policy.yaml").write_text("weights: some\n")
    assert states("site", kit)["weights"].state == _allowed(kit, shared).state == FAIL


def test_open_keys_and_changed_files(kits: Path) -> None:
    folder = kits / "nyu"
    (folder / "node.key").chmod(0o644)
    (folder / "README.md").write_text("other")
    found = states("site", read_kit(folder, "site"))
    assert found["keys"].state == FAIL
    assert "chmod 600" in found["keys"].remedy
    assert "README.md" in found["kit"].detail


def test_a_servers_certificate(kits: Path) -> None:
    found = states(SERVER, read_kit(kits / "server", SERVER))
    assert found["certificate"].state == PASS
    assert "nginx" in found
    old = Federation("hn", "fed.example.org", 1234, 1235, ("nyu",), 365)
    kit = read_kit(kits / "server", SERVER)
    moved = Kit(kit.folder, "hn", SERVER, old.host, kit.port, kit.internal_port)
    found = states(SERVER, moved)
    assert found["certificate"].state == FAIL
    assert "fed.example.org" in found["certificate"].detail


def test_a_certificate_for_a_month_is_no_warning_on_its_first_day(tmp_path: Path) -> None:
    federation = Federation("hn", "fed.example.org", 1234, 1235, ("nyu",), 30)
    provision(federation, tmp_path / "kits")
    for role in (SERVER, "site"):
        folder = tmp_path / "kits" / ("server" if role == SERVER else "nyu")
        assert states(role, read_kit(folder, role))["certificate"].state == PASS


@pytest.mark.parametrize(
    ("whole", "left", "soon"), [(365, 29, True), (365, 31, False), (30, 6, True), (30, 9, False)]
)
def test_what_ends_soon(whole: int, left: int, soon: bool) -> None:
    now = datetime.now(UTC)
    end = now + timedelta(days=left, hours=1)
    made = SimpleNamespace(
        not_valid_before_utc=end - timedelta(days=whole), not_valid_after_utc=end
    )
    assert _ends_soon(made) is soon


def test_without_a_kit(capsys: pytest.CaptureFixture[str]) -> None:
    checks = list(examine("site"))
    assert checks[-1].state == WARN
    told = [Check("a", PASS, "x"), Check("b", FAIL, "y", "do z")]
    assert report(iter(told)) == told
    out = capsys.readouterr().out
    assert "-> do z" in out


def test_tracking_is_offline_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def found() -> Check:
        return next(c for c in examine("researcher") if c.name == "W&B")

    assert found().state == WARN
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n")
    assert found().state == PASS
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "nothing is sent" in found().detail


@pytest.mark.parametrize(
    ("ahead_s", "state"), [(0.0, PASS), (4.0, PASS), (-200.0, PASS), (30.0, FAIL), (-400.0, FAIL)]
)
def test_a_clock_is_right_where_the_server_takes_its_signatures(ahead_s: float, state: str) -> None:
    found = clock(ahead_s)
    assert found.state == state
    assert ("NTP" in found.remedy) == (state == FAIL)


def plan_check(monkeypatch: pytest.MonkeyPatch, free: int) -> Check:
    monkeypatch.setattr("hnfed.deploy.doctor._free_bytes", lambda _: free)
    monkeypatch.setattr("simulations.memory_probe.rehearse", lambda *_: Rehearsal(4 * 10**9, 2.5))
    plan = load("smoke")[0].plan
    return next(c for c in examine("researcher", plan=plan, device="cpu") if "plan" in c.name)


def test_a_plans_memory_against_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = plan_check(monkeypatch, 16 * 10**9)
    assert (roomy.state, roomy.remedy) == (PASS, "")
    assert "4.0 of 16.0 GB" in roomy.detail
    tight = plan_check(monkeypatch, int(4.5e9))
    assert tight.state == WARN
    assert "checkpointing" in tight.remedy


def test_a_device_that_is_not_there() -> None:
    plan = load("smoke")[0].plan
    (check,) = [c for c in examine("site", plan=plan, device="cuda:9") if "plan" in c.name]
    assert check.state == FAIL
    assert "cuda:9" in check.detail
    assert check.remedy


def test_a_batch_smaller_than_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("hnfed.deploy.doctor._free_bytes", lambda _: 16 * 10**9)
    plan = load("smoke", ["train.batch=1"])[0].plan
    (check,) = [c for c in examine("site", plan=plan, device="cuda") if "plan" in c.name]
    assert check.state == FAIL
    assert "train.batch = 1" in check.detail
    assert "write device: cuda:0" in check.remedy


def cache_check(folder: Path) -> Check:
    return next(c for c in examine("site", cache=folder) if c.name == "cache")


def test_a_caches_locks(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert cache_check(folder).state == PASS
    assert not list((folder / "locks").iterdir())
    with FileLock(folder / "locks" / "abc.lock"):
        busy = cache_check(folder)
    assert busy.state == PASS
    assert "1 cases are being prepared" in busy.detail


def test_a_share_whose_locks_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnfed.deploy.doctor.FileLock", SoftlyGranted)
    found = cache_check(tmp_path)
    assert found.state == FAIL
    assert "does not keep others out" in found.detail


class SoftlyGranted:
    """A lock as some network shares have it: granted to everyone."""

    def __init__(self, path: Path, timeout: float = 0) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = cache_check(tmp_path / "file")
    assert found.state == FAIL
    assert found.remedy
