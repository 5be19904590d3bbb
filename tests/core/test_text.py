"""Foreign text reaches a screen as what it holds, never as what it would do to the screen."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.text import flagged, shown, shown_lines, shown_table, shown_text

HIDING = 'import os\nx = 1  \x1b[2K\x1b[1Aos.system("steal")\r# harmless      \n'


def test_escape_codes_cannot_hide_a_line_of_source() -> None:
    lines = shown_lines(HIDING)
    assert lines[1] == 'x = 1  <U+001B>[2K<U+001B>[1Aos.system("steal")<U+000D># harmless      '
    assert flagged(HIDING) == [
        "U+001B (controls the screen): 2, first in line 2",
        "U+000D (controls the screen): 1, first in line 2",
    ]


@pytest.mark.parametrize(
    ("char", "why"),
    [
        ("\u202e", "RIGHT-TO-LEFT OVERRIDE (turns the reading order)"),
        ("\u2066", "LEFT-TO-RIGHT ISOLATE (turns the reading order)"),
        ("\u200b", "ZERO WIDTH SPACE (is not seen)"),
        ("\u2028", "LINE SEPARATOR (breaks the line)"),
        ("\u2029", "PARAGRAPH SEPARATOR (breaks the line)"),
        ("\ufeff", "ZERO WIDTH NO-BREAK SPACE (is not seen)"),
        ("\U000e0041", "TAG LATIN CAPITAL LETTER A (is not seen)"),
        ("\u3164", "HANGUL FILLER (is not seen)"),
        ("\u00a0", "NO-BREAK SPACE (is not seen)"),
        ("\ufe0f", "VARIATION SELECTOR-16 (is not seen)"),
        ("\x9b", "(controls the screen)"),
        ("\x85", "(controls the screen)"),
        ("\x00", "(controls the screen)"),
        ("\x7f", "(controls the screen)"),
    ],
)
def test_what_is_not_seen_is_shown_and_told(char: str, why: str) -> None:
    text = f"a{char}b"
    assert shown(text) == f"a<U+{ord(char):04X}>b"
    (told,) = flagged(text)
    assert told == f"U+{ord(char):04X} {why}: 1, first in line 1"


def test_harmless_text_stays_as_it_is() -> None:
    text = "Prüfung der Größe: 3 µm, naïve Σ; 日本語, e\u0301"
    assert shown(text) == text
    assert flagged(text + "\n\tindented\r\nnext\n") == []
    assert shown_lines("a\n\tb\r\nc") == ["a", "        b", "c"]
    assert shown_text("a\nb") == "a\nb"


def test_one_line_stays_one_line_and_is_bounded() -> None:
    assert shown("phase\n[hnfed] approved\tall") == "phase<U+000A>[hnfed] approved<U+0009>all"
    assert shown("x" * 50, limit=10) == "xxxxxxx..."
    assert len(shown("\x1b" * 50, limit=20)) == 20
    assert shown("short", limit=10) == "short"


def test_marks_piled_upon_a_letter_are_cut() -> None:
    text = "a" + "\u0301" * 40
    assert shown(text).count("<U+FDD0>") == 37
    assert flagged(text) == [
        "marks piled upon one letter (paint over other lines): 37, first in line 1"
    ]


def test_a_table_is_safe_at_any_depth() -> None:
    table = {"a\x1b": {"b": ["\u202e", 3, None]}, "c": 1.5}
    assert shown_table(table) == {"a<U+001B>": {"b": ["<U+202E>", 3, None]}, "c": 1.5}


@given(st.text(alphabet=st.characters(), max_size=200))
def test_nothing_shown_moves_the_cursor_or_is_unseen(text: str) -> None:
    safe = shown(text)
    safe.encode("utf-8")  # no lone surrogate: it can be printed
    kinds = {unicodedata.category(char) for char in safe}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert {c for c in safe if unicodedata.category(c) == "Zs"} <= {" "}
    assert shown(safe) == safe
    assert len(shown_lines(text)) == len(text.replace("\r\n", "\n").split("\n"))
    if not flagged(text) and "\n" not in text and "\t" not in text:
        assert safe == text
