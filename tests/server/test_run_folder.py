from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from core.errors import UserError
from core.identifiers import run_id
from core.plan.load import load
from server.run_folder import (
    LOCK,
    begin,
    differing,
    held_folder,
    require_resumable,
    run_folder,
)


def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not UTF-8"):
        run_folder("smoke", tmp_path / "run-\udcff", resume=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run 1", "lr=0.01", "lauf-ä", "a:b", "x" * 200])
def test_a_folder_of_any_name_has_an_id_and_keeps_it(name: str, tmp_path: Path) -> None:
    config = load("smoke")[0]
    told = [
        begin(config, config, tmp_path / name, out=name, resume=resume, local="")
        for resume in (False, True)
    ]
    assert run_id(told[0]["run_id"]) == told[1]["run_id"]


@pytest.mark.parametrize(("local", "mode"), [("{}", 0o700), ("", 0o777)])
def test_a_simulation_keeps_what_its_sites_write_to_this_account(
    local: str, mode: int, tmp_path: Path
) -> None:
    """Under the umask that lets everybody in; a server's folder has no site's figures in it."""
    config = load("smoke")[0]
    before = os.umask(0)
    try:
        begin(config, config, tmp_path / "run", out="run", resume=False, local=local)
    finally:
        os.umask(before)
    assert (tmp_path / "run").stat().st_mode & 0o777 == mode


def test_a_start_holds_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with (
        held_folder("smoke", out, resume=False, local=True),
        pytest.raises(UserError, match="at work in this folder"),
        held_folder("smoke", out, resume=False),
    ):
        pass
    assert not out.exists()  # nothing was written
    with held_folder("smoke", out, resume=False) as folder:
        (folder / "plan.json").write_text("{}")
    assert (out / "plan.json").exists()


def test_two_starts_without_a_folder_of_their_own_take_two(tmp_path: Path) -> None:
    with held_folder("x", None, False, tmp_path) as a, held_folder("x", None, False, tmp_path) as b:
        assert (a.name, b.name) == ("x", "x-2")


def test_a_server_that_a_killed_start_left_holds_the_folder_too(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "config.yaml").write_text("")
    with (
        FileLock(tmp_path / LOCK),
        pytest.raises(UserError, match="at work in this folder"),
        held_folder("x", tmp_path, resume=True, local=True),
    ):
        pass


def test_a_refusal_names_the_keys_that_differ_and_writes_nothing(tmp_path: Path) -> None:
    config = load("smoke")[0]
    out = tmp_path / "run"
    begin(config, config, out, out="run", resume=False, local="{}")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    other = load("smoke", ["train.lr=0.05", "phases.pretrain.rounds=7"])[0]
    with pytest.raises(UserError) as caught:
        begin(other, other, out, out="run", resume=True, local="{}")
    assert "train.lr was 0.002, is 0.05" in caught.value.problem
    assert "phases.pretrain.rounds was 2, is 7" in caught.value.problem
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


@pytest.mark.parametrize("text", ["", "{", "\xff", "null"])
def test_a_damaged_plan_is_named(text: str, tmp_path: Path) -> None:
    config = load("smoke")[0]
    (tmp_path / "plan.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"plan\.json: damaged"):
        require_resumable(config, tmp_path)


def test_a_damaged_id_is_named(tmp_path: Path) -> None:
    config = load("smoke")[0]
    begin(config, config, tmp_path, out="run", resume=False, local="{}")
    (tmp_path / "run_id").write_bytes(b"\xff")
    with pytest.raises(UserError, match="run_id"):
        begin(config, config, tmp_path, out="run", resume=True, local="{}")


def test_lists_of_other_names_differ_as_a_whole() -> None:
    before, now = {"p": [{"name": "a", "n": 1}]}, {"p": [{"name": "a", "n": 1}, {"name": "b"}]}
    assert differing(before, now) == ['p was ["a"], is ["a", "b"]']
    assert differing({"a": 1}, {"b": {"c": 2}}) == [
        "a was 1, is gone",
        'b was not there, is {"c": 2}',
    ]
