"""Errors that a user can act on, and findings: what was left out, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# Bytes of a name that are no UTF-8 come as lone surrogates (`os.fsdecode`); so may text of JSON.
_NO_TEXT = re.compile("[\ud800-\udfff]")


def plain_text(text: str) -> str:
    """Text that any file, screen or network takes: bytes that are no UTF-8 are written ``%E4``.

    Args:
        text: perhaps the name of a file as the operating system gives it.
    """
    return _NO_TEXT.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"%{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"%u{code:04X}"


def suggestion(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The start of a remedy: ``did you mean NAME? ``, or "" where no known word is like it.

    Args:
        word: that was given.
        known: words that may stand there.
        cutoff: likeness, 0 to 1, below which nothing is suggested.
    """
    import difflib  # wrong words alone need it

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean {close[0]}? " if close else ""


class UserError(ValueError):
    """Something the user gave cannot be used: names the field, the value and the remedy.

    Printed on one screen without a traceback by the command line.

    Args:
        field: configuration key, command-line option or file that is at fault.
        value: what stands there.
        remedy: what to do about it, as an imperative sentence.
        problem: what is wrong with the value; optional where the remedy says it all.
    """

    def __init__(self, field: str, value: object, remedy: str, *, problem: str = "") -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        self.problem = plain_text(problem)
        text = "\\n".join(plain_text(str(value)).splitlines())  # a value forges no second line
        if len(text) > 300:
            text = text[:297] + "..."
        cause = f": {self.problem}" if problem else ""
        super().__init__(f"{field} = {text}{cause}\n  remedy: {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Comes whole out of another process (`core.archives.parallel`)."""
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(kind: type[UserError], args: tuple[Any, ...], fields: dict[str, Any]) -> UserError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


class CaseError(UserError):
    """One case cannot be used. The case is left out, counted and named; the others go on.

    Args:
        code: stable reason code such as ``E_IMAGE_UNREADABLE``.
        field, value, remedy, problem: as for `UserError`.
    """

    def __init__(
        self, code: str, field: str, value: object, remedy: str, *, problem: str = ""
    ) -> None:
        super().__init__(field, value, remedy, problem=problem)
        self.code = code

    def finding(self, case: str) -> Finding:
        """What is noted of the case that could not be used."""
        return Finding(self.code, "error", case, "", str(self).splitlines()[0], self.remedy)


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed about, or left out of, an archive.

    Attributes:
        code: stable reason code, ``E_...`` or ``W_...``; the only part that may leave a site.
        severity: ``error`` (left out) or ``warning`` (used all the same).
        case: case id inside the archive ("" for the archive as a whole); stays at the site.
        organ: TG-263 name, or "" where the whole case is meant.
        message: what was found, with values.
        remedy: what to do about it.
    """

    code: str
    severity: str
    case: str
    organ: str
    message: str
    remedy: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "case", plain_text(self.case))
        object.__setattr__(self, "message", plain_text(self.message))
