"""`hnfed server`: one a kit, on ports that are free; who comes and goes is told."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from core.errors import UserError
from hnfed.deploy import superlink as serve
from hnfed.guard.kit import SERVER, Kit


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    (tmp_path / "flower").mkdir()
    return Kit(tmp_path, "hn", SERVER, "127.0.0.1", free_port(), free_port())


def test_a_second_server_of_a_kit_is_refused(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Kit] = []
    monkeypatch.setattr(serve, "_serve", lambda kit: started.append(kit) or 0)
    with (
        FileLock(kit.folder / "flower" / "server.lock"),
        pytest.raises(UserError, match="running already"),
    ):
        serve.serve(kit)
    assert started == []
    assert serve.serve(kit) == 0
    assert serve.serve(kit) == 0, "the lock is given back"


@pytest.mark.parametrize("which", ["port", "internal_port"])
def test_a_port_that_is_taken_is_named(
    kit: Kit, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_serve", lambda kit: 0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", getattr(kit, which)))
        other.listen()
        with pytest.raises(UserError, match=rf"server\.{which} = {getattr(kit, which)}: .*in use"):
            serve.serve(kit)
    assert serve.serve(kit) == 0


def test_nothing_answers_where_nothing_listens(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.ssl, "create_default_context", lambda **_: None)
    assert not serve.answers(kit, kit.internal_port)


def test_sites_that_come_and_go_are_told_once(kit: Kit) -> None:
    log, admitted = kit.folder / "flower" / "superlink.log", {"nyu": {"key": "k", "node": "12"}}
    (kit.folder / "flower" / "admitted.json").write_text(json.dumps(admitted))
    log.write_text("INFO: [Fleet.ActivateNode] Activated node_id=12\nINFO: [Fleet.Deact")
    lines, read = serve.comings(kit, 0)
    assert lines == ["nyu: connected"]
    with log.open("a") as file:
        file.write("ivateNode] Deactivated node_id=12\nsomething else node_id=12\n")
    lines, read = serve.comings(kit, read)
    assert lines == ["nyu: disconnected"]
    assert serve.comings(kit, read) == ([], read)
    log.write_text("INFO: [Fleet.ActivateNode] Activated node_id=9\n")
    assert serve.comings(kit, read)[0] == ["an unknown node: connected"], "the log was begun anew"
    log.unlink()
    assert serve.comings(kit, read) == ([], 0)


def test_a_registered_key_is_not_called_a_connection(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kit.folder / "roster.json").write_text('{"nyu": "key"}')

    def flower(kit: Kit, *arguments: str) -> str:
        return '{"nodes": []}' if "list" in arguments else '{"node-id": "12"}'

    monkeypatch.setattr(serve, "flower", flower)
    assert serve.admit(kit) == ["nyu: its key is registered, it may connect"]


def test_flowers_own_words_where_it_failed() -> None:
    told: dict[str, Any] = {"success": False, "error-message": "Using x\n\nThe app is too large."}
    with pytest.raises(UserError, match=r"The app is too large\."):
        serve.json_of(json.dumps(told))


def test_what_provision_changes_is_taken_in_while_the_server_runs(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = serve._provisioned(kit)
    (kit.folder / "roster.json").write_text("{}")
    assert serve._provisioned(kit) != before
    sent: list[int] = []
    nginx: Any = type("Nginx", (), {"send_signal": lambda _, number: sent.append(number)})()

    def fails(kit: Kit) -> list[str]:
        raise UserError("server", "x", "read its log")

    monkeypatch.setattr(serve, "admit", fails)
    serve._take_in(kit, nginx)
    assert sent == [signal.SIGHUP]
    assert "start the server again" in capsys.readouterr().out, "and it goes on"
