from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from core.secure.hello import (
    LONGEST,
    Hello,
    _text,
    fewest,
    members,
    part_signed,
    require_part,
    require_signed,
)

KEY = ec.generate_private_key(ec.SECP384R1())
HELLO = Hello("nyu", "r", "ab", "cd", "00" * 32, "101", "100", "000", 3, counts=True, scores=True)


def test_a_hello_comes_back_as_it_was_signed() -> None:
    text = HELLO.signed(KEY)
    assert Hello.read(text) == HELLO
    require_signed(text, KEY.public_key())
    assert len(text) < LONGEST / 4


def test_another_key_or_another_word_is_refused() -> None:
    text = HELLO.signed(KEY)
    with pytest.raises(ValueError, match="signature"):
        require_signed(text, ec.generate_private_key(ec.SECP384R1()).public_key())
    payload = replace(HELLO, site="miccai").signed(KEY).split(".")[0]
    with pytest.raises(ValueError, match="signature"):
        require_signed(f"{payload}.{text.split('.')[1]}", KEY.public_key())


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: f"{_text(b)}.{_text(b)}"))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Hello.read(text)


def test_a_deep_text_is_refused() -> None:
    with pytest.raises(ValueError):
        Hello.read(f"{_text(b'[' * 2900)}.{_text(b'')}")


@pytest.mark.parametrize(
    "change",
    [
        {"key": "zz" * 32},
        {"train": "12"},
        {"fewest": True},
        {"counts": 1},
        {"evidence": 0},
        {"site": 3},
        {"more": 1},
    ],
)
def test_another_form_is_refused(change: dict[str, Any]) -> None:
    payload = json.dumps({**HELLO.__dict__, **change}).encode()
    with pytest.raises(ValueError):
        Hello.read(f"{_text(payload)}.{_text(b'')}")


def test_a_part_is_signed_with_all_that_it_belongs_to() -> None:
    told = (bytes(32), b"words", b"counts")
    signature = part_signed(KEY, *told)
    require_part(signature, KEY.public_key(), *told)
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    for key, *changed in (
        (other, *told),
        (KEY.public_key(), bytes(31) + b"1", *told[1:]),
        (KEY.public_key(), told[0], b"word", b"scounts"),
        (KEY.public_key(), told[0], b"words", b"count"),
    ):
        with pytest.raises(ValueError, match="signature"):
            require_part(signature, key, *changed)
    with pytest.raises(ValueError, match="signature"):  # of a hello, or of anything else
        require_part(KEY.sign(b"".join(told), ec.ECDSA(hashes.SHA384())), KEY.public_key(), *told)


def test_members_and_the_most_careful() -> None:
    hellos = {"nyu": HELLO, "miccai": replace(HELLO, site="miccai", train="001", fewest=5)}
    assert members(hellos, "train", 0) == {"nyu"}
    assert members(hellos, "train", 2) == {"nyu", "miccai"}
    assert members(hellos, "val", 9) == frozenset()
    assert fewest(hellos) == 5
