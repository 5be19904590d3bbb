from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from core.kit import read_kit
from core.service import Stopped
from hnfed.deploy.supernode import _follow, reason_of, run_node, why_not
from server.provision import Federation, provision


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "certificate"),
        ("Exit Code: 305 ... code 2001", "showed none"),
        ("code 2004", "revoked"),
        ("httpx.ConnectError: Connection refused", "nothing answers"),
    ],
)
def test_flowers_last_words_in_plain_ones(said: str, word: str) -> None:
    assert word in reason_of(said)


def test_words_that_say_nothing() -> None:
    assert reason_of("something new") == ""


def test_a_node_without_a_connection_is_told_why(tmp_path: Path) -> None:
    provision(Federation("hn", "127.0.0.1", 1, 2, ("nyu",), 30), tmp_path / "kits")
    assert "port open" in why_not(read_kit(tmp_path / "kits" / "nyu", "site"))


def test_a_connection_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    provision(Federation("hn", "127.0.0.1", 1, 2, ("nyu",), 30), tmp_path / "kits")
    kit = read_kit(tmp_path / "kits" / "nyu", "site")
    says = (
        "import time; print('INFO : SuperNode ID: 5', flush=True); time.sleep(1.6); "
        "print('hnfed: run r: p round 1, train: answered'); print('other'); print('bye')"
    )
    command, pipe = [sys.executable, "-c", says], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) as child:
        assert _follow(child, tmp_path / "log", kit).endswith("bye")
    told = capsys.readouterr().out
    assert told.count("nyu: connected after") == 1
    assert "run r: p round 1, train: answered" in told
    assert "other" not in told, "what Flower says is for the log"


def test_a_site_that_has_approved_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    provision(Federation("hn", "127.0.0.1", 1, 2, ("nyu",), 30), tmp_path / "kits")
    site = tmp_path / "site.yaml"
    site.write_text(f"name: nyu\nroot: {tmp_path}\ncache: {tmp_path}/c\nstate: {tmp_path}/s\n")

    def stopped(*_: object) -> None:
        raise Stopped(15)

    monkeypatch.setattr("hnfed.deploy.supernode._start", stopped)
    monkeypatch.setattr("hnfed.deploy.supernode.stop_by_signal", lambda: None)
    assert run_node(read_kit(tmp_path / "kits" / "nyu", "site"), site) == 143
    assert "hnfed approve" in capsys.readouterr().out


def test_what_a_dead_node_left_at_work_is_ended_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provision(Federation("hn", "127.0.0.1", 1, 2, ("nyu",), 30), tmp_path / "kits")
    site = tmp_path / "site.yaml"
    site.write_text(f"name: nyu\nroot: {tmp_path}\ncache: {tmp_path}/c\nstate: {tmp_path}/s\n")
    steps: list[str] = []

    def start(*_: object) -> subprocess.Popen[str]:
        if steps:
            raise Stopped(15)
        return subprocess.Popen(["true"], stdout=subprocess.PIPE, text=True, start_new_session=True)

    monkeypatch.setattr("hnfed.deploy.supernode._start", start)

    def ended(child: subprocess.Popen[str]) -> None:
        assert child.returncode == 0
        assert child.stdout is not None
        child.stdout.close()
        steps.append("ended")

    monkeypatch.setattr("hnfed.deploy.supernode.end", ended)
    monkeypatch.setattr("hnfed.deploy.supernode.time.sleep", lambda seconds: None)
    monkeypatch.setattr("hnfed.deploy.supernode.stop_by_signal", lambda: None)
    assert run_node(read_kit(tmp_path / "kits" / "nyu", "site"), site) == 143
    assert steps == ["ended"]


def test_kit_site_file_and_key_must_fit(tmp_path: Path) -> None:
    provision(Federation("hn", "127.0.0.1", 1, 2, ("nyu",), 30), tmp_path / "kits")
    kit = read_kit(tmp_path / "kits" / "nyu", "site")
    site = tmp_path / "site.yaml"
    text = f"root: {tmp_path}\ncache: {tmp_path}/cache\nstate: {tmp_path}/state\n"
    site.write_text(f"name: miccai\n{text}")
    with pytest.raises(UserError, match="the kit is nyu's"):
        run_node(kit, site)
    site.write_text(f"name: nyu\n{text}")
    (kit.folder / "node.key").chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        run_node(kit, site)
    (kit.folder / "node.key").unlink()
    with pytest.raises(UserError, match="no key"):
        run_node(kit, site)
