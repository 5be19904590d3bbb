"""Foreign text made safe for a screen: what a person reads is what the text holds.

Text of another machine, or of a file from elsewhere, can move the cursor, overwrite a line, turn
the order of letters round or hide words. Every such character is shown as its number instead,
``<U+001B>``; everything else stays as it is. What is printed of foreign text goes through here.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# General categories that have no picture of their own: control, format (bidirectional marks,
# zero width, tags), surrogate, private use, unassigned, line and paragraph separators.
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters and marks that fonts draw as nothing, and blanks that are not the ordinary one.
BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
VARIATIONS = (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0), range(0x180B, 0x1810))
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
STACK = 3  # marks upon one letter; more paint over the lines around

_OTHER = re.compile(r"[^\x20-\x7e]")
_STACKED = re.compile(rf"[^\x00-\x7f]{{{STACK + 1},}}")
_LINE = re.compile(r"\r\n|\n")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def shown(text: object, limit: int | None = None) -> str:
    """One line for a screen: line breaks, tabs and what could mislead become ``<U+...>``.

    Args:
        text: foreign text, or anything whose `str` is foreign.
        limit: of the characters returned; what is longer ends in ``...``.
    """
    whole = str(text)
    if limit is not None:
        whole = whole[: limit + 1]  # nothing shrinks below: no need to look at the rest
    safe = _OTHER.sub(_replaced, _flattened(whole))
    if limit is not None and len(safe) > limit:
        return safe[: max(limit - 3, 0)] + "..."
    return safe


def uncoloured(text: str) -> str:
    """Text without a terminal's colours."""
    return _COLOUR.sub("", text)


def shown_lines(text: str) -> list[str]:
    """Text of several lines (source, a log) for a screen; tabs become blanks.

    Only line feeds, alone or after a carriage return, end a line.
    """
    return [shown(line.expandtabs()) for line in _LINE.split(text)]


def shown_text(text: object) -> str:
    """`shown_lines` as one text."""
    return "\n".join(shown_lines(str(text)))


def shown_table(values: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping whose keys and texts are safe, at any depth; numbers stay numbers."""
    return {shown(key): _safe(value) for key, value in values.items()}


def figure(value: float | None, digits: int) -> str:
    """A number, or a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def aligned(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Columns of equal width: the first `words` to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def flagged(text: str) -> list[str]:
    """What a text holds that a screen would not show as it is, one line a character.

    Line feeds (also after a carriage return) and tabs are none of it.

    Returns:
        Such as ``U+202E RIGHT-TO-LEFT OVERRIDE (turns the reading order): 2, first in line 3``,
        in the order of their first place; empty for harmless text.
    """
    found: dict[str, list[int]] = {}
    for number, line in enumerate(_LINE.split(text), start=1):
        for match in _OTHER.finditer(_flattened(line)):
            char = match.group()
            if char != "\t" and _hidden(char):
                found.setdefault(char, []).append(number)
    return [f"{_called(c)}: {len(at)}, first in line {at[0]}" for c, at in found.items()]


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return shown_table(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_safe(item) for item in value]
    return value


def _replaced(match: re.Match[str]) -> str:
    char = match.group()
    return f"<U+{ord(char):04X}>" if _hidden(char) else char


@functools.lru_cache(maxsize=4096)
def _hidden(char: str) -> bool:
    kind = unicodedata.category(char)
    if kind in UNSEEN or char in BLANK or (kind == "Zs" and char != " "):
        return True
    return any(ord(char) in marks for marks in VARIATIONS)


def _flattened(text: str) -> str:
    """The text with at most `STACK` marks upon a letter; the others stand as noncharacters."""
    if not _STACKED.search(text):
        return text
    run, kept = 0, []
    for char in text:
        run = run + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        kept.append(char if run <= STACK else "\ufdd0")
    return "".join(kept)


def _called(char: str) -> str:
    if char == "\ufdd0":
        return "marks piled upon one letter (paint over other lines)"
    kind = unicodedata.category(char)
    name = unicodedata.name(char, "")
    if char in BIDI:
        why = "turns the reading order"
    elif kind == "Cc":
        why = "controls the screen"
    elif kind in ("Zl", "Zp"):
        why = "breaks the line"
    else:
        why = "is not seen"
    return " ".join(part for part in (f"U+{ord(char):04X}", name, f"({why})") if part)
