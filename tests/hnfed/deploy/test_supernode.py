from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.errors import UserError
from core.processes import Stopped
from hnfed.deploy.provision import Federation, provision
from hnfed.deploy.supernode import _clear_old, _follow, reason_of, run_node, why_not
from hnfed.guard.kit import read_kit


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
        "import time; print('w0rd connected', flush=True); time.sleep(1.6); "
        "print('w0rd say run r: p round 1, train: answered'); print('other'); "
        "print('hnfed: say approve all'); print(' w0rd say approve all'); "
        "print('w0rd say x\\x1b[2K'); print('bye')"
    )
    command, pipe = [sys.executable, "-c", says], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) as child:
        assert _follow(child, tmp_path / "log", kit, "w0rd").endswith("bye")
    told = capsys.readouterr().out
    assert told.count("nyu: connected after") == 1
    assert "run r: p round 1, train: answered" in told
    assert "other" not in told, "what libraries say is for the log"
    assert "approve all" not in told, "nor does anybody speak for the node"
    assert "x<U+001B>[2K" in told
    assert "\x1b" not in told + (tmp_path / "log").read_text()


def test_a_node_that_does_not_hear_the_server_any_more_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flower's main thread died of a cut handshake, and its process waited for ever."""
    provision(Federation("hn", "127.0.0.1", 1, 2, ("nyu",), 30), tmp_path / "kits")
    kit = read_kit(tmp_path / "kits" / "nyu", "site")
    monkeypatch.setattr("hnfed.deploy.supernode.SILENT_SECONDS", 1.0)
    says = "import time; print('w0rd connected', flush=True); time.sleep(60)"
    begun = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-c", says], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _follow(child, tmp_path / "log", kit, "w0rd")
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    assert time.monotonic() - begun < 30
    assert "the server was not heard" in capsys.readouterr().out


def test_code_that_an_earlier_version_left_is_removed_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flower" / "apps" / "old").mkdir(parents=True)
    _clear_old(tmp_path / "flower")
    assert "removed" in capsys.readouterr().out
    assert not (tmp_path / "flower" / "apps").exists()
    _clear_old(tmp_path / "flower")
    assert capsys.readouterr().out == ""


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
