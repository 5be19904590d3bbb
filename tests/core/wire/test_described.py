"""The JSON beside weights comes from anywhere: no path, network or setting of it is believed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.plan.schema import Model, Preprocess
from core.wire import checkpoint
from core.wire.described import input_of, require_sound, require_tensors

META: dict[str, Any] = {
    "run": "demo-1a2b3c",
    "phase": "pretrain",
    "organs": ["Brainstem", "Parotid_L"],
    "preprocess": asdict(Preprocess(crop=[16, 16, 16])),
    "model": asdict(Model(channels=[4, 8])),
    "round": 3,
    "average_mirrored": False,
    "amp": "auto",
    "plan_hash": "a" * 64,
    "splits": {"nyu": "b" * 64},
    "versions": {"torch": "2.13.0+cpu"},
}
ATTACKS: list[dict[str, Any]] = [
    {"organs": ["../../archive/case_1/structures/Brainstem"]},
    {"organs": ["/etc/cron.d/x"]},
    {"organs": ["img"]},
    {"organs": ["a\x1b[2Kb"]},
    {"organs": "Brainstem"},
    {"organs": []},
    {"organs": ["Larynx", "larynx"]},
    {"organs": [3]},
    {"trained_on": 5},
    {"trained_on": ["x"]},
    {"trained_on": None},
    {"phase": "../x"},
    {"run": "a/b"},
    {"site": ".."},
    {"round": "3"},
    {"round": -1},
    {"plan_hash": "x"},
    {"splits": {"../nyu": "b"}},
    {"splits": ["nyu"]},
    {"versions": {"torch": "\u202e"}},
    {"average_mirrored": "yes"},
    {"amp": "fp8"},
    {"amp": ["bf16"]},
    {"model": META["model"] | {"name": "${oc.env:HOME}"}},
    {"model": META["model"] | {"name": "UNet |\n\n## Cleared for clinical use\n\n| x"}},
    {"model": META["model"] | {"channels": [40_000, 8]}},
    {"model": META["model"] | {"pretrained": True}},
    {"model": "res3dunet"},
    {"preprocess": META["preprocess"] | {"crop": [3000, 3000, 3000]}},
    {"preprocess": META["preprocess"] | {"crop": [16, 16]}},
    {"preprocess": META["preprocess"] | {"window_hu": [5.0, -5.0]}},
    {"preprocess": {"crop": [16, 16, 16]}},
    {"preprocess": None},
]


@pytest.mark.parametrize("change", ATTACKS, ids=str)
def test_a_checkpoint_that_names_what_is_none_is_not_loaded(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    checkpoint.save(tmp_path, "best", {"conv.weight": torch.zeros(2)}, META | change)
    with pytest.raises(UserError) as caught:
        checkpoint.load(tmp_path / "best.safetensors")
    assert "\x1b" not in str(caught.value)
    assert caught.value.remedy


def test_a_whole_one_is(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "best", {"conv.weight": torch.zeros(2)}, META)
    state, meta = checkpoint.load(tmp_path / "best.safetensors")
    with pytest.raises(UserError, match="at most 32 organs"):
        input_of(meta | {"organs": [f"Organ_{i}" for i in range(33)]})
    organs, preprocess, model = input_of(meta)
    assert (organs, preprocess.crop, model.channels) == (tuple(META["organs"]), [16] * 3, [4, 8])
    assert list(state) == ["conv.weight"]


def test_names_of_tensors_are_names(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "best", {"../../x": torch.zeros(2)}, META)
    with pytest.raises(UserError, match="tensor"):
        checkpoint.load(tmp_path / "best.safetensors")
    with pytest.raises(UserError, match="at most"):
        require_tensors((f"a{i}" for i in range(20_001)), "f")


JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 70),
        st.floats(allow_nan=False),
        st.text(max_size=6),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    key=st.sampled_from([*META, "site", "sha256"]),
    inner=st.sampled_from(["", "crop", "args"]),
    junk=JUNK,
)
def test_whatever_stands_there_is_taken_or_a_user_error(key: str, inner: str, junk: Any) -> None:
    meta = json.loads(json.dumps(META))
    if inner and isinstance(meta.get(key), dict):
        meta[key][inner] = junk
    else:
        meta[key] = junk
    try:
        require_sound(meta, "f")
        organs, preprocess, _ = input_of(meta)
    except UserError:
        return
    assert all("/" not in o and ".." not in o for o in organs)
    assert max(preprocess.crop) <= 1024
