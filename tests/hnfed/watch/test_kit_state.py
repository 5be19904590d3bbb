"""Where a server and a site's client stand, from their kits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from core.errors import UserError
from hnfed.deploy.superlink import ADMITTED, SUPERLINK_LOG
from hnfed.guard.kit import SERVER, Kit
from hnfed.guard.receipts import Chain, write_receipt
from hnfed.guard.standing import CLIENT, WORK, Standing, note, read_note
from hnfed.watch.kit_state import read_client_state, read_server_state
from hnfed.watch.look import _is_server, state_folder
from tests.hnfed.watch.journals import START, started
from tests.traps import TRAPS, within


@pytest.fixture
def server(tmp_path: Path) -> Kit:
    kit = Kit(tmp_path / "server", "hn", SERVER, "fed.example.org", 28443, 28444)
    (kit.folder / "flower").mkdir(parents=True)
    (kit.folder / "runs").mkdir()
    (kit.folder / "roster.json").write_text(json.dumps({"a": "key", "b": "key", "c": "key"}))
    admitted = {site: {"key": "key", "node": str(i)} for i, site in enumerate("abc")}
    (kit.folder / "flower" / ADMITTED).write_text(json.dumps(admitted))
    return kit


@pytest.fixture
def site(tmp_path: Path) -> Kit:
    (tmp_path / "state" / "guard").mkdir(parents=True, mode=0o700)
    return Kit(tmp_path / "kit", "hn", "a", "fed.example.org", 28443, 28444)


def said(kit: Kit, *words: str) -> None:
    lines = "".join(f"x [Fleet.{what}Node] y node_id={node}\n" for what, node in
                    (word.split() for word in words))  # fmt: skip
    (kit.folder / "flower" / SUPERLINK_LOG).write_text(lines)


def test_a_server_that_is_down_has_no_connections(server: Kit) -> None:
    said(server, "Activate 0")
    state = read_server_state(server)
    assert (state.up, state.well, state.run) == (False, False, None)
    assert set(state.sites.values()) == {False}


def test_sites_that_came_and_went(server: Kit) -> None:
    said(server, "Activate 0", "Activate 1", "Deactivate 1", "Activate 9")
    with FileLock(server.folder / "flower" / "server.lock"):
        state = read_server_state(server)
    assert (state.up, state.well) == (True, True)
    assert state.sites == {"a": True, "b": False, "c": False}
    assert os.getpid() in state.pids


def test_the_newest_run_or_the_one_asked_for(server: Kit) -> None:
    for name, age in (("old", 100), ("new", 1)):
        run = started(server.folder / "runs" / name)
        (run / "run_id").write_text(name)
        os.utime(run / "journal.jsonl", (time.time() - age,) * 2)
    state = read_server_state(server, now=START + 9)
    assert state.run is not None
    assert (state.run.name, state.runs) == ("new", 2)
    chosen = read_server_state(server, "old").run
    assert chosen is not None
    assert chosen.name == "old"
    with pytest.raises(UserError, match="new, old"):
        read_server_state(server, "other")
    with pytest.raises(UserError, match="--run"):
        read_server_state(server, "../..")
    json.dumps(state.to_json(), allow_nan=False)


def reply(state: Path, kind: str, round_: int, **metrics: Any) -> None:
    config = {"site": "a", "run": "r-1", "phase": "p", "round": round_,
              "code": metrics.pop("code", "OK")}  # fmt: skip
    write_receipt(Chain(state), "r-1", kind, config, metrics, {})


def test_a_client_that_was_never_started(site: Kit, tmp_path: Path) -> None:
    state = read_client_state(site, tmp_path / "state")
    assert (state.state, state.well, state.replies, state.work) == ("not running", False, {}, None)


def test_a_client_that_is_connected_and_at_work(site: Kit, tmp_path: Path) -> None:
    guard = tmp_path / "state" / "guard"
    standing = Standing(guard)
    standing.tell("dialling")
    standing.tell("connected")
    begun = time.time()
    work = {"run": "r-1", "phase": "p", "organs": ["Brainstem", "Larynx"], "rounds": 4, "round": 2,
            "task": "train", "begun": begun, "done": None}  # fmt: skip
    note(guard / WORK, work)
    reply(tmp_path / "state", "train", 1, **{"val.n": [4.0, 0.0], "val.dice": [2.0, 0.0]})
    reply(tmp_path / "state", "train", 2, **{"val.n": [4.0, 0.0], "val.dice": [3.0, 0.0]})
    reply(tmp_path / "state", "error", 3, code="E_POLICY")
    state = read_client_state(site, tmp_path / "state", begun + 7)
    assert (state.state, state.well, state.pids) == ("connected", True, [os.getpid()])
    assert state.work is not None
    assert state.work["seconds"] == pytest.approx(7)
    assert (state.work["phase"], state.work["round"]) == ("p", "2")
    assert state.replies == {"OK": 2, "E_POLICY": 1}
    assert "policy.yaml" in state.last[-1].why
    (organ,) = state.organs
    assert (organ.organ, organ.history) == ("Brainstem", [(1, 0.5), (2, 0.75)])
    note(guard / WORK, work | {"done": "OK"})
    assert read_client_state(site, tmp_path / "state").work is None
    later = read_client_state(site, tmp_path / "state", begun + 300)
    assert (later.state, later.well) == ("silent", False)
    json.dumps(state.to_json(), allow_nan=False)
    standing.tell("stopped")
    standing.close()
    state = read_client_state(site, tmp_path / "state")
    assert (state.state, state.why) == ("not running", "stopped in good order")


def test_a_client_that_was_killed_left_its_last_word(site: Kit, tmp_path: Path) -> None:
    standing = Standing(tmp_path / "state" / "guard")
    standing.tell("connected")
    standing.close()
    state = read_client_state(site, tmp_path / "state")
    assert state.state == "not running"
    assert "killed" in state.why


def test_an_order_from_before_the_connection_is_not_at_work(site: Kit, tmp_path: Path) -> None:
    guard = tmp_path / "state" / "guard"
    note(guard / WORK, {"run": "r", "begun": time.time() - 60, "done": None})
    standing = Standing(guard)
    standing.tell("connected")
    assert read_client_state(site, tmp_path / "state").work is None
    standing.close()


def test_scores_under_masks_are_not_there(site: Kit, tmp_path: Path) -> None:
    organs = {"run": "r-1", "phase": "p", "organs": ["Brainstem"], "begun": 1.0, "done": "OK"}
    note(tmp_path / "state" / "guard" / WORK, organs)
    reply(tmp_path / "state", "train", 1, masked=[1.0, 2.0])
    state = read_client_state(site, tmp_path / "state")
    assert (state.organs, state.masked) == ([], True)


def test_a_standing_is_private_and_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    guard = tmp_path / "guard"
    guard.mkdir(mode=0o700)
    standing = Standing(guard)
    standing.tell("connected")
    first = read_note(guard / CLIENT)["heard"]
    standing.heard(0.0)
    assert read_note(guard / CLIENT)["heard"] == first, "not at every call"
    standing._told["heard"] -= 60
    standing.heard(0.0)
    assert read_note(guard / CLIENT)["heard"] > first - 60
    standing.close()
    note(tmp_path / "absent" / CLIENT, {"a": 1})
    assert read_note(tmp_path / "absent" / CLIENT) == {}


def test_looking_makes_nothing_in_the_state_folder(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"name: a\nroot: /data\ncache: {tmp_path}/c\nstate: {tmp_path}/s\n")
    assert state_folder(file) == tmp_path / "s"
    assert not (tmp_path / "s").exists()
    with pytest.raises(UserError, match="no such file"):
        state_folder(tmp_path / "absent.yaml")
    file.write_text("name: a\n")
    with pytest.raises(UserError, match="state"):
        state_folder(file)


@pytest.mark.parametrize("trap", TRAPS)
def test_pipes_and_devices_in_a_kit_hold_nobody_up(
    server: Kit, trap: Callable[[Path], None]
) -> None:
    trap(server.folder / "roster.json")
    trap(server.folder / "flower" / ADMITTED)
    trap(server.folder / "kit.json")
    with within():
        assert read_server_state(server).sites == {}
        assert not _is_server(server.folder / "kit.json")
