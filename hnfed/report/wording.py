"""How people read what stands in a run's JSON."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from core.run_records import number
from core.text import shown


def date(value: object) -> str:
    """A time stamp of the journal as people write it; what is none stays as it is."""
    try:
        time = datetime.fromisoformat(str(value))
        return f"{time.day} {time:%B %Y, %H:%M %Z}".strip()
    except ValueError:
        return str(value or "")


def in_shell(text: object) -> str:
    """One word of a shell's command: nothing in it is run, and it is no option.

    Args:
        text: a path or a name, perhaps foreign; a character that `shown` replaces is replaced, and
            the command finds nothing then.
    """
    word = shown(text)
    return shlex.quote(f"./{word}" if word.startswith("-") else word)


def _digits(places: int) -> Callable[[object], str]:
    def shown(value: object) -> str:
        known = number(value)
        return "–" if known is None else f"{known:.{places}f}"

    return shown


def duration(value: object) -> str:
    """Seconds as people say them: `41.2 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = number(value)
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def amount(value: object) -> str:
    """Bytes with a decimal unit: `12.3 MB`."""
    known = number(value)
    if known is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if known < 999.5:
            return f"{known:.0f} {unit}" if unit == "B" else f"{known:.1f} {unit}"
        known /= 1000
    return f"{known:.1f} TB"


def count(value: object) -> str:
    """Whole number with thin spaces: `1 234 567`."""
    known = number(value)
    return "–" if known is None else f"{known:,.0f}".replace(",", "\u202f")


def change(value: object) -> str:
    """A difference of Dice with its sign: `+0.012`, `−0.003`."""
    known = number(value)
    return "–" if known is None else f"{known:+.3f}".replace("-", "−")


def listed(names: Iterable[str]) -> str:
    """Names as people list them: `a`, `a and b`, `a, b and c`."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} and {last}" if first else last


FILTERS: dict[str, Callable[[Any], str]] = {
    "dice": _digits(3),
    "mm": _digits(1),
    "duration": duration,
    "amount": amount,
    "change": change,
    "count": count,
    "listed": listed,
}
