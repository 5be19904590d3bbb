"""Foreign text made safe for a screen: what does not print as itself is written out."""

from __future__ import annotations

TAB = "\t"


def shown(text: str, most: int = 0) -> str:
    """Text in one line without control, direction or invisible signs.

    Args:
        text: from anywhere.
        most: signs that are shown; 0 for all.
    """
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return line if not most or len(line) <= most else line[: most - 3] + "..."


def strange(text: str) -> int:
    """How many signs of a text file do not print as themselves (ends of lines and tabs do)."""
    return sum(not c.isprintable() and c not in "\n\t" for c in text)
