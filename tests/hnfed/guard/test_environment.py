from __future__ import annotations

from pathlib import Path

import pytest

from hnfed.guard.environment import node_environment, worker_environment

GIVEN = {
    "PATH": "/bin", "LC_ALL": "C.UTF-8", "CUDA_VISIBLE_DEVICES": "1", "HOME": "/home/clinic",
    "HTTPS_PROXY": "http://user:word@proxy:3128", "no_proxy": "localhost",
}  # fmt: skip
SECRET = {
    "AWS_SECRET_ACCESS_KEY": "x", "WANDB_API_KEY": "x", "PGPASSWORD": "x", "SSH_AUTH_SOCK": "x",
    "PYTHONPATH": "/tmp/x", "PYTHONSTARTUP": "/tmp/x", "LD_PRELOAD": "/tmp/x.so",
    "LD_AUDIT": "/tmp/x.so", "FLWR_HOME": "/tmp", "GRPC_TRACE": "all", "SSLKEYLOGFILE": "/tmp/k",
    "NOTIFY_SOCKET": "/run/x", "SSL_CERT_FILE": "/tmp/ca",
}  # fmt: skip


@pytest.mark.parametrize("name", SECRET)
def test_what_stands_in_no_list_is_not_handed_on(name: str, tmp_path: Path) -> None:
    given = {**GIVEN, **SECRET}
    assert name not in node_environment(given)
    assert name not in worker_environment(tmp_path, given)


def test_the_node_keeps_the_way_out_and_the_worker_does_not(tmp_path: Path) -> None:
    node, worker = node_environment(GIVEN), worker_environment(tmp_path, GIVEN)
    assert GIVEN.items() <= node.items()
    assert {"HTTPS_PROXY", "no_proxy"}.isdisjoint(worker)
    assert worker["HOME"] == worker["TMPDIR"] == str(tmp_path)
    assert worker["CUDA_VISIBLE_DEVICES"] == "1"


def test_telemetry_stays_off_whatever_the_account_says(tmp_path: Path) -> None:
    given = {"FLWR_TELEMETRY_ENABLED": "1", "WANDB_MODE": "online"}
    for made in (node_environment(given), worker_environment(tmp_path, given)):
        assert made["FLWR_TELEMETRY_ENABLED"] == "0"
        assert made["WANDB_MODE"] == "disabled"


def test_without_an_argument_it_is_that_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "x")
    monkeypatch.setenv("TZ", "UTC")
    assert "PGPASSWORD" not in node_environment()
    assert worker_environment(tmp_path)["TZ"] == "UTC"
