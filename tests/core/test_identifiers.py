"""No name that comes from elsewhere is a path, a trick on the eye, or a name kept for something."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core import identifiers as ids
from core.errors import UserError
from core.organs.vocabulary import BUILT_IN
from core.plan.load import load, shipped_configs
from core.text import flagged

Parse = Callable[[object], str]
FOLDERS: list[Parse] = [
    ids.run_id, ids.phase_name, ids.site_name, ids.organ_name, ids.case_name, ids.digest,
]  # fmt: skip
KINDS: list[Parse] = [*FOLDERS, ids.tensor_name, lambda v: ids.word(v, "word")]
PIECES = st.sampled_from(
    ["a", "B", "7", ".", "..", "/", "\\", "-", "_", "\0", "\n", "\x1b", "\u202e", "\u200b", "~",
     "con", "base", ":", " ", "é", "+"]
)  # fmt: skip
NAMES = st.one_of(st.text(max_size=90), st.lists(PIECES, max_size=6).map("".join))
ATTACKS = [
    "", ".", "..", "/etc/passwd", "../x", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[2K", "a\u202eb",
    "a\u200bb", "C:", "C:x", "con", "NUL", "COM1.txt", "x" * 300, "-rf/", "../../ct/img",
]  # fmt: skip


@pytest.mark.parametrize("parse", FOLDERS)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_path_is_no_name(parse: Parse, name: str) -> None:
    with pytest.raises(UserError):
        parse(name)


@pytest.mark.parametrize("parse", KINDS)
@given(name=NAMES)
@example(name="COM1")
@example(name="a..b")
def test_no_accepted_name_leaves_its_folder(parse: Parse, name: str) -> None:
    try:
        accepted = parse(name)
    except UserError:
        return
    assert accepted == name
    assert name not in (".", "..")
    assert not set(name) & set("/\\\0")
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in name)
    assert flagged(name) == []
    if parse in FOLDERS:
        assert PurePosixPath(name).name == name == PureWindowsPath(name).name
        assert not PureWindowsPath(name).is_reserved()
        assert ":" not in name
        assert len(name.encode()) <= 200


@pytest.mark.parametrize("parse", KINDS)
@pytest.mark.parametrize("value", [None, 3, True, b"abc", ["a"], {"a": 1}, 1.5])
def test_what_is_no_text_is_no_name(parse: Parse, value: object) -> None:
    with pytest.raises(UserError):
        parse(value)


@pytest.mark.parametrize(
    ("parse", "name"),
    [
        (ids.run_id, "base"), (ids.run_id, "Secret"), (ids.run_id, "receipts.jsonl"),
        (ids.run_id, "a..b"), (ids.run_id, "a."), (ids.phase_name, "base"),
        (ids.phase_name, "scratch"), (ids.phase_name, "a.b"), (ids.organ_name, "img"),
        (ids.organ_name, "9th"), (ids.run_id, "-x"), (ids.case_name, " a"),
    ],
)  # fmt: skip
def test_names_that_are_kept(parse: Parse, name: str) -> None:
    with pytest.raises(UserError):
        parse(name)


def test_names_in_use_are_accepted() -> None:
    for name in ("demo-2-1a2b3c", "table1.v2-00ff00"):
        assert ids.run_id(name) == name
    for name in BUILT_IN:
        assert ids.organ_name(name) == name
    assert ids.tensor_name("optimiser.down.0.conv1.weight::exp_avg")
    for name in ("pt_7", "Kopf 12 (spät)", "0522c0001"):
        assert ids.case_name(name) == name


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_plan_keeps_its_names(name: str) -> None:
    config, _ = load(name)
    for phase in config.phases:
        ids.phase_name(phase.name)
        ids.organ_names(phase.organs)
        for site in phase.sites:
            ids.site_name(site)


@given(st.text(max_size=120), st.sampled_from(["", "a1b2c3"]))
def test_every_folder_gives_an_id(name: str, suffix: str) -> None:
    made = ids.run_id_from(name, suffix)
    assert ids.run_id(made) == made
    assert made == ids.run_id_from(name, suffix)
    assert made.endswith(suffix)


@pytest.mark.parametrize(
    "name",
    ["run 1", "lr=0.01", "lauf-ä", "a:b", "x" * 200, "pins.x", "con.1", "NUL", "lock", "..", "-x",
     "日本", "\udcff", "a..b", "__"],
)  # fmt: skip
def test_every_name_that_people_give_becomes_an_id_by_one_rule(name: str) -> None:
    made = ids.run_id_from(name, "00ff00")
    assert ids.run_id(made) == made == ids.run_id_from(name, "00ff00")
    assert made.endswith("-00ff00")
    assert ids.run_id(ids.run_id_from(name))


def test_a_folder_at_the_server_has_one_name() -> None:
    for name in ("run 1", "lr=0.01", "lauf-ä", "a:b", "x" * 200, "-x", "日本"):
        assert ids.folder_name(name) == name
    for name in ("", ".", "..", ".x", "a/b", "/x", "a\0", "a\nb", "a\u202eb", "ä" * 121, None):
        with pytest.raises(UserError, match="name"):
            ids.folder_name(name)


def test_names_that_differ_in_what_was_replaced_get_two_ids() -> None:
    assert ids.run_id_from("demo") == "demo"
    assert ids.run_id_from("demo", "00ff00") == "demo-00ff00"
    assert ids.run_id_from("my run").startswith("my-run-")
    assert len({ids.run_id_from(n) for n in ("my run", "my/run", "my  run", "my-run")}) == 4
    assert ids.run_id_from("x" * 64, "00ff00") != ids.run_id_from("x" * 63 + "y", "00ff00")


@pytest.mark.parametrize("value", [-1, 10**9, True, "3", 1.0, None])
def test_a_round_is_a_whole_number(value: object) -> None:
    assert ids.round_number(7) == 7
    with pytest.raises(UserError):
        ids.round_number(value)


@pytest.mark.parametrize("value", ["Larynx", [], ["Larynx", "larynx"], 3, None, [3], ["../x"]])
def test_a_list_of_organs_is_one(value: object) -> None:
    with pytest.raises(UserError):
        ids.organ_names(value)
